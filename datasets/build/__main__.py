"""Builds the corpus: real tool runs over the sample projects, written in the legacy chat style.

**Reads** `phrases/*.toml`, `../projects`, `../suites/*.json` (to stay clear of their queries).
**Writes** `../corpus/{train,valid,test}.jsonl` and `../sample/recording.json`, what the tools say about
the project that a model's code runs over; the same bytes every time. `--check` writes nothing and exits 1
at the first row that differs from the committed files. Exit 2: a tool is missing.

Run it as `python datasets/build [--check]`. It is a script folder and not a package: `datasets` is
the name of a library that other stages import.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DATASETS = Path(__file__).resolve().parents[1]
# Last, so that nothing in the repository hides an installed library.
sys.path.append(str(DATASETS.parent))

from plan import build_corpus  # noqa: E402
from recording import build_recording  # noqa: E402
from stages.core.errors import StageError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Build and write, or build and compare. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="datasets/build", description="Build the shipped corpus and recording."
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed files, write nothing"
    )
    options = parser.parse_args(argv)
    try:
        outputs = {Path("sample/recording.json"): build_recording(DATASETS)}
        outputs |= {Path(f"corpus/{split}.jsonl"): rows for split, rows in build_corpus(DATASETS).items()}
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for place, rows in outputs.items():
        path = DATASETS / place
        if not options.check:
            write_rows(path, rows)
            print(f"{path.relative_to(DATASETS.parent)}: {len(rows)} lines")
        elif difference := first_difference(path, rows):
            print(f"{path.relative_to(DATASETS.parent)}: {difference}", file=sys.stderr)
            return 1
    if options.check:
        print("the committed files are what the builder makes")
    return 0


def write_rows(path: Path, rows: list[str]) -> None:
    """Write one JSON row a line; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(row + "\n" for row in rows), encoding="utf-8", newline="\n")
    partial.replace(path)


def first_difference(path: Path, rows: list[str]) -> str | None:
    """Where the file and the rows part, in words; None when they are equal byte for byte."""
    if not path.is_file():
        return "is missing"
    committed = path.read_bytes().decode("utf-8").split("\n")
    built = [*rows, ""]
    for number, (old, new) in enumerate(zip(committed, built, strict=False), start=1):
        if old != new:
            return f"row {number} differs\n  committed: {old}\n  built:     {new}"
    if len(committed) != len(built):
        return f"has {len(committed) - 1} line ends, the builder makes {len(rows)}"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
