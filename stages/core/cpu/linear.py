"""Frozen linear layers, with or without LoRA, that keep nothing but their input for the backward pass.

mlx-lm's LoRA layers keep four arrays of the output's size, most of what a training step holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from stages.core.cpu.blocks import Floats, cut, run_blocks, views

ROWS = 256  # of a matrix product that a thread computes together


@cache
def use_fast_linear() -> None:
    """Give MLX's frozen linear layers and mlx-lm's LoRA layers this computation, in float32."""
    from mlx.nn.layers.linear import Linear
    from mlx_lm.tuner.lora import LoRALinear

    plain_linear: Any = Linear.__call__
    plain_lora: Any = LoRALinear.__call__

    def run_linear(layer: Any, x: Any) -> Any:
        return _make_frozen(layer)(x) if _is_frozen(layer, x) else plain_linear(layer, x)

    def run_lora(layer: Any, x: Any) -> Any:
        drops = layer.training and layer.dropout._p_1 < 1
        if drops or not _is_frozen(layer.linear, x):
            return plain_lora(layer, x)
        return _make_adapted(layer.linear, layer.scale)(x, layer.lora_a, layer.lora_b)

    kinds: Any = ((Linear, run_linear, plain_linear), (LoRALinear, run_lora, plain_lora))
    for kind, fast, plain in kinds:
        fast.plain = plain
        kind.__call__ = fast


def _is_frozen(linear: Any, x: Any) -> bool:
    """Whether the layer is one float32 matrix that is not trained."""
    import mlx.core as mx
    from mlx.nn.layers.linear import Linear

    if type(linear) is not Linear or "weight" not in linear._no_grad:
        return False
    return bool(x.dtype == linear.weight.dtype == mx.float32)


def _make_frozen(linear: Any) -> Callable[..., Any]:
    """x W^T + bias for x (..., in)."""
    import mlx.core as mx

    @mx.custom_function
    def frozen(x: Any) -> Any:
        x, weight = views(x, linear.weight)
        return mx.array(_forward(x, weight, _bias(linear)))

    @frozen.vjp
    def frozen_vjp(_primals: Any, upstream: Any, _output: Any) -> Any:
        return mx.array(_backward(*views(upstream, linear.weight)))

    return frozen


def _make_adapted(linear: Any, scale: float) -> Callable[..., Any]:
    """x W^T + bias + scale (x A) B for x (..., in), A (in, r), B (r, out)."""
    import mlx.core as mx

    @mx.custom_function
    def adapted(x: Any, a: Any, b: Any) -> Any:
        x, weight, a, b = views(x, linear.weight, a, b)
        return mx.array(_forward(x, weight, _bias(linear), a, b * np.float32(scale)))

    @adapted.vjp
    def adapted_vjp(primals: Any, upstream: Any, _output: Any) -> Any:
        x, a, b, upstream, weight = views(*primals, upstream, linear.weight)
        gradients = _backward_adapted(x, weight, a, b, upstream, np.float32(scale))
        return tuple(mx.array(g) for g in gradients)

    return adapted


def _bias(linear: Any) -> Floats | None:
    return views(linear.bias)[0] if "bias" in linear else None


def _forward(
    x: Floats, weight: Floats, bias: Floats | None, a: Floats | None = None, b: Floats | None = None
) -> Floats:
    out = np.empty((*x.shape[:-1], len(weight)), np.float32)
    rows, into = _rows(x), _rows(out)

    def work(part: slice) -> None:
        np.matmul(rows[part], weight.T, out=into[part])
        if a is not None and b is not None:
            into[part] += (rows[part] @ a) @ b
        if bias is not None:
            into[part] += bias

    run_blocks(work, cut(len(rows), ROWS))
    return out


def _backward(upstream: Floats, weight: Floats) -> Floats:
    d_x = np.empty((*upstream.shape[:-1], weight.shape[1]), np.float32)
    slopes, into = _rows(upstream), _rows(d_x)
    run_blocks(lambda part: np.matmul(slopes[part], weight, out=into[part]), cut(len(slopes), ROWS))
    return d_x


def _backward_adapted(
    x: Floats, weight: Floats, a: Floats, b: Floats, upstream: Floats, scale: np.float32
) -> tuple[Floats, Floats, Floats]:
    """Gradients of x, A and B; those of A and B are summed over the blocks in their order."""
    d_x = np.empty(x.shape, np.float32)
    rows, slopes, into = _rows(x), _rows(upstream), _rows(d_x)

    def work(part: slice) -> tuple[Floats, Floats]:
        through: Floats = (slopes[part] @ b.T) * scale
        inner: Floats = (rows[part] @ a) * scale
        np.matmul(slopes[part], weight, out=into[part])
        into[part] += through @ a.T
        return rows[part].T @ through, inner.T @ slopes[part]

    parts = run_blocks(work, cut(len(rows), ROWS))
    d_a: Floats = np.add.reduce([one for one, _ in parts])
    d_b: Floats = np.add.reduce([other for _, other in parts])
    return d_x, d_a, d_b


def _rows(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])
