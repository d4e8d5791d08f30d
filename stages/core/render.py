"""Rows as the target's own chat template writes them, and which tokens are the assistant's.

The spans are found in the text that is trained on, never by counting tokens of a shorter render:
some templates rewrite earlier turns, and a tokenizer may merge across a cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from stages.core.dialects import parse_any
from stages.core.errors import StageError
from stages.core.tokenizer import Tokenizer

_PROBE = [
    {"role": "system", "content": "s0"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]


@dataclass(frozen=True)
class Turns:
    """How a template opens and closes an assistant's turn, as text."""

    opening: str
    closing: str
    given: str = ""
    """What a generation prompt writes behind the opening, such as the start of a thought: not the model's."""


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    `supervised[i]` says whether token i is the assistant's, and `calls[i]` which of the row's turns
    with a call it writes (counted from 0): that turn's calls and its end, not the prose before them.
    `calls[i]` is -1 for every other token.
    """

    tokens: list[int]
    supervised: list[bool]
    calls: list[int]


def render_row(row: Mapping[str, Any], tokenizer: Tokenizer, *, prompt: bool = False) -> str:
    """The text of a row. A `{"text"}` row is already text; `prompt` opens the assistant's turn.

    Raises jinja2's TemplateError when the template refuses the row.
    """
    if "text" in row:
        return str(row["text"])
    return _apply(tokenizer, row["messages"], row.get("tools") or None, prompt=prompt)


def _apply(tokenizer: Tokenizer, messages: Any, tools: Any = None, *, prompt: bool = False) -> str:
    text: str = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt
    )
    return text


def encode_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of rendered text; nothing is added, since the template has written it all."""
    return encode_texts([text], tokenizer)[0]


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of several texts, at least one."""
    # What is too long is said by who asks, and not in the library's words.
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def find_turns(tokenizer: Tokenizer) -> Turns:
    """Learn from the template itself how an assistant's turn opens and closes.

    Raises StageError when the template writes no generation prompt or no end of turn.
    """
    try:
        asked = _apply(tokenizer, _PROBE[:2])
        prompted = _apply(tokenizer, _PROBE[:2], prompt=True)
        answered = _apply(tokenizer, _PROBE)
    except TemplateError as error:
        raise StageError(
            f"the chat template refuses a system, a user and an assistant turn: {error}"
        ) from None
    prompt = prompted[len(asked) :] if prompted.startswith(asked) else ""
    # A prompt may go on with a thought that earlier turns no longer have, or never had.
    opening = _common_marks(prompt, answered[len(asked) :]) if answered.startswith(asked) else prompt
    after_last = answered.rsplit("a2", 1)[-1]
    after_first = answered.split("a1", 1)[-1] if "a1" in answered else ""
    closing = _common_marks(after_last, after_first).rstrip("\n") or after_last.rstrip("\n")
    if not opening or not closing:
        raise StageError(
            "the chat template marks no start or no end of an assistant's turn: pass another template"
        )
    return Turns(opening, closing, prompt.removeprefix(opening))


def encode_row(row: Mapping[str, Any], tokenizer: Tokenizer, turns: Turns) -> Encoded:
    """Tokens of a row, supervised where the assistant speaks: its words, its calls, its end token.

    Raises ValueError where the template's text does not have a turn of its own for every one in the row, or a
    turn would end within what the assistant says.
    """
    text = render_row(row, tokenizer).rstrip("\n")
    spans = assistant_spans(text, turns)
    _require_all_turns(row, spans, turns)
    written = [_call_start(text[start:end].removesuffix(turns.closing)) for start, end in spans]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    supervised, calls, span = [], [], 0
    for start, end in encoding["offset_mapping"]:
        while span < len(spans) and start >= spans[span][1]:
            span += 1
        spoken = span < len(spans) and spans[span][0] <= start and end > start
        calling = spoken and (at := written[span]) is not None and start >= spans[span][0] + at
        supervised.append(spoken)
        calls.append(sum(at is not None for at in written[:span]) if calling else -1)
    return Encoded(list(encoding["input_ids"]), supervised, calls)


def _require_all_turns(row: Mapping[str, Any], spans: Sequence[tuple[int, int]], turns: Turns) -> None:
    """Else a turn would go unlearned, or a tool's or user's text be learned, and nobody would see it."""
    if "text" in row:
        return
    spoken = [message for message in row["messages"] if message["role"] == "assistant"]
    if len(spans) != len(spoken):
        raise ValueError(
            f"it writes {len(spoken)} assistant's turns as {len(spans)}, since it joins some or a text holds "
            "its marks: remove the row, or take another --chat-template"
        )
    if any(turns.closing in text for message in spoken for text in _list_texts(message)):
        raise ValueError(
            f"an assistant's words or arguments hold {turns.closing}, with which it ends a turn, so half of "
            "them would be learned: remove the row, or take another --chat-template"
        )


def _list_texts(value: Any) -> list[str]:
    """All texts in a JSON value, keys among them."""
    if isinstance(value, Mapping):
        return [text for pair in value.items() for one in pair for text in _list_texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _list_texts(one)]
    return [value] if isinstance(value, str) else []


def _call_start(spoken: str) -> int | None:
    """Where in an assistant's turn its calls begin, behind reasoning and prose; None without a call."""
    reply = parse_any(spoken)
    if not reply.calls:
        return None
    thought = spoken.find("</think>") + len("</think>") if reply.reasoning else 0
    said = spoken[thought:].lstrip()
    return len(spoken) - len(said[len(_common_prefix(said, reply.content)) :].lstrip())


def assistant_spans(text: str, turns: Turns) -> list[tuple[int, int]]:
    """Character ranges of what the assistant says in its turns, each with its closing mark."""
    spans, at = [], 0
    while (found := text.find(turns.opening, at)) >= 0:
        start = found + len(turns.opening)
        start += len(turns.given) if text.startswith(turns.given, start) else 0
        end = text.find(turns.closing, start)
        at = len(text) if end < 0 else end + len(turns.closing)
        spans.append((start, at))
    return spans


def _common_prefix(a: str, b: str) -> str:
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _common_marks(a: str, b: str) -> str:
    """The common prefix, less a tag that differs behind its first letters."""
    same = _common_prefix(a, b)
    return same[: same.rfind("<")] if same.rfind("<") > same.rfind(">") else same
