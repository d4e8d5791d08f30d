"""How much memory a run will need, before it starts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten

from stages.core import progress
from stages.core.compute import Model
from stages.core.cpu.head import working_memory
from stages.core.errors import StageError
from stages.core.platform import GB, accelerator
from stages.core.preset import TrainSetup
from stages.core.render import Encoded
from stages.train.rows import BatchPlan, make_batch, shared_prefix

SLACK = 1.5  # arrays between the linear layers (norms, positions, sums), and what is freed late
PROGRAM_GB = 0.4  # interpreter and libraries


def choose_checkpointing(model: Model, setup: TrainSetup, rows: list[Encoded]) -> TrainSetup:
    """The set-up, with gradient checkpointing if the run would not fit into memory without.

    Says the estimate. Raises StageError when even that does not fit. Checkpointing changes no result.
    """
    free = _free_gb()
    plain, lean = (estimate_gb(model, setup, rows, checkpoint=c) for c in (setup.grad_checkpoint, True))
    progress.say(f"  needs about {plain:.1f} GB of memory, {free:.1f} GB is free")
    if plain <= free:
        return setup
    if lean > free:
        raise StageError(
            f"training needs about {lean:.1f} GB of memory even with gradient checkpointing, "
            f"{free:.1f} GB is free: lower --batch-size or --num-layers, or raise --grad-accumulation instead"
        )
    if setup.dropout:
        raise StageError(
            f"training needs about {plain:.1f} GB of memory, {free:.1f} GB is free: lower --batch-size, "
            "or set --dropout 0, which allows gradient checkpointing"
        )
    progress.say(f"  gradient checkpointing brings it down to about {lean:.1f} GB")
    return setup.model_copy(update={"grad_checkpoint": True})


def estimate_gb(model: Model, setup: TrainSetup, rows: list[Encoded], *, checkpoint: bool) -> float:
    """Weights, adapter with gradient and optimizer, hidden states, and the largest batch's activations."""
    prefix = len(shared_prefix(rows))
    plan = BatchPlan(tuple(len(row.tokens) for row in rows), setup.batch_size, 0)
    longest = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))[-setup.batch_size :]
    batch = make_batch([rows[i] for i in longest], prefix)
    trained = model.layers[-setup.num_layers :]
    widths = [_widths(layer) for layer in trained]
    item, hidden = _item_size(model), int(model.model.norm.weight.size)
    positions = batch.inputs.size + prefix
    kept = max(widths) + hidden * len(trained) if checkpoint else sum(widths)
    below = 0 if len(trained) == len(model.layers) else sum(plan.lengths) - prefix * len(rows)
    logits = working_memory() if accelerator() == "cpu" else 3 * len(batch.where) * _vocabulary(model) * 4
    adapter: Any = tree_flatten(model.trainable_parameters())
    weights: Any = tree_flatten(model.parameters())
    total = (
        sum(array.nbytes for _, array in weights)
        + 3 * sum(array.nbytes for _, array in adapter)
        + SLACK * kept * positions * item
        + below * hidden * item
        + logits
    )
    return float(total) / GB + PROGRAM_GB


def _widths(layer: Any) -> int:
    """Numbers per token that go into and come out of a layer's matrices."""
    matrices = [m for _, m in layer.named_modules() if "weight" in m and m.weight.ndim >= 2]
    return sum(m.weight.shape[-2] + _inputs(m) for m in matrices)


def _inputs(matrix: Any) -> int:
    packed = "scales" in matrix  # its weights are several to a number
    return int(matrix.scales.shape[-1] * matrix.group_size if packed else matrix.weight.shape[-1])


def _item_size(model: Model) -> int:
    size: int = model.model.norm.weight.dtype.size
    return size


def _vocabulary(model: Model) -> int:
    head = getattr(model, "lm_head", None) or model.model.embed_tokens
    return int(head.weight.shape[0])


def _free_gb() -> float:
    """What the machine has left; on a Mac the share that its GPU may use, on CUDA the device's."""
    if accelerator() == "cpu":
        return float(psutil.virtual_memory().available) / GB
    info: Any = mx.device_info()
    keys = ("max_recommended_working_set_size", "total_memory", "memory_size")
    total = next((float(info[key]) for key in keys if key in info), float("inf"))
    return (total - float(mx.get_active_memory())) / GB
