"""Stop tokens: what the base names, what ends a turn in training, and what the fused model gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.core.render import Turns, encode_text
from stages.core.tokenizer import Tokenizer


def as_ids(value: Any) -> list[int]:
    """The ids in an `eos_token_id`: a number, a list of numbers, or nothing."""
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def own_stop_ids(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> list[int]:
    """The stop ids of a model's own files; generation_config.json goes before config.json, as in mlx-lm."""
    return as_ids((generation or {}).get("eos_token_id")) or as_ids(config.get("eos_token_id"))


def turn_end_ids(tokenizer: Tokenizer, turns: Turns) -> list[int]:
    """The ids that end an assistant's turn in training data: the first token of the closing mark."""
    return encode_text(turns.closing, tokenizer)[:1]


def choose_stop_ids(own: list[int], turn_ends: list[int], *, fixed: bool) -> list[int]:
    """The ids at which the fused model stops.

    With the fix `eos` what ends a turn in training and then the base's own; without it the base's
    first id alone.
    """
    return list(dict.fromkeys([*turn_ends, *own])) if fixed else own[:1]
