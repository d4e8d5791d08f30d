"""A server of chat completions on loopback, as strict or as broken as a test wants it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages.eval.engines.refusals import OTHER

Body = dict[str, Any]
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]  # status, JSON or bytes, headers
PROBE = OTHER.row["messages"][0]["content"]
DROPPED: Answer = (0, b"")  # the connection is closed without an answer


def complete(content: str | None = "Hello.", finish: str = "stop", **more: Any) -> Body:
    """A completion with one choice."""
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
        **more,
    }


def call(arguments: Any, name: str = "execute_code") -> Body:
    """A message with one call, its arguments as servers send them: JSON in a text."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": text}}]}


@dataclass
class ChatServer:
    """What the server says to the n-th time (from 1) that a question is asked, and what it was asked.

    Requests that only see how the server does, for one token or with a question of no suite, are apart.
    """

    reply: Callable[[str, int], Answer] = lambda _question, _time: (200, complete())
    probe: Callable[[Body], Answer] = lambda _body: (200, complete("H", "length"))
    models: Answer = (200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})
    dies_after: int | None = None
    pause: float = 0.0
    drip: float = 0.0
    """Seconds before each byte of an answer to a question; 0: it comes whole."""
    tell_models: Callable[[], Answer] | None = None
    """Instead of `models`, where each answer is another one."""
    asked: list[Body] = field(default_factory=list)
    probed: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    url: str = ""

    def times(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.asked)


@contextmanager
def serving(server: ChatServer, port: int = 0) -> Iterator[ChatServer]:
    """Run the server for the block; its address is in `url`."""
    lock, open_requests = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = server.tell_models() if server.tell_models else server.models
            self._send(*models) if self.path == "/v1/models" else self._send(404, {"error": "no"})

        def do_POST(self) -> None:
            nonlocal open_requests
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if server.dies_after is not None and len(server.asked) >= server.dies_after:
                    self.close_connection = True
                    return
                question = body["messages"][-1]["content"]
                if body["max_tokens"] == 1 or question == PROBE:
                    server.probed.append(body)
                    self._send(*server.probe(body))
                    return
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                number = server.times()[question]
                open_requests += 1
                server.at_once = max(server.at_once, open_requests)
            time.sleep(server.pause)
            answer = server.reply(question, number)
            with lock:
                open_requests -= 1
            self._send(*answer)

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            if not status:
                self.close_connection = True
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            drip = server.drip if self.command == "POST" else 0.0
            pieces = [data[i : i + 1] for i in range(len(data))] if drip else [data]
            with suppress(ConnectionError):  # of a client that does not wait for the end
                for piece in pieces:
                    time.sleep(drip)
                    self.wfile.write(piece)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
