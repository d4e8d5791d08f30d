"""The stage: every split of the data, every row in exactly one of the files."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stages.convert_data.assemble import (
    Part,
    Removal,
    collect,
    join_digests,
    join_numbers,
    removed_rows,
    write_shards,
)
from stages.convert_data.card import Card, write_card
from stages.convert_data.counts import SplitCard
from stages.convert_data.duplicates import Duplicates, find
from stages.convert_data.inference import Census, load_census, save_census
from stages.convert_data.local import LostWorker, available_cores, run_locally
from stages.convert_data.offers import ConvertContext, ToolsUnclear
from stages.convert_data.pieces import Piece, cut_split, piece_bytes
from stages.convert_data.rendering import Target, find_target, measure_tokens
from stages.convert_data.request import Request
from stages.convert_data.sources import (
    Source,
    SourceFile,
    describe_left_out,
    find_source,
    require_splits,
)
from stages.convert_data.toolset import apply_census, start_context, write_tool_files
from stages.convert_data.unpack import needs_unpacking, require_lines, unpack
from stages.convert_data.work import (
    CENSUS,
    CONVERT,
    COUNT,
    PIECES,
    REJECTED,
    Job,
    Task,
    Work,
    read_census,
    read_summary,
    require_one_kind,
)
from stages.core import progress
from stages.core.artifact import (
    Ending,
    build_artifact,
    fingerprint_json,
    is_current,
    refuse_busy,
    unfinished_folder,
)
from stages.core.cli import Options, Outcome, finished
from stages.core.errors import StageError
from stages.core.fixes import fixes_until
from stages.core.platform import GB, require_disk
from stages.core.prompts import prompt_parts
from stages.core.records import Recipe
from stages.core.splits import SPLITS
from stages.core.tokenizer import template_source

CORPUS = Path(__file__).resolve().parents[2] / "datasets" / "corpus"
CONVERTER_VERSION = 9  # raised by every change that changes a converted row
UNPACKED = "unpacked"  # folder of plain copies in the unfinished output
SETTLED = "settled"  # folder of the results where the tools had to be looked at first
DUPLICATES = "duplicates.jsonl"
WORTH_A_POOL = len(SPLITS)  # pieces: fewer are done before a process has started
MOST_PER_CORE = 4  # processes
MB = 1_000_000

Engine = Callable[[Task, Sequence[Piece], Work, int], Iterator[int]]


@dataclass(frozen=True)
class _Plan:
    """What is converted into what, and all that decides the output."""

    source: Source
    context: ConvertContext
    target: Target | None
    out: Path
    recipe: Recipe


def convert_data(options: Options, request: Request | None = None) -> Outcome:
    """Convert what `--data` names (default: the shipped corpus) for one model and arm."""
    request = request or Request()
    plan = _plan(options, request)
    out, source = plan.out, plan.source
    if left_out := describe_left_out(source):
        progress.say(f"  not read: {left_out}")
    if is_current(out, plan.recipe, force=options.force):
        return finished(out)
    if request.workers and (workers := _count_workers(request)) < request.workers:
        progress.say(f"  --workers {request.workers}: {workers} are used, more gain nothing on these cores")
    _require_room(out, source.size_gb(), request)
    given = options.given.model_copy(update={"flags": request.flags})
    with build_artifact(out, plan.recipe, given=given, resume=True, force=options.force) as build:
        try:
            share = request.valid_share or None
            work = Work(build.folder, plan.context, share, options.seed, plan.target)
            ending = build.ending or _convert(source, work, options, request)
        except StageError as error:
            if not isinstance(error, LostWorker | _NoRoomError):
                build.discard()  # other data are needed, and an unfinished run would forbid them
            raise
        build.keep_ending(ending)
        _remove_working_files(build.folder)
        _rejected_beside(out).unlink(missing_ok=True)  # of an earlier run that came to nothing
        build.facts |= ending.facts
        build.seed = options.seed if request.valid_share else None
    return Outcome(out, lines=ending.lines, facts=ending.facts)


def find_output(options: Options, request: Request) -> Outcome | None:
    """The outcome where the output is up to date, else None.

    Raises StageError for what would stop the conversion: an output of another recipe, an unfinished one
    too, or a process at it.
    """
    plan = _plan(options, request)
    if is_current(plan.out, plan.recipe, force=options.force):
        return finished(plan.out)
    refuse_busy(plan.out, plan.recipe, force=options.force)
    return None


def _plan(options: Options, request: Request) -> _Plan:
    place = options.data or CORPUS
    source = find_source(place)
    require_splits(source, place, request.valid_share)
    context = start_context(options.preset.model, options.fixes, request.tools)
    target = find_target(request.render) if request.render is not None else None
    recipe = make_recipe(options, source, request, target)
    return _Plan(source, context, target, options.output("convert_data"), recipe)


class _NoRoomError(StageError):
    """The disk is too small; what is done stays."""


def _require_room(out: Path, size_gb: float, request: Request) -> None:
    """Raise StageError where the disk cannot hold what becomes of so much text, less what is there."""
    begun = [path for path in unfinished_folder(out).rglob("*") if path.is_file()]
    there = sum(path.stat().st_size for path in begun if path.parent.name != UNPACKED) / GB
    try:
        require_disk(out, (8 if request.render else 4) * size_gb + 0.01 - there, "the converted data")
    except StageError as error:
        raise _NoRoomError(str(error)) from None


def make_recipe(options: Options, source: Source, request: Request, target: Target | None) -> Recipe:
    """All that decides the output."""
    model = options.preset.model
    settings = {
        "version": CONVERTER_VERSION,
        "fixes": list(fixes_until(options.fixes, "convert_data")),
        "model": model.model_dump(include={"dialect", "system", "tool_response", "source"}),
        "max_seq_length": options.preset.train.max_seq_length,
        "shard_mb": request.shard_mb,
        "dedup": request.dedup,
        "render": None if target is None else target.model,
    }
    if request.valid_share:
        settings |= {"valid_share": request.valid_share, "seed": options.seed}
    inputs = {
        "data": source.fingerprint(),
        "prompt": fingerprint_json(prompt_parts(model, options.fixes)),
        "template": fingerprint_json(template_source(model)),
    }
    if request.tools is not None:
        inputs["tools"] = hashlib.sha256(request.tools.read_bytes()).hexdigest()
    if target is not None:
        inputs["model to render"] = target.fingerprint
    return Recipe(stage="convert_data", settings=settings, inputs=inputs)


def _convert(source: Source, work: Work, options: Options, request: Request) -> Ending:
    """Everything between the source and the files of the finished folder."""
    files = {split: _unpack_all(split, each, work.folder) for split, each in source.splits.items()}
    _require_room(options.output("convert_data"), replace(source, splits=files).size_gb(), request)
    size = piece_bytes(source.size_gb())
    pieces = [piece for split, each in files.items() for piece in cut_split(split, each, size)]
    work, census = _convert_pieces(pieces, work, request)
    results = _gather(pieces, work, source)
    _require_rows(results, request, _rejected_beside(options.output("convert_data")))
    written, found, dropped = _assemble(results, work, request)
    card = Card(
        source=source.name,
        left_out=describe_left_out(source),
        arm=options.arm,
        splits=results.cards,
        target=options.preset.title,
        tool_response=options.preset.model.tool_response,
        code_mode=work.context.default.code_mode,
        tools=write_tool_files(work.context, census, _count_owners(results.cards), work.folder),
        duplicates=found,
        dropped=dropped,
        valid_share=request.valid_share or 0.0,
        tokens=measure_tokens(written, options.preset),
    )
    write_card(card, work.folder)
    return Ending(lines=card.lines(), facts=card.summary())


def _count_owners(cards: Mapping[str, SplitCard]) -> Counter[str]:
    """Rows of all splits by whose tools they have."""
    return sum((Counter(card.rows_by_owner) for card in cards.values()), Counter[str]())


def _remove_working_files(folder: Path) -> None:
    for name in (PIECES, SETTLED, CENSUS, UNPACKED):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / f"{CENSUS}.json").unlink(missing_ok=True)


def _unpack_all(split: str, files: Sequence[SourceFile], folder: Path) -> tuple[SourceFile, ...]:
    """The files of a split, those that cannot be read in parts as plain copies."""
    plain = []
    for index, file in enumerate(files):
        if needs_unpacking(file):
            path = folder / UNPACKED / f"{split}-{index:06d}.jsonl"
            unpack(file, path)
            file = replace(file, path=path)
        require_lines(file)
        plain.append(file)
    return tuple(plain)


def _convert_pieces(pieces: Sequence[Piece], work: Work, request: Request) -> tuple[Work, Census | None]:
    """Convert all pieces; where a row contradicts Code Mode, anew after a look at the tools of all rows.

    Returns what was done in the end, and what the look has found.
    """
    known = work.folder / f"{CENSUS}.json"  # there when an interrupted run has looked
    if (census := load_census(known)) is None:
        try:
            _run(CONVERT, pieces, work, request)
            cards = [card for piece in pieces for card in read_summary(work, piece).cards.values()]
            require_one_kind(cards, work)
        except ToolsUnclear as contradiction:
            progress.say(f"  {contradiction}: all rows are looked at for tools")
        else:
            return work, None
        _run(COUNT, pieces, work, request)
        census = read_census(pieces, work)
        save_census(census, known)
    shutil.rmtree(work.folder / PIECES, ignore_errors=True)
    work = replace(work, context=apply_census(work.context, census), results=SETTLED)
    _run(CONVERT, pieces, work, request)
    return work, census


def _run(job: Job, pieces: Sequence[Piece], work: Work, request: Request) -> None:
    """Do a job with the pieces that are left, with the chosen engine, showing how it goes on."""
    (work.folder / work.results).mkdir(exist_ok=True)
    left = [piece for piece in pieces if not job.is_done(piece, work)]
    rows_left, all_rows = (sum(piece.rows for piece in each) for each in (left, pieces))
    started, done = time.monotonic(), 0
    workers = _count_workers(request) or (available_cores() if len(left) > WORTH_A_POOL else 1)
    with progress.bar(job.label, all_rows, "rows", done=all_rows - rows_left) as bar:
        for rows in _engine(request)(job.task, left, work, workers) if left else ():
            done += rows
            bar.advance(rows, f"{done / max(time.monotonic() - started, 1e-9):,.0f} rows/s")


def _count_workers(request: Request) -> int:
    """The processes that were asked for, no more than this machine's cores can use; 0 where none were."""
    most = MOST_PER_CORE * available_cores()
    return min(request.workers or 0, most) if request.engine == "local" else request.workers or 0


