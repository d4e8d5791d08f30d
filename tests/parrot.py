"""A model that says one text whatever it is asked: a real architecture and tokenizer, made-up weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

SIZE = 64  # of the hidden states, so as many tokens can follow each other


def write_parrot(source: Path, folder: Path, text: str, then: str) -> Path:
    """A copy of an unquantized tiny Qwen2 that says `text` and then `then`, over and over.

    Its layers add nothing, and the output matrix maps each token to the one that follows it. So no token
    may come twice, and the prompt has to end with a line break.
    """
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    said = [
        i for part in ("\n", text, then) for i in tokenizer.encode(part, add_special_tokens=False).ids
    ]  # fmt: skip
    if len(set(said)) < len(said) or len(said) > SIZE:
        tokens = [tokenizer.id_to_token(token) for token in said]
        raise ValueError(f"a token comes twice, or there are too many: {tokens}")
    arrays: dict[str, Any] = dict(mx.load(str(folder / "model.safetensors")))  # type: ignore[arg-type]
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            arrays[name] = mx.zeros_like(array)
    one = mx.eye(SIZE)
    for i, (token, following) in enumerate(zip(said, said[1:] + said[1:2], strict=True)):
        arrays["model.embed_tokens.weight"][token] = one[i]
        arrays["lm_head.weight"][following] = arrays["lm_head.weight"][following] + one[i]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    return folder
