"""A hub on this machine: a server that answers the requests of Hugging Face's client from a folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


@contextmanager
def serve_hub(name: str, folder: Path) -> Iterator[str]:
    """Serve the files of a folder as the data set `name` and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if file := re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.+)", path):
                self._send_file(folder / file[1])
            elif re.fullmatch(rf"/api/datasets/{name}(?:/revision/[^/]+)?", path):
                self._send(json.dumps(_describe(name, folder)).encode())
            elif tree := re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+/?(.*)", path):
                self._send_tree(folder / tree[1], "recursive=true" in query.lower())
            else:
                self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        def _send_file(self, path: Path) -> None:
            if not path.is_file():
                self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            data = path.read_bytes()
            self._send(data, headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def _send_tree(self, path: Path, recursive: bool) -> None:
            if not path.is_dir():
                self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
                return
            inside = path.rglob("*") if recursive else path.iterdir()
            self._send(json.dumps([_describe_entry(entry, folder) for entry in sorted(inside)]).encode())

        def _send(self, data: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _describe(name: str, folder: Path) -> dict[str, Any]:
    files = [{"rfilename": str(p.relative_to(folder))} for p in sorted(folder.rglob("*")) if p.is_file()]
    return {"id": name, "sha": COMMIT, "private": False, "downloads": 0, "tags": [], "siblings": files}


def _describe_entry(path: Path, folder: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    return {
        "type": "directory" if path.is_dir() else "file",
        "path": name,
        "oid": hashlib.sha1(name.encode()).hexdigest(),
        "size": path.stat().st_size if path.is_file() else 0,
    }
