"""The files of a report: their names, and whether they are ours to write anew."""

from __future__ import annotations

from pathlib import Path

import orjson

from stages.core.errors import StageError

MARK = "<!-- written by the report of fair-retest, which may write it anew -->"  # the last line of a page
OWN_KEYS = {"schema_version", "report", "supported_answer"}  # of a Verdict, whatever its version


def plot_name(report: str) -> str:
    """The name of a report's picture, which lies beside its page."""
    return f"{report}-loss.svg"


def require_own_files(folder: Path, report: str, *, plot: bool) -> None:
    """Raise StageError when a file of a report's name is no earlier report of that name.

    `plot` says whether the report has a picture too.
    """
    owners = [(folder / f"{report}.md", _is_page), (folder / f"{report}.json", _is_verdict)]
    owners += [(folder / plot_name(report), _is_page)] if plot else []
    foreign = [path for path, ours in owners if not ours(path)]
    if foreign:
        raise StageError(
            f"{foreign[0]} was not written by the report, or was changed since: move it away, name "
            "another folder with --out, or replace it with --force"
        )


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
