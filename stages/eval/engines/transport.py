"""Requests to a server: tried again where that can help, and failures in one line without the key."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
from stages.core.records import as_json

KEY_VARIABLE = "FAIR_RETEST_API_KEY"  # a name of our own: no server gets a key that is meant for another one
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that another try may not meet again
LOCKED = (401, 403)  # statuses of who wants a key, or another one
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_ANSWER = 8_000_000  # bytes; a reply of a million tokens has about half as many
REDIRECTS = (301, 302, 303, 307, 308)
LONGEST_WAIT = 60.0  # seconds between two tries, where the server asks for none
LONGEST_ASKED = 300.0  # seconds that a server may ask for; behind more is a quota, and not a moment's load
LONGEST_LINE = 200  # characters of it that are shown
FIRST_WORDS = 80  # characters of an answer that is no JSON
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


class OtherPlaceOrTime(ServerError):
    """An answer that says where else to ask, or how much later: nothing here helps but to tell the user."""


class NoAnswerInTime(PassingError):
    """No answer within the time that one may have; all of it has passed by then."""


class BrokenAnswer(PassingError):
    """An answer that is not JSON, such as one that was cut off."""


class BrokenOff(PassingError):
    """The server took the request and closed the connection without an answer."""


Heed = Callable[[PassingError], None]
"""Is told of a failure before the wait for the next try."""


@dataclass(frozen=True)
class _Answer:
    """What a server sent, whole; its text is taken for UTF-8."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


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
        self,
        client: httpx2.AsyncClient,
        path: str,
        body: Mapping[str, Any],
        *,
        once: bool = False,
        heed: Heed | None = None,
    ) -> bytes:
        """The JSON that a request brings, tried as often as allowed, or `once`. Raises ServerError."""
        backoff = wait_random_exponential(multiplier=self.first_wait, max=LONGEST_WAIT)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.after if isinstance(error, PassingError) else 0.0
            return max(asked, backoff(state))

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if heed and isinstance(error, PassingError):
                heed(error)

        def stop(state: RetryCallState) -> bool:
            late = state.outcome is not None and isinstance(state.outcome.exception(), NoAnswerInTime)
            most = min(self.attempts, 2) if late else self.attempts
            return once or state.attempt_number >= most

        retrying = AsyncRetrying(
            stop=stop,
            wait=wait,
            before_sleep=tell,
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
            answer = await self._fetch(client, method, self.url + path, content)
        except httpx2.ConnectTimeout:
            raise PassingError("no connection in time") from None
        except httpx2.TimeoutException:
            raise NoAnswerInTime(f"no answer within {self.timeout:g} s") from None
        except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:
            raise BrokenOff(f"the connection failed, {_in_a_line(error)}") from None
        except httpx2.RequestError as error:
            raise PassingError(f"the connection failed, {_in_a_line(error)}") from None
        if not 200 <= answer.status < 300:
            raise self._explain_status(answer, path)
        try:
            return _read_json(answer.body)
        except (ValueError, RecursionError):
            raise BrokenAnswer(_describe_other(answer)) from None

    def _explain_status(self, answer: _Answer, path: str) -> ServerError:
        """The failure that an answer with another status than that of success is."""
        status, said = answer.status, hide_key(answer.text)
        reason = f"status {status}, {_in_a_line(said) if said.strip() else 'without a word'}"
        if status in REDIRECTS and (place := answer.headers.get("Location")):
            where = _in_a_line(_resolve(self.url + path, place).removesuffix(path))
            return OtherPlaceOrTime(
                f"status {status}, the server redirects to {where}: if that is the one to ask, give its "
                "address with --endpoint (no redirect is followed, for the key would go along)",
                status,
                said,
            )
        if status in LOCKED:
            reason += f" (the key for it goes into {KEY_VARIABLE})"
        if status not in PASSING:
            return ServerError(reason, status, said)
        asked = read_seconds(answer.headers.get("Retry-After"))
        if asked > LONGEST_ASKED:
            return OtherPlaceOrTime(f"{reason}; the server asks to wait {asked:.0f} s", status, said)
        return PassingError(reason, status, said, asked)

    async def _fetch(
        self, client: httpx2.AsyncClient, method: str, url: str, content: bytes | None
    ) -> _Answer:
        """The answer, whole within the time and the size that one may have."""
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
        return _Answer(answer.status_code, answer.headers, bytes(body))


def read_key() -> str | None:
    """The key of the environment, None without one. Raises StageError for one that no header can hold."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise StageError(f"{KEY_VARIABLE} holds characters that no key has: set it anew")
    return key or None


def read_seconds(text: str | None) -> float:
    """The seconds of a Retry-After, or until its date; what is neither asks for the usual wait alone."""
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = _seconds_until(str(text))
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _seconds_until(date: str) -> float:
    """The seconds from now to a date as headers write it; 0 for a text that is none."""
    try:
        then = parsedate_to_datetime(date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _read_json(body: bytes) -> bytes:
    """The JSON of an answer as any reader takes it. Raises ValueError or RecursionError where it is none.

    What a model writes may hold half a surrogate pair, or bytes that are no UTF-8: these are replaced, and
    the reply is a reply.
    """
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return orjson.dumps(as_json(json.loads(body.decode("utf-8", "replace"))))
    return body


def _describe_other(answer: _Answer) -> str:
    """What came in place of JSON: its kind and its first words."""
    if not answer.body.strip():
        return "the answer is empty"
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    but = "" if not kind or kind.endswith("json") else f" but {_in_a_line(kind)}"
    aside = ", a stream that nobody asked for" if kind == "text/event-stream" else ""
    return f"the answer is not JSON{but}{aside}; it begins: {_in_a_line(answer.text)[:FIRST_WORDS]}"


def _resolve(url: str, place: str) -> str:
    """The address that a Location header names, which may be relative."""
    try:
        return str(httpx2.URL(url).join(place))
    except httpx2.InvalidURL:
        return place


def hide_key(text: str) -> str:
    """What a server said; where it repeats the key it is not repeated."""
    key = read_key()
    return text.replace(key, "***") if key else text


def _in_a_line(what: object) -> str:
    """Anything as a short line."""
    line = " ".join(hide_key(str(what)).split()) or type(what).__name__
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…"
