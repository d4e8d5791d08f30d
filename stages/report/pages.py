"""The files of a report: written whole or not at all, and never over a file that is another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.files import write_whole
from stages.core.pages import plot_name, require_own_files, sign_text
from stages.core.records import Verdict, encode_record


def save_page(
    folder: Path, verdict: Verdict, page: Sequence[str], plot: str | None = None, *, force: bool
) -> Path:
    """Write a report's page, its verdict and its picture (SVG), if it has one; returns the page's path.

    Raises ForeignFiles when a file of the same name is not an earlier report and `force` is off.
    """
    if not force:
        require_own_files(folder, verdict.report, plot=plot is not None)
    target = folder / f"{verdict.report}.md"
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        target: _sign("\n\n".join(part for part in page if part) + "\n\n"),
        folder / f"{verdict.report}.json": encode_record(verdict),
    }
    if plot:
        files[folder / plot_name(verdict.report)] = _sign(plot.rstrip("\n") + "\n")
    write_whole(files)
    return target


def _sign(text: str) -> bytes:
    return sign_text(text).encode("utf-8")
