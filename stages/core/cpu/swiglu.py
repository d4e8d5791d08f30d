"""SwiGLU: silu(gate) times x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stages.core.cpu.blocks import BLOCK, Floats, cut, run_blocks, views


def make_swiglu(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A SwiGLU with mlx-lm's signature that leaves other types than float32 to `plain`."""
    import mlx.core as mx

    @mx.custom_function
    def fast(gate: Any, x: Any) -> Any:
        gates, ups = views(gate, x)
        return mx.array(_forward(gates, ups))

    @fast.vjp
    def fast_vjp(primals: Any, cotangent: Any, _output: Any) -> Any:
        return tuple(mx.array(g) for g in _backward(*views(*primals, cotangent)))

    def swiglu(gate: Any, x: Any) -> Any:
        return fast(gate, x) if gate.dtype == x.dtype == mx.float32 else plain(gate, x)

    swiglu.fast = True  # type: ignore[attr-defined]
    return swiglu


def _forward(gates: Floats, ups: Floats) -> Floats:
    out = np.empty(gates.shape, np.float32)
    flat = [x.reshape(-1) for x in (gates, ups, out)]

    def work(block: slice) -> None:
        gate, up, into = (x[block] for x in flat)
        _sigmoid(gate, into)
        into *= gate
        into *= up

    run_blocks(work, cut(gates.size, BLOCK))
    return out


def _backward(gates: Floats, ups: Floats, upstreams: Floats) -> tuple[Floats, Floats]:
    d_gates, d_ups = (np.empty(gates.shape, np.float32) for _ in range(2))
    flat = [x.reshape(-1) for x in (gates, ups, upstreams, d_gates, d_ups)]

    def work(block: slice) -> None:
        gate, up, upstream, d_gate, d_up = (x[block] for x in flat)
        sigmoid = _sigmoid(gate, np.empty_like(gate))
        np.multiply(gate, sigmoid, out=d_up)  # silu
        np.subtract(1, sigmoid, out=d_gate)
        d_gate *= d_up
        d_gate += sigmoid
        d_gate *= upstream
        d_gate *= up
        d_up *= upstream

    run_blocks(work, cut(gates.size, BLOCK))
    return d_gates, d_ups


def _sigmoid(x: Floats, out: Floats) -> Floats:
    np.clip(x, -80.0, 80.0, out=out)  # beyond it float32 is 0 or 1 all the same
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)
