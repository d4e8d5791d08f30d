"""The stage: from converted rows to an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from stages.core import progress
from stages.core.artifact import (
    build_artifact,
    fingerprint_json,
    is_current,
    package_versions,
    refuse_busy,
)
from stages.core.cli import Options, Outcome, artifacts_root, finished
from stages.core.compute import Model, device_peak_gb, read_weights
from stages.core.errors import StageError
from stages.core.models import find_model
from stages.core.platform import GB, accelerator, require_disk
from stages.core.preset import TrainSetup
from stages.core.records import Recipe
from stages.core.render import Encoded, find_turns
from stages.core.splits import read_lines
from stages.core.stops import turn_end_ids
from stages.core.tokenizer import Tokenizer, load_tokenizer, template_hash
from stages.core.words import plural
from stages.train.adapter import count_layers, open_trainable, require_layers, write_config
from stages.train.checkpoint import LEAST_KEPT, State, save_adapter
from stages.train.loop import Run, train_adapter
from stages.train.memory import CACHE_LIMIT, choose_checkpointing
from stages.train.notes import describe_end, warn_of_setup
from stages.train.ranks import Ranks
from stages.train.recipe import make_recipe
from stages.train.rows import load_rows, spread
from stages.train.saved import CHECKPOINTS, may_discard
from stages.train.split import Trunk
from stages.train.trackers import refuse_trackers, start_trackers

SHOWN = 4  # ways to begin that are named one by one
RECORDS = ("log.jsonl", CHECKPOINTS)  # of the way to the adapter, with times in them


def train(options: Options) -> Outcome:
    """Train one arm's adapter with one seed."""
    data, target, setup = options.input("convert_data"), options.output("train"), options.preset.train
    refuse_trackers(setup.report_to)
    ranks = Ranks.join()
    recipe, base = make_recipe(options, ranks.size), find_model(options.preset, artifacts_root())
    current = ranks.leads and is_current(target, recipe, force=options.force)
    if ranks.sum_numbers([current])[0]:
        return finished(target)
    refuse_difference(ranks, recipe)
    if ranks.leads:
        refuse_busy(target, recipe, force=may_discard(options))
    refuse_sizes(setup, base, data)
    for line in warn_of_setup(setup):
        progress.say(f"  {line}")
    mx.random.seed(options.seed)
    if accelerator() == "cpu":
        mx.set_cache_limit(CACHE_LIMIT)
    model = open_trainable(base, setup)
    require_disk(target, checkpoints_gb(model, setup), "training with its checkpoints")
    tokenizer = load_tokenizer(base, options.preset.model)
    turns = find_turns(tokenizer)
    train_rows = load_rows(data, "train", tokenizer, turns, setup.max_seq_length)
    valid_rows = load_rows(data, "valid", tokenizer, turns, setup.max_seq_length)
    valid_rows = spread(valid_rows, setup.val_batches * setup.batch_size)
    refuse_choice(setup, valid_rows)
    _show_supervision(train_rows, tokenizer)
    read_weights(model, base)  # which takes longest: no row and no option is wrong by now
    setup = choose_checkpointing(model, setup, [*train_rows, *valid_rows], ranks)
    run_in = partial(Run, model, setup, options.seed, train_rows, valid_rows, ranks=ranks)
    if not ranks.leads:
        _train(run_in(target), None)
        return Outcome(target)
    place = artifacts_root() / "logs" / f"{options.preset.name}-{options.arm}-seed{options.seed}"
    force = may_discard(options)
    with build_artifact(
        target, recipe, given=options.given, resume=True, force=force, records=RECORDS
    ) as build:
        progress.say(f"  until it is done, log.jsonl and checkpoints are in {build.folder}")
        run = run_in(build.folder)
        with start_trackers(setup.report_to, place, recipe.settings) as trackers:
            state = _train(run, trackers)
        save_adapter(model, build.folder / "adapters.safetensors")
        run.checkpoints.drop_optimizers()
        write_config(build.folder, base, setup)
        build.facts |= {
            "steps": state.step,
            "train_seconds": state.seconds,
            "best_valid_loss": state.best_loss,
            "best_step": state.best_step,
            "rows": len(train_rows),
            "ranks": ranks.size,
            "beside_another": state.beside,
            "device_peak_gb": device_peak_gb(),
        }
        build.seed, build.template = options.seed, template_hash(tokenizer)
        build.stop_ids = turn_end_ids(tokenizer, turns)
    return Outcome(target, lines=tuple(describe_end(state, setup)), facts=finished(target).facts)


