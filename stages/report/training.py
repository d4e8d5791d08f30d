"""How training went: the losses as a picture, a table and a line of bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from stages.core.records import LossPoint
from stages.core.words import plural
from stages.report.cells import NONE, inline_code, number, sparkline, table
from stages.report.recorded import RecordedTraining
from stages.report.results import Arm

T = TypeVar("T")
ROWS = 10  # of a loss table
BARS = 40  # of a line of bars


def write_training(arms: Sequence[Arm], plot: str) -> str:
    """One part per training; `plot` names the picture of `list_losses`."""
    drawn = [f"![Losses of training and validation by step]({plot})"] if list_losses(arms) else []
    return "\n\n".join(["## Training", *drawn, *(_write_run(sharing) for sharing in _list_trainings(arms))])


def list_losses(arms: Sequence[Arm]) -> dict[str, list[LossPoint]]:
    """The log of every training that has one, by the names of the arms that share it."""
    return {_title(sharing): sharing[0].losses for sharing in _list_trainings(arms) if sharing[0].losses}


def write_recorded_training(training: RecordedTraining) -> str:
    """The published figures of the first experiment's training."""
    rows = [
        ["rows", str(training.rows)],
        ["iterations, batch size", f"{training.iterations}, {training.batch_size}"],
        ["LoRA layers", f"{training.lora_layers} of {training.layers}"],
        ["learning rate", f"{training.learning_rate:g}"],
        ["validation loss", f"{training.first_valid_loss:.3f} → {training.last_valid_loss:.3f}"],
        ["last training loss", f"{training.last_train_loss:.3f}"],
        ["time", f"{training.seconds:.0f} s"],
        ["speed", f"{training.iterations_per_second:.3f} iterations a second"],
        ["peak memory of training", f"{training.peak_memory_gb:.3f} GB"],
    ]
    return "## Training of the candidate (recorded)\n\n" + table(["", "recorded"], rows)


def _list_trainings(arms: Sequence[Arm]) -> list[list[Arm]]:
    """The arms, those that share a training together."""
    trained: dict[str, list[Arm]] = {}
    for arm in arms:
        trained.setdefault(str(arm.options.place("train")), []).append(arm)
    return [*trained.values()]


def _title(sharing: Sequence[Arm]) -> str:
    return ", ".join(arm.label for arm in sharing)


def _write_run(sharing: Sequence[Arm]) -> str:
    arm, title = sharing[0], _title(sharing)
    if not arm.losses:
        command = inline_code(arm.options.command("train"))
        return f"### {title}\n\nNo training log here; it would come from {command}."
    train = [p for p in arm.losses if p.kind == "train"]
    valid = [p for p in arm.losses if p.kind == "valid"]
    parts = [
        f"### {title}",
        _summarize(arm, train, valid),
        table(
            ["step", "training loss", "validation loss", "on calls alone", "calls exact"], _rows(train, valid)
        ),
        "A call is exact when greedy decoding would write it token by token as the validation row has it.",
    ]
    if len(train) > 1:
        parts.append(f"Training loss: `{sparkline([p.loss for p in _spread(train, BARS)])}`")
    return "\n\n".join(parts)


def _summarize(arm: Arm, train: Sequence[LossPoint], valid: Sequence[LossPoint]) -> str:
    manifest = arm.manifests.get("train")
    facts = manifest.facts if manifest else {}
    speeds = [p.tokens_per_second for p in train if p.tokens_per_second is not None]
    lines = []
    if valid:
        best = min(valid, key=lambda p: p.loss)
        lines.append(
            f"Validation loss {valid[0].loss:.4f} at step {valid[0].step}, {valid[-1].loss:.4f} at step "
            f"{valid[-1].step}, best {best.loss:.4f} at step {best.step}."
        )
    steps, seconds = (
        facts.get("steps", arm.losses[-1].step),
        facts.get("train_seconds", arm.losses[-1].seconds),
    )
    speed = f"{plural(round(sum(speeds) / len(speeds)), 'token')} a second" if speeds else "speed not logged"
    rows = f"{plural(facts['rows'], 'row')}, " if "rows" in facts else ""
    done = f"{plural(steps, 'step')}, {rows}{number(seconds, 's', 0)}"
    processes = int(arm.manifests["train"].facts.get("ranks") or 1) if "train" in arm.manifests else 1
    each = f" in each of {processes} processes" if processes > 1 else ""
    beside = " (beside another arm, on the same cores)" if facts.get("beside_another") else ""
    lines.append(f"{done}{beside}, {speed}, peak {number(_peak(arm), 'GB')}{each}.")
    return " ".join(lines)


def _peak(arm: Arm) -> float | None:
    manifest = arm.manifests.get("train")
    if manifest is None:
        return None
    return max(manifest.peak_memory_gb, float(manifest.facts.get("device_peak_gb") or 0))


def _rows(train: Sequence[LossPoint], valid: Sequence[LossPoint]) -> list[list[str]]:
    """Steps with a validation, or evenly spread ones; the training loss is the last one logged until then."""
    checked = {p.step: p for p in valid}
    rows = []
    for step in _spread(sorted(checked), ROWS) if checked else [p.step for p in _spread(train, ROWS)]:
        before = [p.loss for p in train if p.step <= step]
        point = checked.get(step)
        exact = None if point is None else point.exact_calls
        rows.append(
            [
                str(step),
                number(before[-1] if before else None, digits=4),
                number(point.loss if point else None, digits=4),
                number(point.call_loss if point else None, digits=4),
                NONE if exact is None else f"{exact:.0%}",
            ]
        )
    return rows or [[NONE] * 5]


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
