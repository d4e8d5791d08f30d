"""Where a reply leaves the greedy one, how near the two tokens were: `MODEL QUERIES THEIRS OURS OUT`.

Sums in another order move a logit in its last digits, as a batch does, or another library. Where the two
best tokens are no further apart than that, it is not defined which of them is the best, and either reply is
the greedy one. Anything further apart is a mistake.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache

from stages.core.render import encode_text, render_row
from stages.eval.engines import Question
from tests.bench.run_eval import LIMIT, list_questions

NEAREST = 50  # tokens that are tried as the other reply's
HALF = "\ufffd"  # what a character is decoded to of which only the first bytes are there


class Replay:
    """A reply to a prompt, token by token, with the logits that one-by-one generation has for each."""

    def __init__(self, network: Any, tokenizer: Any, prompt: list[int]) -> None:
        self.network, self.tokenizer, self.tokens = network, tokenizer, list[int]()
        self.cache = make_prompt_cache(network)
        self.logits = self._compute(prompt)

    def _compute(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        return np.array(self.network(mx.array([tokens]), cache=self.cache)[0, -1].astype(mx.float32))

    def step(self, token: int) -> None:
        """Go on with a token."""
        self.tokens.append(token)
        self.logits = self._compute([token])

    def agrees(self, token: int, text: str) -> bool:
        """Whether `text` goes on with this token, or ends where this token ends a reply."""
        if token in self.tokenizer.eos_token_ids:
            return text == self._decode(self.tokens)
        return text.startswith(self._decode([*self.tokens, token]).rstrip(HALF))

    def _decode(self, tokens: list[int]) -> str:
        said: str = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return said


def find_gap(replay: Replay, other: str, limit: int = LIMIT) -> float | None:
    """How far below the best logit those of another reply's tokens are at most; None where all are the best.

    Infinite where a token of it is not among the best ones.
    """
    worst = None
    while len(replay.tokens) < limit:
        order = [int(token) for token in np.argsort(-replay.logits, kind="stable")[:NEAREST]]
        taken = next((token for token in order if replay.agrees(token, other)), None)
        if taken is None:
            return float("inf")
        if taken != order[0]:
            worst = max(worst or 0.0, float(replay.logits[order[0]] - replay.logits[taken]))
        if taken in replay.tokenizer.eos_token_ids:
            break
        replay.step(taken)
    return worst


def list_gaps(
    model: Path, questions: Sequence[Question], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, float | None]:
    """By query, for the replies that are unequal."""
    loaded: Any = load(str(model))
    network, tokenizer = loaded
    gaps = {}
    for question, a, b in zip(questions, theirs, ours, strict=True):
        if a != b:
            prompt = encode_text(render_row(question.row, tokenizer, prompt=True), tokenizer._tokenizer)
            gaps[question.id] = find_gap(Replay(network, tokenizer, prompt), b)
    return gaps


if __name__ == "__main__":
    folder, count, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[5])
    replies = [json.loads(Path(path).read_text("utf-8")) for path in sys.argv[3:5]]
    out.write_text(json.dumps(list_gaps(folder, list_questions(count), *replies)), "utf-8")