def refuse_difference(ranks: Ranks, recipe: Recipe) -> None:
    """Raise StageError, on all ranks, when one of them has other data or versions than rank 0."""
    if ranks.size == 1:
        return
    parts = {"settings": recipe.settings, **recipe.inputs, "package versions": package_versions()}
    own = [bytes.fromhex(fingerprint_json(value)) for value in parts.values()]
    sent = ranks.numbers_from_leader([byte for digest in own for byte in digest])
    first = [bytes(map(int, sent[i : i + len(own[0])])) for i in range(0, len(sent), len(own[0]))]
    differ = ranks.sum_numbers([a != b for a, b in zip(own, first, strict=True)])
    if any(differ):
        names = ", ".join(name for name, count in zip(parts, differ, strict=True) if count)
        raise StageError(f"the hosts differ in: {names}; give all of them the same, or leave one out")


def refuse_sizes(setup: TrainSetup, base: Path, data: Path) -> None:
    """Raise StageError for more layers than the model's, or a batch larger than the data."""
    if layers := count_layers(base):
        require_layers(setup, layers)
    rows = sum(1 for _ in read_lines(data, "train"))
    if 0 < rows < setup.batch_size:
        found = plural(rows, "row")
        raise StageError(f"batch size {setup.batch_size} is larger than the {found}: lower --batch-size")


def refuse_choice(setup: TrainSetup, valid: list[Encoded]) -> None:
    """Raise StageError for a choice by calls among which there is none."""
    if setup.choose_by == "calls" and not any(max(row.calls) >= 0 for row in valid):
        raise StageError("--choose-by calls: no row of valid has a call, use loss or last, or other rows")


def checkpoints_gb(model: Model, setup: TrainSetup) -> float:
    """Disk for the adapter and the checkpoints with their optimizer: one in the making, and the best."""
    trained: Any = tree_flatten(model.trainable_parameters())
    size = sum(array.nbytes for _, array in trained)
    saved = setup.iters // setup.save_every + 2  # one as it begins and one as it ends
    kept = max(min(setup.keep_checkpoints, saved), LEAST_KEPT)
    checkpoints = 1 + (kept if setup.choose_by == "last" else 2 * kept)  # each may have its own best
    return float(size * (1 + 3 * checkpoints)) / GB + 0.05


def _train(run: Run, trackers: Any) -> State:
    batches = plural(run.plan.steps_per_epoch, "batch")
    progress.say(f"  {describe_beginnings(run.trunks)}; {batches} an epoch")
    run.verify()
    return train_adapter(run, trackers)


def describe_beginnings(trunks: Sequence[Trunk]) -> str:
    """How many rows begin with the same tokens, which are computed once for what a batch has of them."""
    if len(trunks) == 1:
        return f"all rows begin with the same {plural(trunks[0].size, 'token')}"
    first, *others = trunks[:SHOWN]
    rows = plural(len(first.rows), "row")
    parts = [f"{rows} begin with the same {plural(first.size, 'token')}"]
    parts += [f"{len(trunk.rows)} with {trunk.size}" for trunk in others]
    if rest := trunks[SHOWN:]:
        parts.append(f"{sum(len(trunk.rows) for trunk in rest)} in other ways")
    return ", ".join(parts)


def _show_supervision(rows: list[Encoded], tokenizer: Tokenizer) -> None:
    """Say how much of the rows is learned, and show one row with the learned parts in brackets."""
    total, learned = sum(len(r.tokens) for r in rows), sum(sum(r.supervised) for r in rows)
    calls = sum(sum(c >= 0 for c in r.calls) for r in rows)
    progress.say(
        f"  {plural(len(rows), 'row')}, {total} tokens, {learned / total:.0%} of them supervised, "
        f"{calls / total:.0%} in calls; for example, the supervised parts in ⟦⟧"
    )
    progress.say(f"    {mark_supervised(max(rows[:20], key=lambda r: max(r.calls)), tokenizer)}")


def mark_supervised(row: Encoded, tokenizer: Tokenizer, around: int = 60) -> str:
    """The row's text on one line: supervised parts in ⟦⟧, the others shortened to their last characters."""
    parts = []
    for learned, group in groupby(zip(row.tokens, row.supervised, strict=True), key=itemgetter(1)):
        text = tokenizer.decode([token for token, _ in group])
        shown = text if len(text) <= around else "…" + text[-around:]
        parts.append(f"⟦{text}⟧" if learned else shown)
    return "".join(parts).replace("\n", "⏎")
