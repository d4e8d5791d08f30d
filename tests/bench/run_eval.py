"""One side of the evaluation benchmark: `ours|stock|torch MODEL QUERIES OUT`; writes its replies into OUT."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.core.fixes import FAIR
from stages.core.platform import peak_memory_gb
from stages.core.preset import load_preset
from stages.core.prompts import query_row
from stages.core.render import encode_text, render_row
from stages.core.suite import load_suite
from stages.eval.engines import Question, Sampling

PRESET = load_preset("smol")
LIMIT = PRESET.eval.max_tokens


def list_questions(queries: int) -> list[Question]:
    """So many queries evenly over `extended`, direct ones among them, as the fair arm asks them."""
    every = load_suite("extended").queries
    chosen = [every[i * len(every) // queries] for i in range(queries)]
    return [Question(query.id, query_row(query.query, PRESET.model, FAIR)) for query in chosen]


def answer_ours(model: Path, questions: Sequence[Question]) -> Iterator[str]:
    """Batched, with the shared prefix computed once."""
    from stages.eval.engines.local import LocalEngine

    engine = LocalEngine(model, "", PRESET.eval.completion_batch, PRESET.model.dialect)
    engine.load()
    yield ""
    replies: dict[str, str] = {}
    engine.answer(questions, Sampling(LIMIT), lambda q, reply: replies.update({q.id: reply.text}), "bench")
    yield from (replies[question.id] for question in questions)


def answer_stock(model: Path, questions: Sequence[Question]) -> Iterator[str]:
    """A loop over mlx_lm.generate."""
    from mlx_lm import generate, load

    loaded: Any = load(str(model))
    network, tokenizer = loaded
    yield ""
    for question in questions:
        text = render_row(question.row, tokenizer, prompt=True)
        prompt = encode_text(text, tokenizer._tokenizer)
        yield str(generate(network, tokenizer, prompt, max_tokens=LIMIT))


def answer_torch(model: Path, questions: Sequence[Question]) -> Iterator[str]:
    """A loop over transformers' generate, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    network = AutoModelForCausalLM.from_pretrained(str(model), local_files_only=True, dtype=torch.float32)
    stops = [network.config.eos_token_id] if isinstance(network.config.eos_token_id, int) else list(
        network.config.eos_token_id
    )  # fmt: skip
    yield ""
    for question in questions:
        prompt = encode_text(render_row(question.row, tokenizer, prompt=True), tokenizer)
        with torch.inference_mode():
            said = network.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=LIMIT,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )[0, len(prompt) :].tolist()
        kept = said[:-1] if said[-1] in stops else said
        yield tokenizer.decode(kept, skip_special_tokens=False)


SIDES = {"ours": answer_ours, "stock": answer_stock, "torch": answer_torch}


if __name__ == "__main__":
    side, folder, count, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    asked = list_questions(count)
    answers = SIDES[side](folder, asked)
    next(answers)  # the model is loaded
    started = time.perf_counter()
    replies = list(answers)
    seconds = (time.perf_counter() - started) / len(asked)
    out.write_text(json.dumps(replies), "utf-8")
    print(json.dumps({"seconds": round(seconds, 3), "peak_gb": peak_memory_gb()}))
