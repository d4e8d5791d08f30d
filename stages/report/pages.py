"""The files of a report: written whole or not at all, and never over a file that is another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.pages import plot_name, require_own_files, sign_text
from stages.core.records import Verdict, write_record


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
    if plot:
        _write(folder / plot_name(verdict.report), plot.rstrip("\n") + "\n")
    _write(target, "\n\n".join(part for part in page if part) + "\n\n")
    write_record(folder / f"{verdict.report}.json", verdict)
    return target


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(sign_text(text), "utf-8")
    partial.replace(path)
