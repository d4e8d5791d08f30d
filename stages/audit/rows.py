"""The converted rows as training will see them, and how findings count and cite them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from jinja2 import TemplateError

from stages.core import progress
from stages.core.chat import Tool
from stages.core.chatml import Turn, split_chatml
from stages.core.dialects import Reply, parse_any
from stages.core.errors import StageError
from stages.core.render import Encoded, Turns, assistant_spans, encode_row, render_row
from stages.core.splits import SPLITS, read_lines
from stages.core.tokenizer import Tokenizer
from stages.core.tools import EXECUTE_CODE, function_tools

CALLABLE: tuple[Tool, ...] = (EXECUTE_CODE, *function_tools())
EXAMPLES = 3  # examples in one finding
EXCERPT = 90  # characters of an example


@dataclass(frozen=True)
class Row:
    """One row of one split."""

    split: str
    line: int
    """From 1, through all files of the split."""
    data: Mapping[str, Any]
    turns: tuple[Turn, ...]
    """The turns as they are stored, before any template."""
    text: str
    """What is trained on; empty where the template refuses the row."""
    replies: tuple[Reply, ...]
    """The assistant's turns of `text`, read in whatever dialect they are."""
    encoded: Encoded
    refused: str = ""
    """Why the template refuses the row."""

    @property
    def place(self) -> str:
        """`train.jsonl:12`."""
        return f"{self.split}.jsonl:{self.line}"

    @property
    def system(self) -> str | None:
        """The text of the system turn, None without one."""
        return next((turn.text for turn in self.turns if turn.role == "system"), None)

    @property
    def question(self) -> str:
        """The first user turn, empty without one."""
        return next((turn.text for turn in self.turns if turn.role == "user"), "")

    @cached_property
    def dialects(self) -> tuple[str, ...]:
        """The dialect of each assistant's turn that calls a tool."""
        return tuple(str(reply.dialect) for reply in self.replies if reply.calls)

    @property
    def last_trained(self) -> int | None:
        """The id of the last supervised token, None when nothing is supervised."""
        pairs = zip(reversed(self.encoded.tokens), reversed(self.encoded.supervised), strict=True)
        return next((token for token, supervised in pairs if supervised), None)


def read_rows(folder: Path, tokenizer: Tokenizer, turns: Turns) -> tuple[Row, ...]:
    """The rows of all splits of a converted folder. Raises StageError for a line that is not a row."""
    lines = {split: list(read_lines(folder, split)) for split in SPLITS}
    rows = []
    with progress.bar("reading", sum(map(len, lines.values())), "rows") as bar:
        for split, number, line in ((s, n, line) for s in lines for n, line in enumerate(lines[s], 1)):
            try:
                rows.append(read_row(split, number, orjson.loads(line.data), tokenizer, turns))
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise StageError(
                    f"{line.place} is not a converted row: run nox -s convert_data on this data"
                ) from None
            bar.advance()
    if not any(row.split == "train" for row in rows):
        raise StageError(f"{folder} has no row in train.jsonl: run nox -s convert_data on other data")
    return tuple(rows)


@dataclass(frozen=True)
class Rejected:
    """What convert_data could not convert."""

    path: Path
    """The file that holds it."""
    reasons: Counter[str]
    """The rows of all splits by the reason why not."""
    train: int
    """The rows of the training split."""


def read_rejected(folder: Path) -> Rejected:
    """The rejected rows of a converted folder; none where it has no such file."""
    path = folder / "rejected.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    try:
        rows = [(row["split"], row["reason"]) for row in map(orjson.loads, lines)]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise StageError(f"{path} is not what convert_data writes: run it again on this data") from None
    return Rejected(path, Counter(reason for _, reason in rows), sum(split == "train" for split, _ in rows))


def read_row(split: str, line: int, data: Mapping[str, Any], tokenizer: Tokenizer, turns: Turns) -> Row:
    """One row, rendered and encoded as training does it. KeyError or TypeError when it is none."""
    stored = stored_turns(data)
    try:
        text, encoded = render_row(data, tokenizer), encode_row(data, tokenizer, turns)
    except (TemplateError, TypeError, ValueError) as error:
        return Row(split, line, data, stored, "", (), Encoded([], [], []), str(error) or type(error).__name__)
    spans = [text[start:end].removesuffix(turns.closing) for start, end in assistant_spans(text, turns)]
    # Rows in another chat format than the target's have no spans, and yet their calls are to be seen.
    spoken = spans or [turn.text for turn in stored if turn.role == "assistant"]
    tools = [*CALLABLE, *(data.get("tools") or ())]
    replies = tuple(parse_any(reply, tools) for reply in spoken)
    return Row(split, line, data, stored, text, replies, encoded)


def stored_turns(data: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a `{"text"}` or `{"messages"}` row; text that is not ChatML has none.

    A text whose last turn is not ended counts as if it were: `unended_turns` reports that.
    """
    if "text" in data:
        for end in ("", "<|im_end|>"):
            with suppress(ValueError):
                return tuple(split_chatml(data["text"] + end))
        return ()
    contents = [(m["role"], m.get("content")) for m in data["messages"]]
    return tuple(Turn(role, content if isinstance(content, str) else "") for role, content in contents)


@dataclass(frozen=True)
class Tally:
    """Rows concerned out of all: numbers of the training split, unless only others are concerned."""

    count: int
    total: int
    words: str


def tally(hits: Sequence[Row], rows: Sequence[Row]) -> Tally:
    """Count rows per split: `398 of 685 rows in train (valid 46 of 85, test 50 of 87)`."""
    counts = {
        split: (sum(row.split == split for row in hits), total)
        for split in SPLITS
        if (total := sum(row.split == split for row in rows))
    }
    first = next((split for split, (count, _) in counts.items() if count), next(iter(counts)))
    count, total = counts.pop(first)
    others = ", ".join(f"{split} {hit} of {of}" for split, (hit, of) in counts.items() if hit)
    return Tally(count, total, f"{count} of {total} rows in {first}" + (f" ({others})" if others else ""))


def cite(rows: Sequence[Row], mark: str = "") -> tuple[str, ...]:
    """The first few rows by file and line, with the text around `mark` or the row's question."""
    return tuple(f"{row.place}: {excerpt(row, mark)}" for row in rows[:EXAMPLES])


def excerpt(row: Row, mark: str = "") -> str:
    """A piece of a row on one line."""
    at = row.text.find(mark) if mark else -1
    piece = row.text[at : at + EXCERPT] if at >= 0 else (row.question or row.text)[:EXCERPT]
    return piece.replace("\n", "⏎")


def list_lines(rows: Sequence[Row], limit: int = 12) -> str:
    """`train.jsonl:3, 17, 20, … (62 in all)`, for rows of one split."""
    lines = ", ".join(str(row.line) for row in rows[:limit])
    more = f", … ({len(rows)} in all)" if len(rows) > limit else ""
    return f"{rows[0].split}.jsonl:{lines}{more}"
