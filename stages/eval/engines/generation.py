"""Replies of a loaded model, batched, with the prompts' shared prefix computed once."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from jinja2 import TemplateError
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache

from stages.core import cpu, progress
from stages.core.compute import Model, load_model
from stages.core.dialects import parse_reply
from stages.core.errors import StageError
from stages.core.preset import ModelSetup
from stages.core.records import RawReply
from stages.core.render import encode_text, render_row
from stages.core.stops import own_stop_ids
from stages.core.tokenizer import Tokenizer, load_tokenizer
from stages.eval.clock import WorkClock
from stages.eval.engines import Keep, Question, Sampling
from stages.eval.engines.shared_prefix import SharedPrefix

CALL_ENDS = {  # by dialect: without this at the end of the text no call is complete
    "hermes": "</tool_call>",
    "qwen3_coder": "</tool_call>",
    "bare_python": "</tool_call>",
    "pythonic": "]",
    "fenced_json": "```",
}


@dataclass
class Generator:
    """A model in memory, which answers `batch` questions at the same time."""

    model: Model
    tokenizer: Tokenizer
    stops: list[int]
    batch: int
    dialect: str
    load_seconds: float
    first_token_seconds: float | None = None

    @classmethod
    def load(cls, folder: Path, setup: ModelSetup | None, batch: int, dialect: str) -> Generator:
        """Load a model folder; `setup` names the chat template of one that fuse did not write.

        Raises StageError when the folder names no stop token.
        """
        started = time.perf_counter()
        model, config = load_model(folder)
        seconds = round(time.perf_counter() - started, 3)
        stops = own_stop_ids(config)
        if not stops:
            raise StageError(f"{folder}/config.json names no eos_token_id: no reply would ever end")
        model.eval()
        return cls(model, load_tokenizer(folder, setup), stops, batch, dialect, seconds)

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Answer the questions, `batch` at the same time; one that ends makes room for the next.

        Raises StageError when the chat template refuses a question.
        """
        texts = [write_prompt(question, self.tokenizer) for question in questions]
        prompts = [encode_text(text, self.tokenizer) for text in texts]
        clock = WorkClock([question.id for question in questions])
        cache = self._prefill(prompts[0][: common_prefix(prompts)])
        prefix = cache[0].offset if cache else 0  # whoever cannot share it reads it in every prompt
        prefilled = clock.tick(clock.parts)
        if self.first_token_seconds is None:
            rest = self._time_first_token(prompts[0][prefix:], cache)
            self.first_token_seconds = round(prefilled + rest, 4)
            clock.skip()
        generator = BatchGenerator(
            self.model,
            stop_tokens=[[stop] for stop in self.stops],
            max_tokens=sampling.max_tokens,
            completion_batch_size=self.batch,
            prefill_batch_size=self.batch,
        )
        start = self._start(cache)
        waiting = deque(
            _Writing(question, prompt[prefix:], len(prompt), _sampler(sampling, text))
            for question, prompt, text in zip(questions, prompts, texts, strict=True)
        )
        writing: dict[int, _Writing] = {}
        with progress.bar(label, len(waiting), "queries") as bar:
            while writing or waiting:
                self._admit(generator, waiting, writing, start)
                ended = self._step(generator, writing, sampling, clock)
                for reply in ended:
                    keep(*reply)
                # Together: after the first of a batch that ends at once, what is left would look endless.
                bar.advance(len(ended))
        generator.close()

    def _admit(
        self,
        generator: BatchGenerator,
        waiting: deque[_Writing],
        writing: dict[int, _Writing],
        start: list[Any] | None,
    ) -> None:
        """Fill the places of replies that ended, some at a time: whoever joins makes all caches move."""
        free = min(self.batch - len(writing), len(waiting))
        if not free or (writing and free < min(len(waiting), self.batch // 4)):
            return
        joining = [waiting.popleft() for _ in range(free)]
        uids = generator.insert(
            [one.prompt for one in joining],
            caches=[start] * free if start else None,
            samplers=[one.sampler for one in joining],
        )
        writing.update(zip(uids, joining, strict=True))

    def _step(
        self, generator: BatchGenerator, writing: dict[int, _Writing], sampling: Sampling, clock: WorkClock
    ) -> list[tuple[Question, RawReply]]:
        """One token for each reply in work; returns the replies that ended with it."""
        in_work = [current.question.id for current in writing.values()]
        responses = generator.next_generated()
        clock.tick(in_work)
        ended = []
        for response in responses:
            current = writing[response.uid]
            current.tokens.append(response.token)
            finish = response.finish_reason
            may_stop = sampling.stop_at_call and not current.question.whole
            if finish is None and may_stop and self._has_call(current.tokens):
                generator.remove([response.uid])
                finish = "call"
            if finish is not None:
                del writing[response.uid]
                ended.append((current.question, self._reply(current, finish, clock)))
        return ended

    def _prefill(self, tokens: list[int]) -> list[Any] | None:
        """The model's cache after the shared prefix; None when its layers cannot share one."""
        cache: list[Any] = make_prompt_cache(self.model)
        if not tokens or not all(type(layer) is KVCache for layer in cache):
            return None
        self.model(mx.array([tokens]), cache=cache)
        mx.eval([layer.state for layer in cache])
        return cache

    def _start(self, cache: list[Any] | None) -> list[Any] | None:
        """Where each prompt starts: behind the prefix, kept once if the model's attention can find it."""
        if cache is None or not cpu.sees_prefixes(self.model):
            return cache
        return [SharedPrefix(*layer.keys_and_values()) for layer in cache]

    def _time_first_token(self, rest: list[int], cache: list[Any] | None) -> float:
        """Seconds until the first token of one prompt alone, from the end of the shared prefix on."""
        own: list[Any] = make_prompt_cache(self.model)
        for layer, shared in zip(own, cache or (), strict=bool(cache)):
            layer.state = shared.state
        started = time.perf_counter()
        mx.eval(mx.argmax(self.model(mx.array([rest]), cache=own)[:, -1], axis=-1))
        return time.perf_counter() - started

    def _has_call(self, tokens: list[int]) -> bool:
        """Whether the last token completed a call that reads strictly."""
        mark = CALL_ENDS[self.dialect]
        if mark not in self.tokenizer.decode(tokens[-8:], skip_special_tokens=False):
            return False
        reading = parse_reply(self.tokenizer.decode(tokens, skip_special_tokens=False), self.dialect)
        return bool(reading.calls) and not reading.problems

    def _reply(self, done: _Writing, finish: str, clock: WorkClock) -> RawReply:
        kept = done.tokens[:-1] if finish == "stop" else done.tokens
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        return RawReply.model_validate(
            {
                "id": done.question.id,
                "text": text,
                "tokens": len(done.tokens),
                "finish": finish,
                "seconds": round(clock.parts[done.question.id], 4),
                "prompt_tokens": done.prompt_tokens,
            }
        )


@dataclass
class _Writing:
    """A reply in the making; `prompt` is what follows the shared prefix."""

    question: Question
    prompt: list[int]
    prompt_tokens: int
    sampler: Callable[[mx.array], mx.array] | None
    tokens: list[int] = field(default_factory=list)


def _sampler(sampling: Sampling, prompt: str) -> Callable[[mx.array], mx.array] | None:
    """Draws tokens from logits (1, V), the same for a prompt and a sample whatever else is in the batch.

    None takes the most likely token, for the whole batch together.
    """
    if not sampling.temperature:
        return None
    digest = hashlib.sha256(f"{sampling.sample}\0{prompt}".encode()).digest()
    key = mx.random.key(int.from_bytes(digest[:4], "big"))

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(logprobs / sampling.temperature, key=now)

    return draw


def write_prompt(question: Question, tokenizer: Tokenizer) -> str:
    """The text of a prompt. Raises StageError when the chat template refuses it."""
    try:
        return render_row(question.row, tokenizer, prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError) as error:  # transformers checks the tools itself
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise StageError(
            f"the chat template refuses query {question.id} ({reason}): name another one with "
            "--chat-template, or leave the query out of its suite"
        ) from None


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, at least one left over for each."""
    length = min(len(p) for p in prompts) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return length
