"""Replies of a model in process, batched, with the prompts' shared prefix computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache

from stages.core import progress
from stages.core.compute import Model, load_model
from stages.core.errors import StageError
from stages.core.preset import EvalSetup, ModelSetup
from stages.core.records import RawReply
from stages.core.render import encode_text, render_row
from stages.core.stops import own_stop_ids
from stages.core.tokenizer import Tokenizer, load_tokenizer

GENERATOR_VERSION = 1  # raised by every change that can change a reply


@dataclass
class Engine:
    """A loaded model that answers prompts."""

    model: Model
    tokenizer: Tokenizer
    stops: list[int]
    load_seconds: float

    @classmethod
    def load(cls, folder: Path, setup: ModelSetup | None = None) -> Engine:
        """Load a model folder; `setup` names the chat template of one that fuse did not write.

        Raises StageError when the folder names no stop token.
        """
        started = time.perf_counter()
        model, config = load_model(folder)
        seconds = time.perf_counter() - started
        stops = own_stop_ids(config)
        if not stops:
            raise StageError(f"{folder}/config.json names no eos_token_id: no reply would ever end")
        model.eval()
        return cls(model, load_tokenizer(folder, setup), stops, seconds)

    def answer(
        self, rows: Sequence[dict[str, Any]], ids: Sequence[str], setup: EvalSetup, label: str
    ) -> list[RawReply]:
        """Greedy replies to prompts given as neutral rows, in their order."""
        prompts = [encode_text(render_row(row, self.tokenizer, prompt=True), self.tokenizer) for row in rows]
        prefix = common_prefix(prompts)
        cache = self._prefill(prompts[0][:prefix])
        generator = BatchGenerator(
            self.model,
            stop_tokens=[[stop] for stop in self.stops],
            max_tokens=setup.max_tokens,
            completion_batch_size=setup.completion_batch,
            prefill_batch_size=setup.completion_batch,
        )
        started = time.perf_counter()
        uids = generator.insert(
            [p[prefix:] for p in prompts], caches=[cache] * len(prompts) if cache else None
        )
        replies: dict[int, RawReply] = {}
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        names = dict(zip(uids, ids, strict=True))
        with progress.bar(label, len(uids), "queries") as bar:
            while len(replies) < len(uids):
                before = len(replies)
                for response in generator.next_generated():
                    tokens[response.uid].append(response.token)
                    if response.finish_reason is not None:
                        elapsed = time.perf_counter() - started
                        ended = response.finish_reason == "stop"
                        replies[response.uid] = self._reply(
                            names[response.uid], tokens[response.uid], ended, elapsed
                        )
                # Together: after the first of a batch that ends at once, what is left would look endless.
                bar.advance(len(replies) - before)
        generator.close()
        return [replies[uid] for uid in uids]

    def _prefill(self, tokens: list[int]) -> list[Any] | None:
        """The model's cache after the shared prefix; None when its layers cannot share one."""
        cache: list[Any] = make_prompt_cache(self.model)
        if not tokens or not all(type(layer) is KVCache for layer in cache):
            return None
        self.model(mx.array([tokens]), cache=cache)
        mx.eval([layer.state for layer in cache])
        return cache

    def _reply(self, query: str, tokens: list[int], ended: bool, elapsed: float) -> RawReply:
        kept = tokens[:-1] if ended else tokens
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        return RawReply(
            id=query,
            text=text,
            tokens=len(tokens),
            finish="stop" if ended else "length",
            seconds=round(elapsed, 3),
        )


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, at least one left over for each."""
    length = min(len(p) for p in prompts) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return length
