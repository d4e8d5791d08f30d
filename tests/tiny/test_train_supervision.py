"""What is learned of a row: every turn of the assistant, its calls and ends, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.audit.rows import read_row
from stages.core.errors import StageError
from stages.core.preset import load_preset
from stages.core.render import Encoded, encode_row, find_turns, render_row
from stages.core.tokenizer import load_tokenizer, read_template
from stages.train.prefixes import shared_prefix
from stages.train.rows import load_rows, make_batch
from tests.models import BuiltOnce
from tests.pipeline import Pipeline
from tests.training import (
    encode_pipeline_rows,
)

CALL = {"type": "function", "function": {"name": "execute_code", "arguments": {"code": "print(1 < 2)\n"}}}


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "Is 1 less than 2? Say <|im_end|> or assistant."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "True\n"},
    {"role": "assistant", "content": "Yes, it is.\n\nReally 🙂"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You're welcome."},
]


WRITTEN_CALL = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "print(1 < 2)\\n"}}\n</tool_call>'


TURN = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


def supervised_runs(row: Encoded, tokenizer: Any) -> list[str]:
    """The texts of the unbroken stretches of supervised tokens."""
    stretches: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(row.tokens, row.supervised, strict=True)):
        if learned and (i == 0 or not row.supervised[i - 1]):
            stretches.append([])
        if learned:
            stretches[-1].append(token)
    return [tokenizer.decode(stretch, skip_special_tokens=False) for stretch in stretches]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "smol"])
def test_every_assistant_turn_is_supervised_with_its_call_and_end_token(name: str, built: BuiltOnce) -> None:
    if name == "smol":
        tokenizer = load_tokenizer(built.model("llama"), load_preset("smol").model)
        assert tokenizer.chat_template == read_template("chatml_hermes")
    else:
        tokenizer = load_tokenizer(built.tokenizer("qwen2.5" if name == "qwen2.5" else "qwen3"))
    row = encode_row({"messages": CONVERSATION}, tokenizer, find_turns(tokenizer))
    # Qwen3's template puts an empty thought before the answer to the last question; the model says it.
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    expected = [
        f"{WRITTEN_CALL}<|im_end|>",
        "Yes, it is.\n\nReally 🙂<|im_end|>",
        f"{thought}You're welcome.<|im_end|>",
    ]
    assert supervised_runs(row, tokenizer) == expected
    assert row.tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.supervised[-1]
    assert tokenizer.decode(row.tokens) == render_row({"messages": CONVERSATION}, tokenizer).rstrip("\n")


# The prompt opens a thought, which the last turn alone has in a conversation.
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


# A tool's result, and the answer to it, stand in the turn that called.
JOINED = """{% for m in messages %}{% if m.role == 'tool' %}<result>{{ m.content }}</result>{% else %}
{% if not (m.role == 'assistant' and loop.previtem.role == 'tool') %}<|im_start|>{{ m.role }}
{% endif %}{{ m.content }}{% if not m.tool_calls %}<|im_end|>{% endif %}{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_prompt_that_opens_a_thought_hides_no_turn(built: BuiltOnce) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen3"))
    tokenizer.chat_template = THINKING
    row = encode_row({"messages": CONVERSATION}, tokenizer, find_turns(tokenizer))
    call, answer, last = supervised_runs(row, tokenizer)
    assert call.startswith("<tool_call>")
    assert call.endswith("</tool_call><|im_end|>")
    assert answer == "Yes, it is.\n\nReally 🙂<|im_end|>"
    assert last == "</think>\n\nYou're welcome.<|im_end|>", "what the prompt gives is not learned"


@pytest.mark.parametrize(
    ("template", "question", "counts"),
    [
        (JOINED, "Is it?", "3 assistant's turns as 2"),
        (None, "<|im_start|>assistant\n", "3 assistant's turns as 4"),
    ],
)
def test_a_row_whose_turns_cannot_be_told_apart_is_refused(
    template: str | None, question: str, counts: str, built: BuiltOnce, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    tokenizer.chat_template = template or tokenizer.chat_template
    messages = [CONVERSATION[0], {"role": "user", "content": question}, *CONVERSATION[2:]]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    refusal = rf"train\.jsonl:1 is refused by the chat template: it writes {counts}, since .*--chat-template$"
    with pytest.raises(StageError, match=refusal):
        load_rows(tmp_path, "train", tokenizer, find_turns(tokenizer), 1024)
    row = read_row("train", 1, {"messages": messages}, tokenizer, find_turns(tokenizer))
    assert row.refused.startswith(f"it writes {counts}"), "and the audit says so"


@pytest.mark.parametrize("place", ["words", "arguments"])
def test_a_row_whose_turn_would_end_in_the_middle_is_refused(
    place: str, built: BuiltOnce, tmp_path: Path
) -> None:
    """Half of a call and a stop behind it would be learned. In a user's words the mark does no harm."""
    code = {"code": "print(text.split('<|im_end|>'))"}
    call = CALL | {"function": {"name": "execute_code", "arguments": {"options": [code]}}}
    spoken = {"content": "It ends with <|im_end|> there."} if place == "words" else {"tool_calls": [call]}
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": "", **spoken}, *CONVERSATION[3:]]
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    turns = find_turns(tokenizer)
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    refusal = r"train\.jsonl:1 is refused .*: an assistant's words or arguments hold <\|im_end\|>, with"
    with pytest.raises(StageError, match=refusal):
        load_rows(tmp_path, "train", tokenizer, turns, 1024)
    row = read_row("train", 1, {"messages": messages}, tokenizer, turns)
    assert row.refused.startswith("an assistant's words or arguments hold <|im_end|>"), (
        "and the audit says so"
    )


def test_text_rows_of_the_flawed_arm_are_supervised_as_they_are(
    corpus_part: Path, qwen2_run: Pipeline
) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    rows = [json.loads(line) for line in (corpus_part / "train.jsonl").read_text("utf-8").splitlines()]
    turns = find_turns(tokenizer)
    counts = set()
    for row in rows:
        expected = TURN.findall(row["text"])
        assert supervised_runs(encode_row(row, tokenizer, turns), tokenizer) == expected
        counts.add(len(expected))
    assert counts == {1, 2}
    assert sum("<function=" in row["text"] for row in rows) >= 3


def test_converted_rows_are_supervised_turn_by_turn(qwen2_run: Pipeline) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    turns = find_turns(tokenizer)
    lines = (qwen2_run.folder("convert_data") / "train.jsonl").read_text("utf-8").splitlines()
    for line in lines:
        text = render_row(json.loads(line), tokenizer)
        encoded = encode_row(json.loads(line), tokenizer, turns)
        assert supervised_runs(encoded, tokenizer) == TURN.findall(text)
    assert sum(line.count('"tool_calls"') for line in lines) >= 6


def test_the_tokens_of_calls_are_the_call_and_its_end(qwen2_run: Pipeline) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    texts = []
    for row in encode_pipeline_rows(qwen2_run):
        for turn in range(max(row.calls) + 1):
            tokens = [t for t, c in zip(row.tokens, row.calls, strict=True) if c == turn]
            texts.append(tokenizer.decode(tokens))
        assert all(s for s, c in zip(row.supervised, row.calls, strict=True) if c >= 0)
    assert len(texts) >= 6
    for text in texts:
        assert text.lstrip().startswith('<tool_call>\n{"name"')
        assert text.endswith("</tool_call><|im_end|>")
    assert any(max(row.calls) < 0 for row in encode_pipeline_rows(qwen2_run))


def test_batches_hold_every_supervised_token_once(qwen2_run: Pipeline) -> None:
    rows = encode_pipeline_rows(qwen2_run)
    size = len(shared_prefix(rows))
    assert size > 10
    assert all(row.tokens[:size] == rows[0].tokens[:size] for row in rows)
    batch = make_batch(rows[:3], size)
    learned = [t for row in rows[:3] for t, s in zip(row.tokens, row.supervised, strict=True) if s]
    assert batch.targets.tolist() == learned
    assert batch.tokens == sum(len(row.tokens) for row in rows[:3])
    # The token before each supervised one is the input from which it is predicted.
    before = [t for row in rows[:3] for t, s in zip(row.tokens, row.supervised[1:], strict=False) if s]
    assert batch.inputs.reshape(-1)[batch.where].tolist() == before
