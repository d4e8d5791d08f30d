"""How much memory a run will need, before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from stages.core import progress
from stages.core.compute import Model, free_memory_gb, list_arrays
from stages.core.cpu.blocks import count_cores
from stages.core.cpu.head import working_memory
from stages.core.errors import StageError
from stages.core.platform import GB, SHARE_VARIABLE, accelerator
from stages.core.preset import TrainSetup
from stages.core.render import Encoded
from stages.train.adapter import lora_sizes
from stages.train.prefixes import group_rows, shared_prefix
from stages.train.ranks import Ranks
from stages.train.rows import Batch, make_batch
from stages.train.split import kept_bytes

ALONE = Ranks()
CACHE_LIMIT = 1 << 28  # bytes of freed buffers that MLX keeps on a CPU: shapes vary from step to step
SLACK = 2.5  # arrays between the linear layers (norms, positions, sums), and what is freed late
SCORES = 3  # arrays of attention's scores that MLX has in a layer's backward pass, beside each layer's own


def choose_checkpointing(
    model: Model, setup: TrainSetup, rows: list[Encoded], ranks: Ranks = ALONE
) -> TrainSetup:
    """The set-up, with gradient checkpointing if the run would not fit into memory without.

    Says the estimate. Raises StageError when even that does not fit. Checkpointing changes no result.
    Ranks on one machine share its memory, and each has its part of a batch.
    """
    free = free_memory_gb() / ranks.here
    part = setup.model_copy(update={"batch_size": -(-setup.batch_size // ranks.size)})
    groups = group_rows(rows, part.batch_size)
    plain = estimate_gb(model, part, groups, checkpoint=setup.grad_checkpoint)
    lean = estimate_gb(model, part.model_copy(update={"dropout": 0.0}), groups, checkpoint=True)
    held = sum(array.nbytes for array in list_arrays(model)) / GB
    each = f", as does each of the {ranks.here} processes" if ranks.here > 1 else ""
    progress.say(
        f"  needs about {plain:.1f} GB of memory beside the model's {held:.1f}{each}; "
        f"{free:.1f} GB is free for it"
    )
    if plain <= free:
        return setup
    if lean > free:
        raise StageError(
            f"training needs about {lean:.1f} GB of memory beside the model, and {free:.1f} GB is free, even "
            f"with gradient checkpointing: lower {_what_helps(setup)}"
        )
    if setup.dropout:
        raise StageError(
            f"training needs about {plain:.1f} GB of memory beside the model, {free:.1f} GB is free: "
            f"lower {_what_helps(setup)}, or set --dropout 0, which allows gradient checkpointing"
        )
    progress.say(f"  gradient checkpointing brings it down to about {lean:.1f} GB")
    return setup.model_copy(update={"grad_checkpoint": True})


def _what_helps(setup: TrainSetup) -> str:
    fewer = "" if setup.batch_size == 1 else "--batch-size (and raise --grad-accumulation) or "
    alone = ", or train one arm after the other with --jobs 1" if SHARE_VARIABLE in os.environ else ""
    return f"{fewer}--num-layers{alone}"


def estimate_gb(
    model: Model, setup: TrainSetup, groups: Sequence[Sequence[Encoded]], *, checkpoint: bool
) -> float:
    """What comes on top of the loaded model, for rows in the groups that `group_rows` makes of them.

    Gradient and optimizer of what is trained, kept hidden states, the largest batch's activations, and on a
    CPU the buffers that MLX keeps when they are free.
    """
    # Layers that are trained whole compute in float32, the others' states stay as they are.
    item, hidden = _item_size(model), int(model.model.norm.weight.size)
    top_item = 4 if setup.fine_tune_type == "full" else item
    trained: Any = tree_flatten(model.trainable_parameters())
    on_cpu = accelerator() == "cpu"
    added = setup.grad_accumulation > 1 or len(groups) > 1  # a gradient to another
    # What the prefix and the rows give is added too; a CPU has all three until a step's end.
    parts = 2 if on_cpu and not checkpoint and any(shared_prefix(group) for group in groups) else 0
    total = (
        (3 + added + parts) * sum(array.nbytes for _, array in trained)
        + kept_bytes(hidden * item, groups)
        + max(_activations(model, setup, group, top_item, checkpoint=checkpoint) for group in groups)
        + (CACHE_LIMIT if on_cpu else 0)
    )
    return float(total) / GB


def _activations(
    model: Model, setup: TrainSetup, rows: Sequence[Encoded], item: int, *, checkpoint: bool
) -> float:
    """Bytes that a batch of a group's longest rows takes in the trained layers and for its logits."""
    prefix = len(shared_prefix(rows))
    longest = sorted(rows, key=lambda row: len(row.tokens))[-setup.batch_size :]
    batch = make_batch(longest, prefix)
    trained = model.layers[-setup.num_layers :]
    widths = [_widths(layer) for layer in trained]
    kept = max(widths) + int(model.model.norm.weight.size) * len(trained) if checkpoint else sum(widths)
    states = SLACK * kept * (batch.inputs.size + prefix) * item
    all_logits = len(batch.where) * _vocabulary(model) * 4
    if accelerator() == "cpu":  # which keeps few logits, and no scores of attention but those in work
        own = [_own_numbers(layer, setup, batch.inputs.size, prefix) for layer in trained]
        states += 4 * (max(own) if checkpoint else sum(own))
        return states + max(min(working_memory(), 2 * all_logits), _scores_in_work(model, batch, prefix))
    scores = batch.inputs.size * (prefix + batch.inputs.shape[1]) + prefix**2
    layers = SCORES + (1 if checkpoint else len(trained))
    return float(states + layers * model.args.num_attention_heads * scores * item + 3 * all_logits)


