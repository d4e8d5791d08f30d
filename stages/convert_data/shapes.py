"""The shapes in which rows come, by their columns.

ChatML and Llama-3 text, OpenAI messages (the deprecated `function_call` too), ShareGPT
conversations, prompt and completion, instruction and output, query and answers. Calls that are
structured are read here and in `messages`; calls inside a text are the work of a `Draft`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stages.convert_data.messages import (
    OBJECT,
    ROLE_NAMES,
    SourceTurn,
    Turns,
    holds_nothing,
    name_kind,
    read_call_turn,
    read_messages,
    read_tool_calls,
    read_turn,
)
from stages.core.chat import ROLES
from stages.core.chatml import split_chatml
from stages.core.definitions import read_definitions

UNDERSTOOD = (
    "text | messages | conversations | prompt, completion | instruction, output | query, answers, tools"
)

_TOOLS = ("tools", "functions")
_LLAMA_TURN = re.compile(
    r"<\|start_header_id\|>([a-z_]+)<\|end_header_id\|>\r?\n\r?\n(.*?)<\|e(?:ot|om)_id\|>(?:\r?\n)*+",
    re.DOTALL,
)
_LLAMA_START = "<|start_header_id|>"
_LLAMA_BEGIN = "<|begin_of_text|>"
_LLAMA_END = "<|end_of_text|>"  # what many trainers append to a row
_FOREIGN_MARKS = {
    "[INST]": "Mistral or Llama 2",
    "[/INST]": "Mistral or Llama 2",
    "<start_of_turn>": "Gemma",
    "<|start|>": "Harmony",
    "<|user|>": "Zephyr or Phi",
    "<|assistant|>": "Zephyr or Phi",
    "<｜User｜>": "DeepSeek",
    "<|start_of_role|>": "Granite",
    "<|START_OF_TURN_TOKEN|>": "Command R",
    "### Instruction": "Alpaca",
    "USER:": "Vicuna or Glaive",
    "Human:": "a plain transcript",
}


class SourceRow(NamedTuple):
    """A row's turns, what it says about tools, and what of it has no place in a conversation."""

    shape: str
    turns: list[SourceTurn]
    tools: Any = None
    """The column of tools as it is."""
    changes: tuple[str, ...] = ()


def read_row(raw: Any) -> SourceRow:
    """The turns of a row in any understood shape. Raises ValueError naming the columns seen else."""
    if not isinstance(raw, OBJECT):
        raise ValueError("not a JSON object")
    for shape, second, known, read in SHAPES:
        value = raw.get(shape)
        if value is None or (not value and any(_is_filled(raw, one) for one in SHAPES)):
            continue  # a column that the rows of another source fill may be empty
        if second is None or raw.get(second) is not None:
            turns, changes = read(raw)
            if len(raw) == 1:
                return SourceRow(shape, turns, None, changes)
            tools, unused = _choose_tools(raw)
            return SourceRow(shape, turns, tools, (*changes, *_list_unkept(raw, known), *unused))
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        raise ValueError("a row of preferences (chosen, rejected): give the chosen answers as messages")
    filled = [key for key, value in raw.items() if value is not None]
    if filled and all(key in _TOOLS for key in filled):
        raise ValueError(
            "tools and no conversation: definitions for all rows are given with --tools, rows need "
            f"{UNDERSTOOD} as well"
        )
    seen = ", ".join(str(key)[:40] for key in list(raw)[:12]) or "none"
    for first, second, *_ in SHAPES:
        if second is not None and raw.get(first) and second in raw:
            raise ValueError(f"{second} is null, and {first} alone is no conversation")
    raise ValueError(f"no conversation in its columns ({seen}): understood are {UNDERSTOOD}")


def _is_filled(raw: Mapping[str, Any], shape: _Shape) -> bool:
    first, second, *_ = shape
    return bool(raw.get(first)) and (second is None or raw.get(second) is not None)


