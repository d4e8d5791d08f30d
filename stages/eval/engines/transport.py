"""Requests to a server: tried again where that can help, and failures in one line without the key."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from stages.core.errors import StageError

KEY_VARIABLE = "FAIR_RETEST_API_KEY"  # a name of our own: no server gets a key that is meant for another one
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that another try may not meet again
LOCKED = (401, 403)  # statuses of who wants a key, or another one
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_ANSWER = 8_000_000  # bytes; a reply of a million tokens has about half as many
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
LONGEST_LINE = 200  # characters of it that are shown
LONGEST_ERROR = 4000  # characters of a server's error that are kept
UNREAD = re.compile(  # how servers say that they could not read what their model wrote
    r"pars\w* (?:the )?(?:tool|function)[ _-]?call|(?:tool|function)[ _-]?call\w* pars"
    r"|extracting tool call|failed to parse input|invalid json: |xml syntax error",
    re.IGNORECASE,
)


class ServerError(Exception):
    """A failure that every other try would meet; its text says which.

    `status` and `said` are what the server answered, the key left out; None and empty without an answer.
    """

    def __init__(self, reason: str, status: int | None = None, said: str = "") -> None:
        super().__init__(reason)
        self.status, self.said = status, said[:LONGEST_ERROR]

    @property
    def unread(self) -> bool:
        """Whether the server says that it could not read a call. A model would be asked again in vain, or
        with luck: then only its second thought would count."""
        return self.status in (200, 400, 422, 500) and UNREAD.search(self.said) is not None


class PassingError(ServerError):
    """A failure that another try may not meet; `after` is the wait in seconds that the server asked for."""

    def __init__(self, reason: str, status: int | None = None, said: str = "", after: float = 0.0) -> None:
        super().__init__(reason, status, said)
        self.after = after


class NoAnswerInTime(PassingError):
    """No answer within the time that one may have; all of it has passed by then."""


class BrokenAnswer(PassingError):
    """An answer that is not JSON, such as one that was cut off."""


class BrokenOff(PassingError):
    """The server took the request and closed the connection without an answer."""


@dataclass(frozen=True)
class Transport:
    """A server's address, the seconds it may take to answer, the tries, the first wait between them."""

    url: str
    timeout: float = 600.0
    attempts: int = 5
    first_wait: float = 0.5

    def open(self) -> httpx2.AsyncClient:
        """A client with the key of the environment, if there is one.

        Raises StageError for a proxy of the environment that cannot be used.
        """
        key = read_key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A proxy of the environment leads out of this machine, never to a server on it.
        outside = httpx2.URL(self.url).host not in LOOPBACK
        timeout = httpx2.Timeout(self.timeout, connect=10.0)
        try:
            return httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=outside)
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise StageError(
                f"a proxy that the environment names cannot be used ({_in_a_line(error)}): "
                "change or unset ALL_PROXY, HTTP_PROXY, HTTPS_PROXY"
            ) from None

    async def get(self, client: httpx2.AsyncClient, path: str) -> bytes:
        """The JSON at a path, tried once. Raises ServerError."""
        return await self._send(client, "GET", path, None)

    async def post(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any], *, once: bool = False
    ) -> bytes:
        """The JSON that a request brings, tried as often as allowed, or `once`. Raises ServerError."""
        backoff = wait_random_exponential(multiplier=self.first_wait, max=LONGEST_WAIT)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.after if isinstance(error, PassingError) else 0.0
            return min(max(asked, backoff(state)), LONGEST_WAIT)

        def stop(state: RetryCallState) -> bool:
            late = state.outcome is not None and isinstance(state.outcome.exception(), NoAnswerInTime)
            most = min(self.attempts, 2) if late else self.attempts
            return once or state.attempt_number >= most

        retrying = AsyncRetrying(
            stop=stop,
            wait=wait,
            retry=retry_if_exception(lambda error: isinstance(error, PassingError) and not error.unread),
            reraise=True,
        )
        answer: bytes = await retrying(self._send, client, "POST", path, body)
        return answer

    async def _send(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
    ) -> bytes:
        content = None if body is None else orjson.dumps(body)
        try:
            response = await self._fetch(client, method, self.url + path, content)
        except httpx2.ConnectTimeout:
            raise PassingError("no connection in time") from None
        except httpx2.TimeoutException:
            raise NoAnswerInTime(f"no answer within {self.timeout:g} s") from None
        except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:
            raise BrokenOff(f"the connection failed, {_in_a_line(error)}") from None
        except httpx2.RequestError as error:
            raise PassingError(f"the connection failed, {_in_a_line(error)}") from None
        if not response.is_success:
            status, said = response.status_code, hide_key(response.text)
            reason = f"status {status}, {_in_a_line(said)}"
            if status in LOCKED:
                reason += f" (the key for it goes into {KEY_VARIABLE})"
            if status in PASSING:
                raise PassingError(reason, status, said, _read_seconds(response.headers.get("Retry-After")))
            raise ServerError(reason, status, said)
        try:
            orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise BrokenAnswer("the answer is not JSON") from None
        return response.content

    async def _fetch(
        self, client: httpx2.AsyncClient, method: str, url: str, content: bytes | None
    ) -> httpx2.Response:
        """The answer, whole within the time and the size that one may have; its text is taken for UTF-8."""
        body = bytearray()
        try:
            # The client's own limit is for each read: a server that says a byte now and then would pass it.
            async with asyncio.timeout(self.timeout), client.stream(method, url, content=content) as answer:
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        raise ServerError(f"the answer has more than {LARGEST_ANSWER // 10**6} MB")
        except TimeoutError:
            raise NoAnswerInTime(f"no answer within {self.timeout:g} s") from None
        waits = {name: value for name, value in answer.headers.items() if name.lower() == "retry-after"}
        return httpx2.Response(answer.status_code, headers=waits, content=bytes(body))


def read_key() -> str | None:
    """The key of the environment, None without one. Raises StageError for one that no header can hold."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise StageError(f"{KEY_VARIABLE} holds characters that no key has: set it anew")
    return key or None


def _read_seconds(text: str | None) -> float:
    """The seconds of a Retry-After; a date, or nothing, asks for no more than the usual wait."""
    try:
        seconds = max(float(text or 0), 0.0)
        return seconds if math.isfinite(seconds) else 0.0
    except ValueError:
        return 0.0


def hide_key(text: str) -> str:
    """What a server said; where it repeats the key it is not repeated."""
    key = read_key()
    return text.replace(key, "***") if key else text


def _in_a_line(what: object) -> str:
    """Anything as a short line."""
    line = " ".join(hide_key(str(what)).split()) or type(what).__name__
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…"
