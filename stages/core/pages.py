"""The files of a report: their names, and whether they are ours to write anew.

A page and a picture end with a mark that has the digest of what is above it, and a verdict has its own:
what somebody changed is theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import orjson

from stages.core.artifact import fingerprint_json
from stages.core.errors import StageError
from stages.core.records import Verdict
from stages.core.words import name_some

MOST_NAMED = 3  # files in one message
_BY = "written by the report of fair-retest, which may write it anew"
_MARK = re.compile(rf"<!-- {_BY}: ([0-9a-f]{{16}}) -->\n".encode())


def plot_name(report: str) -> str:
    """The name of a report's picture, which lies beside its page."""
    return f"{report}-loss.svg"


def sign_text(text: str) -> str:
    """A text that ends with a line break, and the mark behind it: a comment in Markdown and in SVG."""
    digest = _digest(text.encode("utf-8"))
    return f"{text}<!-- {_BY}: {digest} -->\n"


def sign_verdict(verdict: Verdict) -> Verdict:
    """The verdict with the digest of its other fields."""
    digest = fingerprint_json(verdict.model_dump(mode="json", exclude={"digest"}))
    return verdict.model_copy(update={"digest": digest})


class ForeignFiles(StageError):
    """Files of a report's name that are no earlier report of that name, or were changed since."""

    def __init__(self, paths: Sequence[Path]) -> None:
        one = len(paths) == 1
        were, them = ("was", "it") if one else ("were", "them")
        super().__init__(
            f"{name_some([*map(str, paths)], MOST_NAMED)} {were} not written by the report, or {were} "
            f"changed since: move {them} away, name another folder with --out, or replace {them} with --force"
        )
        self.paths = tuple(paths)


def require_own_files(folder: Path, report: str, *, plot: bool) -> None:
    """Raise ForeignFiles when a file of a report's name is no earlier report of that name, unchanged.

    `plot` says whether the report has a picture too.
    """
    owners = [(folder / f"{report}.md", _is_page), (folder / f"{report}.json", _is_verdict)]
    owners += [(folder / plot_name(report), _is_page)] if plot else []
    foreign = [path for path, ours in owners if path.exists() and not ours(path)]
    if foreign:
        raise ForeignFiles(foreign)


def _is_page(path: Path) -> bool:
    """Whether a page or a picture ends with the mark of what it holds."""
    text = path.read_bytes()
    mark = next(iter(_MARK.finditer(text, max(text.rfind(b"<!--"), 0))), None)
    return mark is not None and mark.end() == len(text) and mark[1].decode() == _digest(text[: mark.start()])


def _is_verdict(path: Path) -> bool:
    """Whether a file holds the verdict of a report of its name."""
    try:
        data = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return False
    if not isinstance(data, dict) or data.get("report") != path.stem:
        return False
    return bool(data.pop("digest", None) == fingerprint_json(data))


def _digest(text: bytes) -> str:
    return sha256(text).hexdigest()[:16]