def _list_unkept(raw: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [
        f"column {str(key)[:40]} not kept"
        for key, value in raw.items()
        if key not in known and value is not None and value != "" and value != []
    ]


def _choose_tools(raw: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The column of tools that is filled, and what the card says where both are and differ."""
    tools, functions = raw.get("tools"), raw.get("functions")
    if holds_nothing(functions):
        return tools, ()
    if holds_nothing(tools):
        return functions, ()
    try:
        same = read_definitions(tools).tools == read_definitions(functions).tools
    except ValueError:  # said where the tools are read
        same = False
    return tools, () if same else ("column functions not kept",)


# Text


def _read_text(raw: Mapping[str, Any]) -> Turns:
    text = raw["text"]
    if not isinstance(text, str):
        raise ValueError(f"text is {name_kind(text)} and not text")
    return read_text(text)


def read_text(text: str) -> Turns:
    """The turns of ChatML or Llama-3 text. Raises ValueError naming the format seen else."""
    if text.startswith("<|im_start|>"):
        return _read_chatml(text)
    if text[:1].isspace() and text.lstrip().startswith("<|im_start|>"):
        return _read_chatml(text.lstrip())
    if _LLAMA_START in text and "<|im_start|>" not in text:
        return _read_llama(text)
    if text and "<|im_start|>" not in text:
        marks = next((f"{name} ({mark})" for mark, name in _FOREIGN_MARKS.items() if mark in text), None)
        found = f"with the marks of {marks}" if marks else f"without marks of turns ({text[:30]!r})"
        raise ValueError(f"text {found}: only ChatML and Llama-3 text is read, give such rows as messages")
    return _read_chatml(text)


def _read_chatml(text: str) -> Turns:
    turns = split_chatml(text, SourceTurn, ROLE_NAMES)
    if all(turn.role in ROLES for turn in turns):
        return turns, ()
    changes: dict[str, None] = {}
    return [read_turn(turn.role, turn.text, n, changes) for n, turn in enumerate(turns)], tuple(changes)


def _read_llama(text: str) -> Turns:
    changes: dict[str, None] = {}
    turns: list[SourceTurn] = []
    at = len(_LLAMA_BEGIN) if text.startswith(_LLAMA_BEGIN) else 0
    end = len(text.rstrip().removesuffix(_LLAMA_END)) if _LLAMA_END in text[-40:] else len(text)
    while at < end:
        match = _LLAMA_TURN.match(text, at)
        if match is None:
            raise ValueError(f"not a Llama-3 turn at character {at}: {text[at : at + 30]!r}")
        if _LLAMA_START in match[2]:
            raise ValueError(f"a turn that starts at character {at} has no <|eot_id|>")
        turns.append(read_turn(match[1], match[2], len(turns), changes))
        at = match.end()
    return turns, tuple(changes)


# Messages and conversations


def _read_openai(raw: Mapping[str, Any]) -> Turns:
    turns, changes = read_messages(raw["messages"], "messages", "role", "content")
    return [*_read_system(raw, turns), *turns], changes


def _read_sharegpt(raw: Mapping[str, Any]) -> Turns:
    turns, changes = read_messages(raw["conversations"], "conversations", "from", "value")
    return [*_read_system(raw, turns), *turns], changes


def _read_system(raw: Mapping[str, Any], turns: Sequence[SourceTurn]) -> list[SourceTurn]:
    """The system text that a column of its own gives."""
    system = raw.get("system")
    if not system:
        return []
    if not isinstance(system, str):
        raise ValueError(f"system is {name_kind(system)} and not text")
    if any(turn.role == "system" for turn in turns):
        raise ValueError("a system text both in its own column and among the turns")
    return [SourceTurn("system", system)]


# Columns for question and answer


def _read_prompt(raw: Mapping[str, Any]) -> Turns:
    prompt, completion = raw["prompt"], raw["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if holds_turns(prompt):
            turns, changes = read_text(_close_last(prompt + completion))
            return [*_read_system(raw, turns), *turns], changes
        turns = [SourceTurn("user", prompt), SourceTurn("assistant", completion)]
        return [*_read_system(raw, turns), *turns], ()
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion must both be text or both be messages")
    turns, changes = read_messages(prompt, "prompt", "role", "content")
    more, further = read_messages(completion, "completion", "role", "content")
    turns = [*turns, *more]
    return [*_read_system(raw, turns), *turns], (*changes, *further)


def holds_turns(prompt: str) -> bool:
    """Whether a prompt is text in which marks divide the turns, and not a question alone."""
    return "<|im_start|>" in prompt or _LLAMA_START in prompt


def _close_last(text: str) -> str:
    """A text whose last turn has its end mark: a completion is often stored without it."""
    for start, close in (("<|im_start|>", "<|im_end|>"), (_LLAMA_START, "<|eot_id|>")):
        if start in text and text.rfind(close) < text.rfind(start):
            return text + close
    return text


def _read_instruction(raw: Mapping[str, Any]) -> Turns:
    turns = _read_history(raw.get("history"))
    question = _as_text(raw["instruction"], "instruction")
    more = raw.get("input")
    if more is not None and (more := _as_text(more, "input")):
        question = f"{question}\n{more}"
    turns += [SourceTurn("user", question), SourceTurn("assistant", _as_text(raw["output"], "output"))]
    return [*_read_system(raw, turns), *turns], ()


def _read_history(pairs: Any) -> list[SourceTurn]:
    """The turns of earlier questions and answers. Raises ValueError for what is no list of such pairs."""
    turns: list[SourceTurn] = []
    if pairs in (None, ""):
        return turns
    if not isinstance(pairs, list):
        raise ValueError(f"history is {name_kind(pairs)} and no list of pairs of a question and an answer")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history must hold pairs of a question and an answer")
        question, answer = (_as_text(each, "a text of history") for each in pair)
        turns += [SourceTurn("user", question), SourceTurn("assistant", answer)]
    return turns


def _read_query(raw: Mapping[str, Any]) -> Turns:
    """A question, and the calls that answer it as JSON."""
    answers = raw["answers"]
    changes: dict[str, None] = {}
    if isinstance(answers, str):
        if not answers.strip():
            raise ValueError("answers are empty")
        answer = read_call_turn(answers, 1, changes)
    else:
        calls, ids = read_tool_calls(answers, 1, changes)
        answer = SourceTurn("assistant", "", calls, ids)
    turns = [SourceTurn("user", _as_text(raw["query"], "query")), answer]
    return [*_read_system(raw, turns), *turns], tuple(changes)


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} is {name_kind(value)} and not text")
    return value


_Shape = tuple[str, str | None, frozenset[str], Callable[[Mapping[str, Any]], Turns]]


def _shape(needed: str, optional: str, read: Callable[[Mapping[str, Any]], Turns]) -> _Shape:
    """A shape by the one or two columns that it needs, and by others that it understands."""
    first, second = (*needed.split(), None)[:2]
    known = frozenset((*needed.split(), *optional.split(), *_TOOLS))
    return str(first), second, known, read


SHAPES: tuple[_Shape, ...] = (
    _shape("messages", "system", _read_openai),
    _shape("conversations", "system", _read_sharegpt),
    _shape("text", "", _read_text),
    _shape("prompt completion", "system", _read_prompt),
    _shape("instruction output", "input system history", _read_instruction),
    _shape("query answers", "system", _read_query),
)
