"""A model that says one text whatever it is asked: a real architecture and tokenizer, made-up weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

SIZE = 64  # of the hidden states, so as many tokens can follow each other
CUT = "\0"


def write_parrot(
    source: Path, folder: Path, text: str | Mapping[str, str], then: str, template: str | None = None
) -> Path:
    """A copy of an unquantized tiny Qwen2 that says `text` and then `then`, over and over.

    Its layers add nothing, and the output matrix maps each token to the one that follows it. So a token has
    one successor, and the prompt has to end with a line break; or, for texts by the last character of the
    prompt, with one of these, which another chat template has to see to. Where a CUT stands in a text, no
    token reaches over it.
    """
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    follows: dict[int, int] = {}
    for last, said in ({"\n": text} if isinstance(text, str) else text).items():
        pieces = [last, *said.split(CUT), then]
        chain = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
        # Behind its end the first of the texts begins anew.
        for token, following in pairwise([*chain, follows.get(chain[-1], chain[1])]):
            if follows.setdefault(token, following) != following:
                raise ValueError(f"two tokens follow {tokenizer.id_to_token(token)!r}: {said!r}")
    if len(follows) > SIZE:
        raise ValueError(f"{len(follows)} tokens, but {SIZE} hidden states")
    arrays: dict[str, Any] = dict(mx.load(str(folder / "model.safetensors")))  # type: ignore[arg-type]
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            arrays[name] = mx.zeros_like(array)
    one = mx.eye(SIZE)
    for i, (token, following) in enumerate(follows.items()):
        arrays["model.embed_tokens.weight"][token] = one[i]
        arrays["lm_head.weight"][following] = arrays["lm_head.weight"][following] + one[i]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    if template is not None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text("utf-8")) | {"chat_template": template}
        path.write_text(json.dumps(settings), "utf-8")
    return folder
