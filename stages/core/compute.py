"""Models in memory, in the form that computes well on this machine.

MLX is imported inside the functions, so that stages without it can import `stages.core`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core import cpu, progress
from stages.core.errors import StageError
from stages.core.platform import GB, accelerator, available_memory_gb, machine_memory_gb, require_memory

Model = Any  # mlx-lm's model classes carry no static types


def load_model(folder: Path, *, dequantize: bool = False) -> tuple[Model, dict[str, Any]]:
    """The model of a folder and its config, ready to compute; see `open_model`, and `read_weights`."""
    model, config = open_model(folder, dequantize=dequantize)
    read_weights(model, folder)
    return model, config


def open_model(folder: Path, *, dequantize: bool = False) -> tuple[Model, dict[str, Any]]:
    """The model of a folder, whose weights are yet to be read, and its config.

    `dequantize` leaves no packed weights. On a CPU the weights are dequantized to float32: the values stay
    those of the quantized weights, and matrix products run about 40 times faster than MLX's own on packed or
    16-bit ones.
    Raises StageError for an architecture that mlx-lm does not know, files that do not fit it, and
    weights that do not fit into the memory.
    """
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model
    from mlx_lm.utils import load_model as load_stored

    with explain_loading(folder):
        model, config = load_stored(folder, lazy=True)
        if accelerator() == "cpu":
            model.set_dtype(mx.float32)  # first, or dequantizing would round to the scales' 16 bits
            model = dequantize_model(model)
            cpu.use_fast_functions(model)
        elif dequantize:
            model = dequantize_model(model)
    # Nothing is read yet: the arrays know their sizes before they are computed.
    needed_gb = sum(array.nbytes for array in list_arrays(model)) / GB
    require_memory(needed_gb, f"{folder}, loaded,", device_free_gb())
    return model, config


def read_weights(model: Model, folder: Path) -> None:
    """Read what `open_model` opened. Raises StageError for a file that breaks off."""
    with explain_loading(folder):
        compute_weights(model, "loading")


@contextmanager
def explain_loading(folder: Path) -> Iterator[None]:
    """Turn what mlx-lm and MLX raise about a folder that they cannot load into one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise StageError(f"mlx-lm cannot load {folder}: {reason}") from None


def compute_weights(model: Model, label: str) -> None:
    """Bring a lazily read or changed model's weights into memory, under a progress bar."""
    import mlx.core as mx

    arrays = list_arrays(model)
    with progress.bar(label, len(arrays), "arrays") as bar:
        for array in arrays:
            mx.eval(array)
            bar.advance()


def list_arrays(model: Model) -> list[Any]:
    """A model's parameters, without their names."""
    from mlx.utils import tree_flatten

    named: Any = tree_flatten(model.parameters())
    return [array for _, array in named]


def load_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file by name."""
    import mlx.core as mx

    arrays: Any = mx.load(str(path))
    return dict(arrays)


def head_cross_entropy(states: Any, head: Any, targets: Any) -> Any:
    """Cross-entropy in nats, (M,), of states (M, D) before a frozen `head` and targets (M,).

    `head` is the module that makes the logits: a linear one, or the embedding that is tied to it.
    """
    import mlx.core as mx
    import mlx.nn as nn

    if _is_plain_head(states, head):
        return cpu.head_cross_entropy(states, head.weight, targets)
    return nn.losses.cross_entropy(_logits(states, head), targets).astype(mx.float32)


def score_targets(states: Any, head: Any, targets: Any) -> tuple[Any, Any]:
    """The same as a NumPy array and without a gradient, and whether each target is the most likely token."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    if _is_plain_head(states, head):
        return cpu.score_targets(states, head.weight, targets)
    logits = _logits(states, head)
    losses = nn.losses.cross_entropy(logits, targets).astype(mx.float32)
    return np.array(losses), np.array(mx.argmax(logits, axis=-1) == targets)


def _logits(states: Any, head: Any) -> Any:
    import mlx.core as mx

    return (head.as_linear(states) if hasattr(head, "as_linear") else head(states)).astype(mx.float32)


def _is_plain_head(states: Any, head: Any) -> bool:
    """Whether a CPU computes the logits, by one float32 matrix."""
    import mlx.core as mx
    from mlx.nn.layers.embedding import Embedding
    from mlx.nn.layers.linear import Linear

    plain = type(head) in (Linear, Embedding) and "bias" not in head
    return plain and accelerator() == "cpu" and states.dtype == mx.float32


def device_free_gb() -> float | None:
    """Free memory of a GPU that has its own, in GB; None where MLX computes in the machine's memory."""
    import mlx.core as mx

    free = mx.device_info().get("free_memory")
    return None if free is None else round(int(free) / GB, 3)


def free_memory_gb() -> float:
    """Memory that can still be had where MLX computes, in GB."""
    device = device_free_gb()
    return available_memory_gb() if device is None else device


def total_memory_gb() -> float:
    """Memory that there is where MLX computes, in GB."""
    import mlx.core as mx

    device = mx.device_info().get("total_memory")
    return machine_memory_gb() if device_free_gb() is None or device is None else int(device) / GB


def device_peak_gb() -> float:
    """Highest memory that MLX has held so far, in GB (1e9 bytes)."""
    import mlx.core as mx

    return round(float(mx.get_peak_memory()) / 1e9, 3)
