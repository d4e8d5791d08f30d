"""Replies that were paid for: each kept once under its key, on disk as soon as it is whole.

A key is the engine (a model's content, or a server's model), the sampling, the prompt and the number of
the draw. A folder holds the replies of one engine and sampling: `key.json` says which, `replies.jsonl` has
a line a reply. A line that a kill cut off counts as not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from stages.core.artifact import fingerprint_json
from stages.core.errors import StageError
from stages.core.records import RawReply, Record, read_record, write_record
from stages.eval.engines import Costs, Question


class StoredReply(Record):
    """One line of the store."""

    prompt: str
    sample: int
    reply: RawReply


def kept_models(root: Path, url: str) -> tuple[str, ...]:
    """The names of the models of a server of which replies are kept."""
    keys = (orjson.loads(path.read_bytes()) for path in sorted(root.glob("*/key.json")))
    return tuple({str(key["served_model"]): None for key in keys if key.get("url") == url})


class ReplyStore:
    """The kept replies of one engine and sampling."""

    def __init__(self, root: Path, key: Mapping[str, Any]) -> None:
        self.folder = root / fingerprint_json(key)[:16]
        self._key = dict(key)
        self._replies: dict[tuple[str, int], RawReply] = {}
        for line in self._lines():
            try:
                stored = StoredReply.model_validate_json(line)
            except ValidationError:
                continue
            self._replies[stored.prompt, stored.sample] = stored.reply

    def find(self, question: Question, sample: int) -> RawReply | None:
        """The kept reply to a prompt, under the id of the query that asks now."""
        reply = self._replies.get((question.key, sample))
        return None if reply is None else reply.model_copy(update={"id": question.id})

    def forget(self, question: Question, sample: int) -> None:
        """Have a prompt asked again; its next reply replaces the kept one."""
        self._replies.pop((question.key, sample), None)

    def keep(self, question: Question, sample: int, reply: RawReply) -> None:
        """Write a reply down."""
        self._replies[question.key, sample] = reply
        stored = StoredReply(prompt=question.key, sample=sample, reply=reply)
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            (self.folder / "key.json").write_bytes(
                orjson.dumps(self._key, option=orjson.OPT_INDENT_2) + b"\n"
            )
        # The line break comes first: a line that a kill cut off would else swallow this one.
        with self._path.open("ab") as file:
            file.write(b"\n" + orjson.dumps(stored.model_dump(mode="json")))

    def read_costs(self) -> Costs:
        """The costs of the last session that asked something."""
        try:
            return read_record(self.folder / "costs.json", Costs)
        except StageError:
            return Costs()

    def write_costs(self, costs: Costs) -> None:
        """Write the costs of this session down."""
        if self.folder.is_dir():
            write_record(self.folder / "costs.json", costs)

    @property
    def _path(self) -> Path:
        return self.folder / "replies.jsonl"

    def _lines(self) -> list[bytes]:
        return self._path.read_bytes().splitlines() if self._path.is_file() else []
