"""Replies of a server that speaks OpenAI's chat completions: mlx_lm.server, vLLM, Ollama, llama-server, …

The prompt goes as messages and tools, so the server's own template writes it and its own parser may read
the calls: what is measured is the model as it is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import orjson
from pydantic import ValidationError

from stages.core import progress
from stages.core.artifact import fingerprint_json, fingerprint_model
from stages.core.errors import StageError
from stages.core.interrupts import deferred_interrupts
from stages.core.records import RawReply
from stages.core.weights import WEIGHTS
from stages.core.words import plural
from stages.eval.clock import WorkClock
from stages.eval.engines import Costs, EngineName, Keep, Question, Sampling
from stages.eval.engines.completions import (
    Completion,
    ModelList,
    describe_model,
    read_completion,
    read_refusal,
    write_request,
)
from stages.eval.engines.patience import Patience
from stages.eval.engines.refusals import OTHER, list_controls
from stages.eval.engines.transport import (
    KEY_VARIABLE,
    LOCKED,
    BrokenAnswer,
    OtherPlaceOrTime,
    PassingError,
    ServerError,
    Transport,
    hide_key,
)


class NoServer(StageError):
    """Nobody answers at the address."""


HIGHEST_PORT = 65535
LONGEST_LABEL = 63  # characters between two dots of a host's name, by RFC 1035
NOT_FOUND = 404  # how servers answer a request for a model that they do not have
WHICH_NAME = "for mlx_lm.server the folder given to its --model"
GLANCE = 0.2  # seconds between two looks whether to stop
GRACE = 5.0  # seconds that answers in work have to come, when a run is stopped
STOPPING = f"stops; answers that come within {GRACE:g} s are kept"
MOMENT = 1.1  # seconds: a clock that counts whole ones has moved on


@dataclass
class Endpoint:
    """A server, and the model that it is asked for; None: the only one that it has."""

    transport: Transport
    dialect: str
    served_model: str | None = None
    concurrency: int = 4
    kept_models: tuple[str, ...] = ()
    """Its models of which replies are kept: these can be scored again without the server."""
    first_token_seconds: float | None = None
    _patience: Patience | None = field(default=None, repr=False)
    _checked: bool = field(default=False, repr=False)
    _listed: bool = field(default=False, repr=False)

    @property
    def name(self) -> EngineName:
        """What summaries call it."""
        return "endpoint"

    def fingerprint(self) -> str:
        """Of the address and the model's name there; asks the server for the name when none was given.

        A server that is not there is the one whose replies are kept. It is needed only for what is missing.
        """
        if self.served_model is None:
            try:
                self.load()
            except NoServer:
                if len(self.kept_models) != 1:
                    raise
                (self.served_model,) = self.kept_models
                progress.say(
                    f"  {self.transport.url} does not answer: taken for {self.served_model}, as kept"
                )
        return fingerprint_json([self.transport.url, self.served_model, self.dialect])

    def facts(self) -> dict[str, Any]:
        """The address and the model's name there."""
        return {"engine": self.name, "url": self.transport.url, "served_model": self.served_model}

    def served_as(self) -> dict[str, Any]:
        """What the server's list tells of the model beside its name, empty where nobody can be asked.

        Where the model is a folder of this machine its weights tell it, whatever the server says.
        """
        told = asyncio.run(self._describe_model())
        weights = _fingerprint_weights(str(self.served_model), str(told.get("root")))
        return told | ({"weights": weights} if weights else {})

    def load(self) -> None:
        """See that the server has the model. Raises StageError when it has not, or does not answer."""
        if self._checked:
            return
        url, listed = self.transport.url, asyncio.run(self._list_models())
        if listed is None and self.served_model is None:
            raise StageError(
                f"{url}/models lists no models: name the one to ask with --served-model ({WHICH_NAME})"
            )
        if listed is None:
            progress.say(f"  {url}/models lists no models: only the answers tell which one answers")
        elif self.served_model is None and len(listed) == 1:
            self.served_model = listed[0]
        elif self.served_model not in listed:
            asked = f", not {self.served_model}" if self.served_model else ""
            has = ", ".join(listed) or "no model"
            raise StageError(f"{url} serves {has}{asked}: name one of its models with --served-model")
        progress.say(f"  {url} {'is asked for' if listed is None else 'serves'} {self.served_model}")
        self._checked, self._listed = True, listed is not None

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Ask the questions, `concurrency` at the same time.

        Raises StageError when the server gives up, refuses a question or another model answers. A signal to
        stop asks nothing more; what the server is at work on is kept if it comes within `GRACE` seconds.
        """
        with deferred_interrupts(STOPPING) as wanted:
            asyncio.run(self._answer_until(wanted, questions, sampling, keep, label))
        if wanted.is_set():
            raise KeyboardInterrupt

    def costs(self) -> Costs:
        """The time to the first token; what else the server costs is not seen from here."""
        return Costs(first_token_seconds=self.first_token_seconds)

    async def _list_models(self) -> list[str] | None:
        """The names of the server's models, None where it has no list of them."""
        async with self.transport.open() as client:
            try:
                answer = await self.transport.get(client, "/models")
                return [*{model.id: None for model in ModelList.model_validate_json(answer).data}]
            except PassingError as error:
                if isinstance(error, BrokenAnswer):
                    return None
                how = "does not answer" if error.status is None else "is not ready"
                raise NoServer(
                    f"{self.transport.url} {how} ({error}): start the server, or check --endpoint"
                ) from None
            except ServerError as error:
                if isinstance(error, OtherPlaceOrTime) and self.served_model is None:
                    raise StageError(f"{self.transport.url}/models: {error}") from None
                if error.status in LOCKED and self.served_model is None:
                    raise StageError(f"{self.transport.url}/models is not for everybody: {error}") from None
                return None
            except ValidationError:
                return None

    async def _describe_model(self) -> dict[str, Any]:
        async with self.transport.open() as client:
            try:
                told = describe_model(await self.transport.get(client, "/models"), self.served_model)
                if "created" in told:
                    # Some tell when the model was made, others (mlx_lm.server) what time it is.
                    await asyncio.sleep(MOMENT)
                    again = describe_model(await self.transport.get(client, "/models"), self.served_model)
                    told = {key: value for key, value in told.items() if again.get(key) == value}
                return told
            except ServerError:
                return {}

    async def _answer_until(
        self,
        wanted: Event,
        questions: Sequence[Question],
        sampling: Sampling,
        keep: Keep,
        label: str,
    ) -> None:
        """Answer all, with a word when nothing comes for long; when a stop is wanted, what comes soon."""
        patience = self._patience = Patience(self.transport.url)

        def keep_and_note(question: Question, reply: RawReply) -> None:
            keep(question, reply)
            patience.renew()

        work = asyncio.create_task(self._answer_all(wanted, questions, sampling, keep_and_note, label))
        while not work.done() and not wanted.is_set():
            await asyncio.wait({work}, timeout=GLANCE)
            patience.speak()
        if not wanted.is_set():
            return await work
        await asyncio.wait({work}, timeout=GRACE)
        work.cancel()
        with suppress(asyncio.CancelledError, StageError):  # the signal may have stopped the server as well
            await work

    async def _answer_all(
        self, wanted: Event, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str
    ) -> None:
        waiting, in_work, failures = [*reversed(questions)], set[str](), list[str]()
        unread = list[str]()
        clock = WorkClock([question.id for question in questions])
        with progress.bar(label, len(questions), "queries") as bar:
            bar.begin()  # the first answer may take minutes

            async def work(client: httpx2.AsyncClient) -> None:
                while waiting and not failures and not wanted.is_set():
                    question = waiting.pop()
                    clock.tick(in_work)
                    in_work.add(question.id)
                    try:
                        answer = await self._ask_or_refuse(client, question, sampling)
                    except ServerError as error:
                        failures.append(self._explain(error, question))
                        return
                    finally:
                        clock.tick(in_work)
                        in_work.remove(question.id)
                    seconds = round(clock.parts[question.id], 4)
                    if isinstance(answer, ServerError):
                        unread.append(question.id)
                        keep(question, read_refusal(answer, question, seconds))
                    else:
                        keep(question, read_completion(answer, question, self.dialect, seconds))
                    bar.advance()

            async with self.transport.open() as client:
                await self._time_first_token(client, questions[0], sampling)
                clock.skip()
                # A question that fails stops no other one in work: its answer is waited for and kept.
                await asyncio.gather(*(work(client) for _ in range(min(self.concurrency, len(questions)))))
        if unread:
            said = (
                f"the server could not read {plural(len(unread), 'reply')} of its model, such as {unread[0]}"
            )
            progress.say(f"  {said}: counted as malformed, its words are in replies.jsonl")
        if failures:
            raise StageError(failures[0])

    def _explain(self, error: ServerError, question: Question) -> str:
        """A failure in one line; with a wrong name the same command would fail for ever."""
        url, said = self.transport.url, f"query {question.id}: {error}"
        if error.status != NOT_FOUND:
            return f"{url}, {said}; the same command asks what is left"
        known = "which is on its list" if self._listed else WHICH_NAME
        return (
            f"{url} answers {NOT_FOUND} for model {self.served_model!r}: check --served-model ({known}) "
            f"and the address; {said}"
        )

    async def _time_first_token(
        self, client: httpx2.AsyncClient, question: Question, sampling: Sampling
    ) -> None:
        """Measure how long the server takes to answer a prompt with one token, nothing else in work.

        Another question comes first, with which some servers load their model. A failure is left to the
        questions themselves.
        """
        if self.first_token_seconds is None:
            one_token = replace(sampling, max_tokens=1)
            try:
                await self._ask(client, OTHER, one_token, once=True)
                started = time.perf_counter()
                await self._ask(client, question, one_token, once=True)
            except ServerError:
                return
            self.first_token_seconds = round(time.perf_counter() - started, 4)

    async def _ask_or_refuse(
        self, client: httpx2.AsyncClient, question: Question, sampling: Sampling
    ) -> dict[str, Any] | ServerError:
        """One answer as it came, or the failure that says that the server could not read its model's reply.

        Raises ServerError when none of the right model comes for another reason.
        """
        try:
            return await self._ask(client, question, sampling)
        except ServerError as error:
            controls = list_controls(error, question, sampling)
            for control in controls:
                try:
                    await self._ask(client, *control)
                except ServerError:
                    raise error from None
            if not controls:
                raise
            return error

    async def _ask(
        self, client: httpx2.AsyncClient, question: Question, sampling: Sampling, *, once: bool = False
    ) -> dict[str, Any]:
        """One answer as it came. Raises ServerError when none of the right model comes."""
        body = write_request(question, sampling, self.served_model)
        heed = self._patience.heed if self._patience else None
        answer = await self.transport.post(client, "/chat/completions", body, once=once, heed=heed)
        try:
            completion = Completion.model_validate_json(answer)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            said = hide_key(answer.decode("utf-8", "replace"))
            raise ServerError(f"no chat completion came, at {place}: {first['msg']}", 200, said) from None
        if completion.model and completion.model != self.served_model:
            raise ServerError(f"{completion.model} answered, not {self.served_model}: see --served-model")
        read: dict[str, Any] = orjson.loads(answer)
        return read


def _fingerprint_weights(*names: str) -> str | None:
    """A fingerprint of the first name that is a model folder here; None where none is."""
    for name in names:
        try:
            holds_model = any(Path(name).glob(WEIGHTS))
        except (OSError, ValueError):  # any text may be a name
            continue
        if holds_model:
            return fingerprint_model(Path(name))[:16]
    return None


def check_address(url: str) -> str:
    """The address without a slash at its end. Raises StageError for no address, and for one with a key."""
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        address = httpx2.URL("")
    if any(len(label) > LONGEST_LABEL for label in address.host.split(".")):
        raise StageError(f"--endpoint {url}: no host has a name with more than {LONGEST_LABEL} characters")
    known = address.scheme in ("http", "https") and address.host and (address.port or 0) <= HIGHEST_PORT
    if not known:
        raise StageError(f"--endpoint {url}: use an address such as http://127.0.0.1:8080/v1")
    if address.userinfo or address.query:
        raise StageError(f"--endpoint: give the address alone, and a key in the variable {KEY_VARIABLE}")
    return url.rstrip("/")
