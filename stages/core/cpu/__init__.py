"""What a transformer spends its time on, made fast and lean on a Linux CPU.

MLX's CPU backend computes `exp` one element at a time on one thread (about 11 ns each; NumPy needs
0.5 ns), and its matrix products wait for all cores at every step, which another program on one of
them makes many times slower. Here NumPy computes attention, SwiGLU, the loss and LoRA in blocks of
rows that the cores take one after the other, and hands the results back to MLX with their exact
gradients. Blocks and their order do not depend on the number of cores, so neither does any result.
Metal and CUDA need none of it.
"""

from __future__ import annotations

import sys
from typing import Any

from stages.core.cpu.attention import lay_under, make_attention
from stages.core.cpu.head import head_cross_entropy, score_targets
from stages.core.cpu.linear import use_fast_linear
from stages.core.cpu.recompute import recompute
from stages.core.cpu.swiglu import make_swiglu

__all__ = [
    "head_cross_entropy",
    "lay_under",
    "recompute",
    "score_targets",
    "sees_prefixes",
    "use_fast_functions",
    "use_fast_linear",
]


def use_fast_functions(model: Any) -> None:
    """Give the model's architecture the attention and SwiGLU of this package.

    They are exchanged where mlx-lm's models look them up, in the module of the model's class; an
    architecture that uses other functions keeps its own.
    """
    module = sys.modules[type(model).__module__]
    for name, make in (("scaled_dot_product_attention", make_attention), ("swiglu", make_swiglu)):
        plain = getattr(module, name, None)
        if plain is not None and not hasattr(plain, "fast"):
            setattr(module, name, make(plain))


def sees_prefixes(model: Any) -> bool:
    """Whether the model's attention looks for the prefix of a cache (see `make_attention`)."""
    kinds = {type(getattr(layer, "self_attn", None)) for layer in model.layers}
    return all(
        hasattr(getattr(sys.modules[kind.__module__], "scaled_dot_product_attention", None), "fast")
        for kind in kinds
    )
