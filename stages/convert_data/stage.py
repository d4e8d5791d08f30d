"""The stage: every split of a folder, every row in exactly one of two files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from stages.convert_data.card import Card, SplitCard, write_card
from stages.convert_data.rows import convert_row
from stages.core import progress
from stages.core.artifact import build_artifact, fingerprint_json, is_current, read_manifest
from stages.core.cli import Options, Outcome
from stages.core.errors import StageError
from stages.core.fixes import fixes_until
from stages.core.platform import folder_size_gb, require_disk
from stages.core.prompts import prompt_parts
from stages.core.records import Recipe

SPLITS = ("train", "valid", "test")
NEEDED = ("train", "valid")
CORPUS = Path(__file__).resolve().parents[2] / "datasets" / "corpus"
CONVERTER_VERSION = 1  # raised by every change that changes a converted row


def convert_data(options: Options) -> Outcome:
    """Convert the folder `--data` (default: the shipped corpus) for one model and arm."""
    source = options.data or CORPUS
    files = _find_splits(source)
    target = options.output("convert_data")
    recipe = Recipe(
        stage="convert_data",
        settings={
            "version": CONVERTER_VERSION,
            "fixes": list(fixes_until(options.fixes, "convert_data")),
            "model": options.preset.model.model_dump(include={"dialect", "system", "tool_response"}),
        },
        inputs={
            "data": _fingerprint(files),
            "prompt": fingerprint_json(prompt_parts(options.preset.model, options.fixes)),
        },
    )
    if is_current(target, recipe, force=options.force):
        return Outcome(target, up_to_date=True, facts=_facts(target))
    require_disk(target, 4 * folder_size_gb(source) + 0.01, "the converted data")
    with build_artifact(target, recipe, given=options.given) as build:
        card = Card(
            source=source.name,
            arm=options.arm,
            splits={name: _convert_split(name, path, build.folder, options) for name, path in files.items()},
        )
        for name in NEEDED:
            if not card.splits[name].converted:
                reason = _commonest_reason(card.splits[name])
                raise StageError(f"no row of {files[name]} could be converted: {reason}")
        write_card(card, build.folder)
        build.facts |= card.summary()
    return Outcome(target, lines=card.lines(), facts=card.summary())


def _find_splits(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        raise StageError(
            f"no data folder {source}: give one with {', '.join(f'{s}.jsonl' for s in SPLITS)} as --data"
        )
    files = {name: source / f"{name}.jsonl" for name in SPLITS if (source / f"{name}.jsonl").is_file()}
    for name in NEEDED:
        if name not in files:
            raise StageError(f"{source} has no {name}.jsonl: training needs train.jsonl and valid.jsonl")
        if not files[name].stat().st_size:
            raise StageError(f"{files[name]} is empty: give it at least one row")
    return files


def _fingerprint(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _convert_split(name: str, path: Path, folder: Path, options: Options) -> SplitCard:
    """Convert one file; rejected rows of all splits go to one `rejected.jsonl`."""
    card = SplitCard()
    lines = path.read_bytes().split(b"\n")
    with (
        (folder / f"{name}.jsonl").open("wb") as kept,
        (folder / "rejected.jsonl").open("ab") as refused,
        progress.bar(name, len(lines), "rows") as bar,
    ):
        for number, line in enumerate(lines, 1):
            bar.advance()
            if not line.strip():
                continue
            try:
                converted = convert_row(orjson.loads(line), options.preset.model, options.fixes)
                text = _encode(converted.row)
            except ValueError as error:  # orjson.JSONDecodeError is one
                card.reject(number, str(error))
                refused.write(_rejected(name, number, str(error), line))
                continue
            card.accept(converted)
            kept.write(text)
    return card


def _rejected(split: str, number: int, reason: str, line: bytes) -> bytes:
    row = {"split": split, "line": number, "reason": reason, "row": line.decode("utf-8", "backslashreplace")}
    return json.dumps(row).encode() + b"\n"  # a reason may quote half of a surrogate pair


def _encode(row: dict[str, Any]) -> bytes:
    """The row as a JSON line. Raises ValueError when it would not be read back as it is."""
    try:
        line = orjson.dumps(row)
    except TypeError as error:  # half of a surrogate pair, a number beyond 64 bits
        raise ValueError(f"an argument that JSON cannot hold: {error}") from None
    if orjson.loads(line) != row:
        raise ValueError("an argument that JSON cannot hold: a number that is not finite")
    return line + b"\n"


def _commonest_reason(split: SplitCard) -> str:
    reasons: Counter[str] = Counter(reason for _, reason in split.rejected)
    return reasons.most_common(1)[0][0] if reasons else "it has none"


def _facts(target: Path) -> dict[str, Any]:
    manifest = read_manifest(target)
    return dict(manifest.facts) if manifest else {}