def _engine(request: Request) -> Engine:
    if request.engine == "local":
        return run_locally
    from stages.convert_data.ray_data import run_on_ray

    return run_on_ray


@dataclass(frozen=True)
class _Results:
    """What all pieces hold, by split."""

    source: Source
    folders: list[Path]
    parts: dict[str, list[Part]]
    cards: dict[str, SplitCard]


def _gather(pieces: Sequence[Piece], work: Work, source: Source) -> _Results:
    parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
    counts = {split: SplitCard() for split in source.splits}
    for piece in pieces:
        summary = read_summary(work, piece)
        for split, counted in summary.cards.items():
            counts.setdefault(split, SplitCard()).merge(counted)
        for split, size in summary.sizes.items():
            parts[split].append(Part(work.place(piece), split, size))
    splits = [split for split in SPLITS if split in counts]
    return _Results(
        source,
        [work.place(piece) for piece in pieces],
        {split: parts[split] for split in splits},
        {split: counts[split] for split in splits},
    )


def _assemble(
    results: _Results, work: Work, request: Request
) -> tuple[dict[str, list[Path]], Duplicates, dict[str, int]]:
    """Put the results of the pieces together.

    Returns the files of every split, the duplicates, and how many rows of a split were left out.
    """
    numbers = {split: join_numbers(parts) for split, parts in results.parts.items()}
    found = find({split: join_digests(parts) for split, parts in results.parts.items()}, numbers)
    dropped = {split: len(twins.positions) for split, twins in found.twins.items()} if request.dedup else {}
    for split, count in dropped.items():
        if count and count == len(numbers[split]):
            raise StageError(f"--dedup leaves no row of {split}: all of them are in another split too")
    removal = Removal(found, numbers) if request.dedup else None
    place = work.folder / work.results
    written = {
        split: write_shards(work.folder, split, parts, request.shard_mb * MB, place, removal)
        for split, parts in results.parts.items()
    }
    collect([folder / REJECTED for folder in results.folders], work.folder / REJECTED)
    if removal is not None:
        removed = [removed_rows(path, place) for paths in written.values() for path in paths]
        collect(removed, work.folder / DUPLICATES)
    return written, found, dropped


def _rejected_beside(out: Path) -> Path:
    """Where rejected rows are kept when there is no output for them to be in."""
    return out.with_name(f"{out.name}.{REJECTED}")


def _require_rows(results: _Results, request: Request, beside: Path) -> None:
    """Raise StageError when a split that training needs came out empty; rejected rows are kept `beside`."""
    files, cards = results.source.splits, results.cards
    for split in ("train", "valid"):
        if split in files and not cards[split].converted:
            names = ", ".join(str(file.path) for file in files[split][:3])
            kept = ""
            if any(card.rejected for card in cards.values()):
                collect([folder / REJECTED for folder in results.folders], beside)
                kept = f"; the rows and why they were rejected are in {beside}"
            raise StageError(f"no row of {names} could be converted: {cards[split].list_reasons()}{kept}")
    if request.valid_share and ("valid" not in cards or not cards["train"].converted):
        raise StageError(
            f"--valid-share {request.valid_share} leaves a split without a row: take another share or --seed"
        )
