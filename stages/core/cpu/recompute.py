"""A function that is computed again in the backward pass, and keeps nothing but what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stages.core.cpu.blocks import views


def recompute(function: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """`function` of float32 arrays, to a tuple of several, with its exact gradients.

    mx.checkpoint leaves to MLX what is kept until when. While a gradient is traced MLX keeps every array that
    it has computed, and NumPy's functions have it compute at once: nothing would be saved.
    """
    import mlx.core as mx

    @mx.custom_function
    def run(*inputs: Any) -> Any:
        return tuple(_copy(function(*_copy(inputs))))

    @run.vjp
    def run_vjp(primals: Any, cotangents: Any, _outputs: Any) -> Any:
        return tuple(_copy(mx.vjp(function, _copy(primals), _copy(cotangents))[1]))

    return run


def _copy(arrays: Sequence[Any]) -> list[Any]:
    """The same values without what they were computed from."""
    import mlx.core as mx

    return [mx.array(view) for view in views(*arrays)]
