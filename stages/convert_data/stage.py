"""The stage: every split of the data, every row in exactly one of the files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stages.convert_data.assemble import Part, collect, write_shards
from stages.convert_data.card import Card, SplitCard, write_card
from stages.convert_data.local import LostWorker, available_cores, convert_locally
from stages.convert_data.pieces import Piece, cut_split, piece_bytes
from stages.convert_data.sources import Source, SourceFile, find_source, require_splits
from stages.convert_data.unpack import needs_unpacking, unpack
from stages.convert_data.work import PIECES, REJECTED, Work, read_summary
from stages.core import progress
from stages.core.artifact import Build, build_artifact, fingerprint_json, is_current
from stages.core.cli import Options, Outcome, finished
from stages.core.errors import StageError
from stages.core.fixes import fixes_until
from stages.core.platform import require_disk
from stages.core.prompts import prompt_parts
from stages.core.records import Recipe
from stages.core.splits import SPLITS

CORPUS = Path(__file__).resolve().parents[2] / "datasets" / "corpus"
CONVERTER_VERSION = 2  # raised by every change that changes a converted row
UNPACKED = "unpacked"  # folder of plain copies in the unfinished output
WORTH_A_POOL = len(SPLITS)  # pieces: fewer are done before a process has started
MB = 1_000_000

Engine = Callable[[Sequence[Piece], Work, int], Iterator[int]]


@dataclass(frozen=True)
class Request:
    """How the data are read and the work is done; only the first two decide the output."""

    valid_share: float | None = None
    """Share of the train rows that become `valid`; 0 does without that split."""
    shard_mb: int = 512
    """A split with more than so many megabytes (1e6 bytes) is written in shards of that size."""
    workers: int | None = None
    """Processes; None: one for every core."""
    engine: Literal["local", "ray"] = "local"


def convert_data(options: Options, request: Request | None = None) -> Outcome:
    """Convert what `--data` names (default: the shipped corpus) for one model and arm."""
    request = request or Request()
    place = options.data or CORPUS
    source = find_source(place)
    require_splits(source, place, request.valid_share)
    target, recipe = options.output("convert_data"), make_recipe(options, source, request)
    if is_current(target, recipe, force=options.force):
        return finished(target)
    require_disk(target, 4 * source.size_gb() + 0.01, "the converted data")
    with build_artifact(target, recipe, given=options.given, resume=True, force=options.force) as build:
        try:
            card = _convert(source, build, options, request)
        except StageError as error:
            if not isinstance(error, LostWorker):
                shutil.rmtree(build.folder)  # other data are needed, and an unfinished run would forbid them
            raise
    return Outcome(target, lines=card.lines(), facts=card.summary())


def make_recipe(options: Options, source: Source, request: Request) -> Recipe:
    """All that decides the output."""
    settings = {
        "version": CONVERTER_VERSION,
        "fixes": list(fixes_until(options.fixes, "convert_data")),
        "model": options.preset.model.model_dump(include={"dialect", "system", "tool_response"}),
        "shard_mb": request.shard_mb,
    }
    if request.valid_share:
        settings |= {"valid_share": request.valid_share, "seed": options.seed}
    return Recipe(
        stage="convert_data",
        settings=settings,
        inputs={
            "data": source.fingerprint(),
            "prompt": fingerprint_json(prompt_parts(options.preset.model, options.fixes)),
        },
    )


def _convert(source: Source, build: Build, options: Options, request: Request) -> Card:
    """Everything between the source and the finished folder."""
    work = Work(build.folder, options.preset.model, options.fixes, request.valid_share or None, options.seed)
    files = {split: _unpack_all(split, each, build.folder) for split, each in source.splits.items()}
    size = piece_bytes(source.size_gb())
    pieces = [piece for split, each in files.items() for piece in cut_split(split, each, size)]
    _run(pieces, work, request)
    return _assemble(pieces, work, source, options.arm, request, build)


def _unpack_all(split: str, files: Sequence[SourceFile], folder: Path) -> list[SourceFile]:
    """The files of a split, those that cannot be read in parts as plain copies."""
    plain = []
    for index, file in enumerate(files):
        if needs_unpacking(file):
            path = folder / UNPACKED / f"{split}-{index:06d}.jsonl"
            unpack(file, path)
            file = replace(file, path=path)
        plain.append(file)
    return plain


def _run(pieces: Sequence[Piece], work: Work, request: Request) -> None:
    """Convert all pieces with the chosen engine, showing how it goes on."""
    (work.folder / PIECES).mkdir(exist_ok=True)
    started, done = time.monotonic(), 0
    workers = request.workers or (available_cores() if len(pieces) > WORTH_A_POOL else 1)
    with progress.bar("converting", sum(piece.rows for piece in pieces), "rows") as bar:
        for rows in _engine(request)(pieces, work, workers):
            done += rows
            bar.advance(rows, f"{done / max(time.monotonic() - started, 1e-9):,.0f} rows/s")


def _engine(request: Request) -> Engine:
    if request.engine == "local":
        return convert_locally
    from stages.convert_data.ray_data import convert_on_ray

    return convert_on_ray


def _assemble(
    pieces: Sequence[Piece], work: Work, source: Source, arm: str, request: Request, build: Build
) -> Card:
    """Put the results of the pieces together and clear them away."""
    parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
    counts = {split: SplitCard() for split in source.splits}
    for piece in pieces:
        summary = read_summary(work, piece)
        for split, counted in summary.cards.items():
            counts.setdefault(split, SplitCard()).merge(counted)
        for split, size in summary.sizes.items():
            parts[split].append(Part(work.folder / PIECES / piece.name, split, size))
    card = Card(source.name, arm, {split: counts[split] for split in SPLITS if split in counts})
    _require_rows(card, source, request)
    for split in card.splits:
        write_shards(build.folder, split, parts[split], request.shard_mb * MB)
    collect([work.folder / PIECES / piece.name for piece in pieces], REJECTED, build.folder / REJECTED)
    for folder in (PIECES, UNPACKED):
        shutil.rmtree(build.folder / folder, ignore_errors=True)
    write_card(card, build.folder)
    build.facts |= card.summary()
    return card


def _require_rows(card: Card, source: Source, request: Request) -> None:
    """Raise StageError when a split that training needs came out empty."""
    for split in ("train", "valid"):
        if split in source.splits and not card.splits[split].converted:
            names = ", ".join(str(file.path) for file in source.splits[split][:3])
            raise StageError(f"no row of {names} could be converted: {_commonest_reason(card.splits[split])}")
    if request.valid_share and ("valid" not in card.splits or not card.splits["train"].converted):
        raise StageError(
            f"--valid-share {request.valid_share} leaves a split without a row: take another share or --seed"
        )


def _commonest_reason(split: SplitCard) -> str:
    reasons: Counter[str] = Counter(reason for _, reason in split.rejected)
    return reasons.most_common(1)[0][0] if reasons else "it has none"
