"""Replies that were paid for: each kept once under its key, on disk as soon as it is whole.

A key is the engine (a model's content, or a server's model), the sampling, the prompt and the number of
the draw. A folder holds the replies of one engine and sampling: `key.json` says which, `replies.jsonl` has
a line a reply, and one without a reply where a prompt is to be asked again: so a kill mixes no old replies
with new ones. A line that a kill cut off counts as not written. `costs.json` has the costs by suite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from pydantic import Field, ValidationError

from stages.core.artifact import fingerprint_json
from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.records import RawReply, Record, read_record, write_record
from stages.eval.engines import Costs, Question

TELLING = {"created", "weights"}  # what is another one for every other model; a size or a path need not be


class StoredReply(Record):
    """One line of the store."""

    prompt: str
    sample: int
    reply: RawReply | None = Field(description="None: to be asked again")
    served_as: dict[str, Any] = Field(
        {}, description="what the server told of its model beside the name, as far as it tells models apart"
    )


class SuiteCosts(Record):
    """What the replies of each suite cost, by its name."""

    suites: dict[str, Costs]


def replies_root(options: Options) -> Path:
    """Where the kept replies of a preset's models are, whatever the arm and the engine."""
    return artifacts_root() / options.preset.name / "replies"


def kept_models(root: Path, url: str) -> tuple[str, ...]:
    """The names of the models of a server of which replies are kept."""
    keys = [_read_key(path) for path in sorted(root.glob("*/key.json"))]
    return tuple({str(key["served_model"]): None for key in keys if key.get("url") == url})


def _read_key(path: Path) -> dict[str, Any]:
    """What a folder of replies is of; nothing where the file is damaged."""
    try:
        key = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return key if isinstance(key, dict) and "served_model" in key else {}


class ReplyStore:
    """The kept replies of one engine and sampling."""

    def __init__(self, root: Path, key: Mapping[str, Any]) -> None:
        self.folder = root / fingerprint_json(key)[:16]
        self._key = dict(key)
        self._stored: dict[tuple[str, int], StoredReply] = {}
        for line in self._lines():
            try:
                stored = StoredReply.model_validate_json(line)
            except ValidationError:
                continue
            self._stored[stored.prompt, stored.sample] = stored
        try:
            self._costs = read_record(self.folder / "costs.json", SuiteCosts).suites
        except StageError:
            self._costs = {}

    def find(self, question: Question, sample: int) -> RawReply | None:
        """The kept reply to a prompt, under the id of the query that asks now."""
        stored = self._stored.get((question.key, sample))
        if stored is None or stored.reply is None:
            return None
        return stored.reply.model_copy(update={"id": question.id})

    def knows(self, question: Question, sample: int) -> bool:
        """Whether a prompt was ever answered, be it to be asked again or not."""
        return (question.key, sample) in self._stored

    def find_change(self, questions: Sequence[Question], sample: int, served_as: Mapping[str, Any]) -> str:
        """What a server tells otherwise of its model than when it gave one of the kept replies.

        Empty where it tells the same; what it told only then, or only now, changes nothing.
        """
        for stored in self._look_up(questions, sample):
            before = stored.served_as if stored.reply else {}
            changed = [
                key for key in sorted(before.keys() & served_as.keys()) if before[key] != served_as[key]
            ]
            if changed:
                return ", ".join(f"{key}={served_as[key]!r}, before {before[key]!r}" for key in changed)
        return ""

    def tells_apart(self, questions: Sequence[Question], sample: int, served_as: Mapping[str, Any]) -> bool:
        """Whether of each kept reply's model something is known that would be otherwise of any other one."""
        kept = (stored for stored in self._look_up(questions, sample) if stored.reply)
        return all(TELLING & stored.served_as.keys() & served_as.keys() for stored in kept)

    def has_forgotten(self, questions: Sequence[Question], sample: int) -> bool:
        """Whether a prompt had a reply and is to be asked again."""
        return any(stored.reply is None for stored in self._look_up(questions, sample))

    def forget(self, questions: Sequence[Question], sample: int) -> None:
        """Have prompts asked again, by whatever run comes next: their kept replies are not used any more."""
        for stored in self._look_up(questions, sample):
            if stored.reply is not None:
                self._write(StoredReply(prompt=stored.prompt, sample=sample, reply=None))

    def keep(
        self, question: Question, sample: int, reply: RawReply, served_as: Mapping[str, Any] | None = None
    ) -> None:
        """Write a reply down."""
        self._write(
            StoredReply(prompt=question.key, sample=sample, reply=reply, served_as=dict(served_as or {}))
        )

    def read_costs(self, suite: str) -> Costs:
        """What a suite cost in all sessions; one that used replies to other suites alone, what those did."""
        told = [self._costs[suite]] if suite in self._costs else self._costs.values()
        return reduce(join_costs, told, Costs())

    def add_costs(self, suite: str, costs: Costs) -> None:
        """Write down what a session costs so far: a kill must not leave the replies without it."""
        joined = join_costs(self._costs.get(suite, Costs()), costs)
        if joined != self._costs.get(suite, Costs()) and self.folder.is_dir():
            self._costs[suite] = joined
            write_record(self.folder / "costs.json", SuiteCosts(suites=self._costs))

    def forget_costs(self, suite: str) -> None:
        """Leave the sessions before this one out of a suite's costs."""
        if self._costs.pop(suite, None) is not None:
            write_record(self.folder / "costs.json", SuiteCosts(suites=self._costs))

    def _look_up(self, questions: Sequence[Question], sample: int) -> list[StoredReply]:
        found = [self._stored.get((question.key, sample)) for question in questions]
        return [stored for stored in found if stored is not None]

    def _write(self, stored: StoredReply) -> None:
        self._stored[stored.prompt, stored.sample] = stored
        self._write_key()
        # The line break comes first: a line that a kill cut off would else swallow this one.
        with self._path.open("ab") as file:
            file.write(b"\n" + orjson.dumps(stored.model_dump(mode="json")))

    def _write_key(self) -> None:
        """Say whose replies these are. Another process may be doing the same."""
        path = self.folder / "key.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(f".{path.name}.{uuid4().hex}")
            whole.write_bytes(orjson.dumps(self._key, option=orjson.OPT_INDENT_2) + b"\n")
            whole.replace(path)

    @property
    def _path(self) -> Path:
        return self.folder / "replies.jsonl"

    def _lines(self) -> list[bytes]:
        return self._path.read_bytes().splitlines() if self._path.is_file() else []


def join_costs(earlier: Costs, later: Costs) -> Costs:
    """Of sessions on the same replies the highest peak of memory, and of the rest what was measured first."""
    first = {name: value if value is not None else getattr(later, name) for name, value in iter(earlier)}
    peaks = [peak for peak in (earlier.peak_memory_gb, later.peak_memory_gb) if peak is not None]
    return Costs.model_validate(first | {"peak_memory_gb": max(peaks, default=None)})
