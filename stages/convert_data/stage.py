"""The stage: every split of a folder, every row in exactly one of two files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from stages.convert_data.card import Card, SplitCard, write_card
from stages.convert_data.duplicates import Duplicates, find, pack
from stages.convert_data.inference import Census
from stages.convert_data.rendering import measure_tokens, render_splits
from stages.convert_data.rows import ConvertContext, ToolsUnclear, convert_row
from stages.convert_data.wishes import Wishes, settle_tools, start_context, write_tool_files
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
CONVERTER_VERSION = 2  # raised by every change that changes a converted row


def convert_data(options: Options, wishes: Wishes | None = None) -> Outcome:
    """Convert the folder `--data` (default: the shipped corpus) for one model and arm."""
    wishes = wishes or Wishes()
    source = options.data or CORPUS
    files = _find_splits(source)
    context = start_context(options.preset.model, options.fixes, wishes)
    target, recipe = options.output("convert_data"), _make_recipe(options, wishes, files)
    if is_current(target, recipe, force=options.force):
        return Outcome(target, up_to_date=True, facts=_facts(target))
    require_disk(target, 4 * folder_size_gb(source) + 0.01, "the converted data")
    with build_artifact(target, recipe) as build:
        card = _convert(files, build.folder, options, wishes, context)
        build.facts |= card.summary()
    return Outcome(target, lines=card.lines(), facts=card.summary())


def _make_recipe(options: Options, wishes: Wishes, files: dict[str, Path]) -> Recipe:
    inputs = {
        "data": _fingerprint(files),
        "prompt": fingerprint_json(prompt_parts(options.preset.model, options.fixes)),
    }
    if wishes.tools is not None:
        inputs["tools"] = hashlib.sha256(wishes.tools.read_bytes()).hexdigest()
    return Recipe(
        stage="convert_data",
        settings={
            "version": CONVERTER_VERSION,
            "fixes": list(fixes_until(options.fixes, "convert_data")),
            "model": options.preset.model.model_dump(include={"dialect", "system", "tool_response"}),
            "render": wishes.render,
            "dedup": wishes.dedup,
        },
        inputs=inputs,
    )


def _convert(
    files: dict[str, Path], folder: Path, options: Options, wishes: Wishes, context: ConvertContext
) -> Card:
    """Everything between the source and the finished folder."""
    census: Census | None = None
    try:
        splits = _convert_splits(files, folder, context)
    except ToolsUnclear:
        context, census = settle_tools(context, _read_raw(files))
        splits = _convert_splits(files, folder, context)
    for name in NEEDED:
        if not splits[name].card.converted:
            reason = splits[name].card.commonest_reason()
            raise StageError(f"no row of {files[name]} could be converted: {reason}")
    found = find({name: pack(split.digests) for name, split in splits.items()})
    written = {name: [folder / f"{name}.jsonl"] for name in files}
    dropped = _drop_rows(written, found) if wishes.dedup else {}
    if wishes.render:
        render_splits(written, wishes.render, folder)
    card = Card(
        source=options.data.name if options.data else CORPUS.name,
        arm=options.arm,
        splits={name: split.card for name, split in splits.items()},
        target=options.preset.title,
        tool_response=options.preset.model.tool_response,
        tools=write_tool_files(context, census, folder),
        duplicates=found,
        dropped=dropped,
        tokens=measure_tokens(written, options.preset),
    )
    write_card(card, folder)
    return card


def _drop_rows(written: dict[str, list[Path]], found: Duplicates) -> dict[str, int]:
    """Leave out of the written files what is found twice. Raises StageError when a split is left empty."""
    for name, (path,) in written.items():
        gone = set(found.drop[name].tolist())
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for position, line in enumerate(lines) if position not in gone]
        if not kept:
            raise StageError(f"--dedup leaves no row of {name}: all of them are in another split too")
        path.write_bytes(b"".join(kept))
    return {name: len(positions) for name, positions in found.drop.items()}


def _read_raw(files: dict[str, Path]) -> Iterator[Any]:
    """All rows that are JSON."""
    for path in files.values():
        with path.open("rb") as file:
            for line in file:
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue


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


@dataclass
class _Split:
    card: SplitCard = field(default_factory=SplitCard)
    digests: list[tuple[bytes, bytes]] = field(default_factory=list)


def _convert_splits(files: dict[str, Path], folder: Path, context: ConvertContext) -> dict[str, _Split]:
    (folder / "rejected.jsonl").unlink(missing_ok=True)
    return {name: _convert_split(name, path, folder, context) for name, path in files.items()}


def _convert_split(name: str, path: Path, folder: Path, context: ConvertContext) -> _Split:
    """Convert one file; rejected rows of all splits go to one `rejected.jsonl`."""
    split = _Split()
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
                converted = convert_row(orjson.loads(line), context)
            except ValueError as error:  # orjson.JSONDecodeError is one
                split.card.reject(number, str(error))
                refused.write(_rejected(name, number, str(error), line))
                continue
            split.card.accept(converted)
            split.digests.append(converted.digests)
            kept.write(converted.line)
    return split


def _rejected(split: str, number: int, reason: str, line: bytes) -> bytes:
    row = {"split": split, "line": number, "reason": reason, "row": line.decode("utf-8", "backslashreplace")}
    return json.dumps(row).encode() + b"\n"  # a reason may quote half of a surrogate pair


def _facts(target: Path) -> dict[str, Any]:
    manifest = read_manifest(target)
    return dict(manifest.facts) if manifest else {}
