"""The files of a report: written whole or not at all, and never over a file that is another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from stages.core.errors import StageError
from stages.core.records import Verdict, write_record

MARK = "<!-- written by the report of fair-retest, which may write it anew -->"  # the last line of a page
OWN_KEYS = {"schema_version", "report", "supported_answer"}  # of a Verdict, whatever its version


def plot_name(report: str) -> str:
    """The name of a report's picture, which lies beside its page."""
    return f"{report}-loss.svg"


def save_page(
    folder: Path, verdict: Verdict, page: Sequence[str], plot: str | None = None, *, force: bool
) -> Path:
    """Write a report's page, its verdict and its picture (SVG), if it has one; returns the page's path.

    Raises StageError when a file of the same name is not an earlier report and `force` is off.
    """
    target, record = folder / f"{verdict.report}.md", folder / f"{verdict.report}.json"
    picture = folder / plot_name(verdict.report)
    owners = [(target, _is_page), (record, _is_verdict), *([(picture, _is_page)] if plot else [])]
    foreign = [path for path, ours in owners if not ours(path)]
    if foreign and not force:
        raise StageError(
            f"{foreign[0]} was not written by the report, or was changed since: move it away, name "
            "another folder with --out, or replace it with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if plot:
        _write(picture, plot.rstrip("\n"), "\n")
    _write(target, "\n\n".join(part for part in page if part), "\n\n")
    write_record(record, verdict)
    return target


def _write(path: Path, text: str, gap: str) -> None:
    """Write a text and the mark behind it, which is a comment in Markdown and in SVG."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(f"{text}{gap}{MARK}\n", "utf-8")
    partial.replace(path)


def _is_page(path: Path) -> bool:
    """Whether a path is free, or holds a page or a picture that ends as reports end."""
    return not path.exists() or path.read_bytes().endswith(f"\n{MARK}\n".encode())


def _is_verdict(path: Path) -> bool:
    """Whether a path is free, or holds the verdict of a report of its name."""
    if not path.exists():
        return True
    try:
        data = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return False
    return isinstance(data, dict) and data.keys() >= OWN_KEYS and data["report"] == path.stem