def _scores_in_work(model: Model, batch: Batch, prefix: int) -> int:
    """Bytes of the scores that a CPU's threads have in the backward pass: a row's each, twice."""
    rows, length = batch.inputs.shape
    own = min(count_cores(), rows) * length * max(length, prefix)
    return 2 * 4 * int(model.args.num_attention_heads) * int(max(own, prefix**2))


def _own_numbers(layer: Any, setup: TrainSetup, tokens: int, prefix: int) -> int:
    """Numbers that mlx-lm's own layers have on a CPU beside those of `_widths`, till the end of a step.

    Ours have none; with dropout, for DoRA and for experts mlx-lm computes. Of each token an array and its
    gradient: of the input's width the mask, the scaled mask and what passes it, of the output's the low-rank
    product, the scaled one and the sum, DoRA's normed one too. Of a matrix its change, the sum and the
    squares, for the prefix and for the rows.
    """
    numbers, modules = 0, [module for _, module in layer.named_modules()]
    experts = next((int(m.top_k) for m in modules if hasattr(m, "top_k")), 1)
    for module in modules:
        if "lora_a" not in module or (type(module) is LoRALinear and not setup.dropout):
            continue
        many = module.lora_a.ndim == 3  # of experts
        width, out = lora_sizes(module)
        dora = setup.fine_tune_type == "dora"
        each = 2 * ((3 * width if setup.dropout else 0) + (4 if dora else 3) * out)
        numbers += each * (tokens + prefix) * (experts if many else 1)
        numbers += 3 * width * out * (2 if prefix else 1) if dora else 0
    return numbers


def _widths(layer: Any) -> int:
    """Numbers per token that go into and come out of a layer's matrices."""
    modules = [module for _, module in layer.named_modules()]
    experts = next((int(m.top_k) for m in modules if hasattr(m, "top_k")), 1)  # that work on a token
    matrices = [m for m in modules if "weight" in m and m.weight.ndim >= 2]
    return sum((m.weight.shape[-2] + _inputs(m)) * (experts if m.weight.ndim == 3 else 1) for m in matrices)


def _inputs(matrix: Any) -> int:
    packed = "scales" in matrix  # its weights are several to a number
    return int(matrix.scales.shape[-1] * matrix.group_size if packed else matrix.weight.shape[-1])


def _item_size(model: Model) -> int:
    size: int = model.model.norm.weight.dtype.size
    return size


def _vocabulary(model: Model) -> int:
    head = getattr(model, "lm_head", None) or model.model.embed_tokens
    return int(head.weight.shape[0])
