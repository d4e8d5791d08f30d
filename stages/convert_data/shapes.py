"""The shapes in which rows come, read into turns.

ChatML and Llama-3 text, OpenAI messages (the deprecated `function_call` too), ShareGPT
conversations, prompt and completion, instruction and output, query and answers. Calls that are
structured are read here; calls inside a text are `rows`' work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from stages.core.chat import ROLES, ToolCall
from stages.core.chatml import split_chatml
from stages.core.dialects.json_calls import NotCall, read_call, read_calls, read_value
from stages.core.dialects.literals import NotLiteral

UNDERSTOOD = (
    "text | messages | conversations | prompt, completion | instruction, output | query, answers, tools"
)

# The concrete type first: an abstract one alone takes several times as long to ask.
_OBJECT = (dict, Mapping)
_LIST = (list, Sequence)
_ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "ai", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_MESSAGE_KEYS = frozenset(
    ("role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name")
)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_LONG_INTEGER = re.compile(r"[0-9]{20}")
_LLAMA_TURN = re.compile(
    r"<\|start_header_id\|>([a-z_]+)<\|end_header_id\|>\r?\n\r?\n(.*?)<\|e(?:ot|om)_id\|>(?:\r?\n)*+",
    re.DOTALL,
)
_LLAMA_START = "<|start_header_id|>"
_LLAMA_BEGIN = "<|begin_of_text|>"
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


class SourceTurn(NamedTuple):
    """One turn as the row gives it; the text may still hold calls in some dialect."""

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    ids: tuple[str | None, ...] = ()
    """The id of each structured call, in step with `calls`."""
    answers: str | None = None
    """The id of the call that a tool's turn answers."""
    name: str | None = None
    """The tool that a tool's turn names."""


class SourceRow(NamedTuple):
    """A row's turns, what it says about tools, and what of it has no place in a conversation."""

    shape: str
    turns: list[SourceTurn]
    tools: Any = None
    """The column of tools as it is."""
    changes: tuple[str, ...] = ()


def read_row(raw: Any) -> SourceRow:
    """The turns of a row in any understood shape. Raises ValueError naming the columns seen else."""
    if not isinstance(raw, _OBJECT):
        raise ValueError("not a JSON object")
    for shape, second, known, read in _SHAPES:
        value = raw.get(shape)
        if value == [] and any(raw.get(other) for other, *_ in _SHAPES):
            continue  # a column that the rows of another source fill
        if value is not None and (second is None or raw.get(second) is not None):
            turns, changes = read(raw)
            if len(raw) == 1:
                return SourceRow(shape, turns, None, changes)
            tools = raw.get("tools", raw.get("functions"))
            return SourceRow(shape, turns, tools, (*changes, *_list_unkept(raw, known)))
    if raw.get("chosen") is not None and raw.get("rejected") is not None:
        raise ValueError("a row of preferences (chosen, rejected): give the chosen answers as messages")
    seen = ", ".join(str(key)[:40] for key in list(raw)[:12]) or "none"
    raise ValueError(f"no conversation in its columns ({seen}): understood are {UNDERSTOOD}")


def _list_unkept(raw: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [
        f"column {str(key)[:40]} not kept"
        for key, value in raw.items()
        if key not in known and value is not None and value != "" and value != []
    ]


_Read = tuple[list[SourceTurn], tuple[str, ...]]


# Text


def _read_text(raw: Mapping[str, Any]) -> _Read:
    text = raw["text"]
    if not isinstance(text, str):
        raise ValueError(f"text is {_name_kind(text)} and not text")
    return read_text(text), ()


def read_text(text: str) -> list[SourceTurn]:
    """The turns of ChatML or Llama-3 text. Raises ValueError naming the format seen else."""
    if text.startswith("<|im_start|>"):
        return split_chatml(text, SourceTurn)
    if text[:1].isspace() and text.lstrip().startswith("<|im_start|>"):
        return split_chatml(text.lstrip(), SourceTurn)
    if _LLAMA_START in text and "<|im_start|>" not in text:
        return _read_llama(text)
    if text and "<|im_start|>" not in text:
        marks = next((f"{name} ({mark})" for mark, name in _FOREIGN_MARKS.items() if mark in text), None)
        found = f"with the marks of {marks}" if marks else f"without marks of turns ({text[:30]!r})"
        raise ValueError(f"text {found}: only ChatML and Llama-3 text is read, give such rows as messages")
    return split_chatml(text, SourceTurn)


def _read_llama(text: str) -> list[SourceTurn]:
    turns: list[SourceTurn] = []
    at = len(_LLAMA_BEGIN) if text.startswith(_LLAMA_BEGIN) else 0
    while at < len(text):
        match = _LLAMA_TURN.match(text, at)
        if match is None:
            raise ValueError(f"not a Llama-3 turn at character {at}: {text[at : at + 30]!r}")
        if _LLAMA_START in match[2]:
            raise ValueError(f"a turn that starts at character {at} has no <|eot_id|>")
        turns.append(SourceTurn(_read_role(match[1], len(turns)), match[2]))
        at = match.end()
    return turns


# Messages and conversations


def _read_messages(raw: Mapping[str, Any]) -> _Read:
    turns, changes = _read_list(raw["messages"], "messages", "role", "content")
    return [*_read_system(raw, turns), *turns], changes


def _read_conversations(raw: Mapping[str, Any]) -> _Read:
    turns, changes = _read_list(raw["conversations"], "conversations", "from", "value")
    return [*_read_system(raw, turns), *turns], changes


def _read_system(raw: Mapping[str, Any], turns: Sequence[SourceTurn]) -> list[SourceTurn]:
    """The system text that a column of its own gives."""
    system = raw.get("system")
    if not system:
        return []
    if not isinstance(system, str):
        raise ValueError(f"system is {_name_kind(system)} and not text")
    if any(turn.role == "system" for turn in turns):
        raise ValueError("a system text both in its own column and among the turns")
    return [SourceTurn("system", system)]


def _load_list(value: Any, said: str) -> Any:
    """A list, or the one in a JSON text. Raises ValueError that begins with what is `said` of it."""
    if isinstance(value, str):
        try:
            value = load_json(value)
        except ValueError:
            raise ValueError(f"{said} text and no JSON list") from None
    if not isinstance(value, _LIST) or isinstance(value, str | bytes):
        raise ValueError(f"{said} {_name_kind(value)} and no list")
    return value


def load_json(text: str) -> Any:
    """A JSON text's value, its integers to the last digit. Raises ValueError when it is none."""
    if _LONG_INTEGER.search(text) is None:
        return orjson.loads(text)
    try:
        return json.loads(text)  # orjson makes a float of what is beyond 64 bits
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_list(value: Any, column: str, role: str, content: str) -> _Read:
    value = _load_list(value, f"{column} is")
    if not value:
        raise ValueError(f"no {column}")
    changes: dict[str, None] = {}
    turns = [_read_message(item, number, role, content, changes) for number, item in enumerate(value)]
    return turns, tuple(changes)


def _read_message(
    data: Any, number: int, role_key: str, content_key: str, changes: dict[str, None]
) -> SourceTurn:
    if not isinstance(data, _OBJECT):
        raise ValueError(f"message {number} is {_name_kind(data)} and no object")
    if role_key not in data:
        role_key, content_key = ("from", "value") if "from" in data else ("role", "content")
    role = _read_role(data.get(role_key), number)
    text = data.get(content_key)
    if type(text) is not str:
        text = _join_parts(text, number, changes)
    if len(data) > 2 or content_key not in data:
        return _read_rich(data, number, role, text, changes)
    if role == "call":
        return _read_call_turn(text, number)
    return SourceTurn(role, text)


def _read_rich(
    data: Mapping[str, Any], number: int, role: str, text: str, changes: dict[str, None]
) -> SourceTurn:
    """A message with more keys than role and content."""
    if not _MESSAGE_KEYS.issuperset(data):
        text = _read_more(data, role, text, changes)
    if role == "call":
        return _read_call_turn(text, number)
    given = data.get("tool_calls")
    calls, ids = _read_tool_calls(given, number) if given else ((), ())
    if data.get("function_call"):
        calls, ids = (*calls, _read_structured(data["function_call"], number)), (*ids, None)
        changes["function_call made a tool call"] = None
    if calls and role != "assistant":
        raise ValueError(f"message {number} has tool calls and is not the assistant's")
    answers, name = data.get("tool_call_id"), data.get("name")
    if answers is not None and not isinstance(answers, str):
        answers = str(answers)
    if name is not None and role == "tool" and not isinstance(name, str):
        raise ValueError(f"message {number}: its name is {_name_kind(name)} and not text")
    if name and role != "tool":
        changes["name of a message not kept"] = None
    return SourceTurn(role, text, calls, ids, answers or None, name if role == "tool" else None)


def _read_more(data: Mapping[str, Any], role: str, text: str, changes: dict[str, None]) -> str:
    """The text with the reasoning that stands beside it; other keys are noted as not kept."""
    for key, value in data.items():
        if key in _REASONING_KEYS and role == "assistant" and isinstance(value, str) and value.strip():
            if "</think>" not in text:
                text = f"<think>\n{value.strip()}\n</think>\n\n{text}"
        elif key not in _MESSAGE_KEYS and value not in (None, "", [], {}):
            changes[f"{str(key)[:40]} of a message not kept"] = None
    return text


def _read_role(role: Any, number: int) -> str:
    known = _ROLE_NAMES.get(role) if isinstance(role, str) else None
    if known is None and isinstance(role, str):
        known = _ROLE_NAMES.get(role.strip().lower().replace("-", "_"))
    if known is None:
        raise ValueError(f"message {number}: unknown role {str(role)[:40]!r}: known are {', '.join(ROLES)}")
    return known


def _join_parts(content: Any, number: int, changes: dict[str, None]) -> str:
    """The text of content that is missing or comes in parts. Raises ValueError for other media."""
    if content is None:
        return ""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"message {number}: content must be text, and it is {_name_kind(content)}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(part, Mapping) and part.get("type", "text") not in (
            "text",
            "input_text",
            "output_text",
        ):
            raise ValueError(
                f"message {number} has a part of type {str(part['type'])[:40]!r}: only text is read"
            )
        if not isinstance(text, str):
            raise ValueError(f"message {number} has a part without text")
        texts.append(text)
    if texts:
        changes["parts of a content joined"] = None
    return "\n".join(texts)


def _read_tool_calls(given: Any, number: int) -> tuple[tuple[ToolCall, ...], tuple[str | None, ...]]:
    given = _load_list(given, f"message {number}: tool_calls are")
    ids = [str(call["id"]) if isinstance(call, _OBJECT) and call.get("id") else None for call in given]
    return tuple([_read_structured(call, number) for call in given]), tuple(ids)


def _read_structured(call: Any, number: int) -> ToolCall:
    """A call in OpenAI shape, with `arguments` as an object or as JSON text."""
    function = call.get("function", call) if isinstance(call, _OBJECT) else None
    if isinstance(function, _OBJECT):
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = _decode_arguments(arguments, name, number)
        if isinstance(arguments, dict) and isinstance(name, str) and name:
            return ToolCall(name, arguments)
    try:
        return read_call(call)
    except NotCall as error:
        raise ValueError(f"message {number}: a tool call is no call: {error}") from None


def _decode_arguments(text: str, name: Any, number: int) -> Any:
    try:
        return load_json(text)
    except ValueError as error:
        reason = str(error)
    try:
        value, end, _ = read_value(text, len(text) - len(text.lstrip()))
    except NotLiteral:
        end = -1
    if end == -1 or text[end:].strip():
        raise ValueError(f"message {number}: the arguments of {name!r} are no JSON: {reason}")
    return value


def _read_call_turn(text: str, number: int) -> SourceTurn:
    """The turn of a `function_call` role: one call as JSON, or a list of them."""
    start = len(text) - len(text.lstrip())
    try:
        value, end, _ = read_value(text, start)
    except NotLiteral as error:
        raise ValueError(f"message {number}: a call that is no JSON: {error}") from None
    calls, wrong = read_calls(value)
    if wrong or text[end:].strip():
        raise ValueError(f"message {number}: a call turn that is no call: {(wrong or ['text behind it'])[0]}")
    return SourceTurn("assistant", "", tuple(calls), (None,) * len(calls))


# Columns for question and answer


def _read_prompt(raw: Mapping[str, Any]) -> _Read:
    prompt, completion = raw["prompt"], raw["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if "<|im_start|>" in prompt or _LLAMA_START in prompt:
            return read_text(_close_last(prompt + completion)), ()
        turns = [SourceTurn("user", prompt), SourceTurn("assistant", completion)]
        return [*_read_system(raw, turns), *turns], ()
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion must both be text or both be messages")
    turns, changes = _read_list(prompt, "prompt", "role", "content")
    more, further = _read_list(completion, "completion", "role", "content")
    turns = [*turns, *more]
    return [*_read_system(raw, turns), *turns], (*changes, *further)


def _close_last(text: str) -> str:
    """A text whose last turn has its end mark: a completion is often stored without it."""
    for start, close in (("<|im_start|>", "<|im_end|>"), (_LLAMA_START, "<|eot_id|>")):
        if start in text and text.rfind(close) < text.rfind(start):
            return text + close
    return text


def _read_instruction(raw: Mapping[str, Any]) -> _Read:
    turns: list[SourceTurn] = []
    for pair in raw.get("history") or ():
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError("history must hold pairs of a question and an answer")
        turns += [
            SourceTurn("user", _as_text(pair[0], "history")),
            SourceTurn("assistant", _as_text(pair[1], "history")),
        ]
    question = _as_text(raw["instruction"], "instruction")
    if more := _as_text(raw.get("input") or "", "input"):
        question = f"{question}\n{more}"
    turns += [SourceTurn("user", question), SourceTurn("assistant", _as_text(raw["output"], "output"))]
    return [*_read_system(raw, turns), *turns], ()


def _read_query(raw: Mapping[str, Any]) -> _Read:
    """A question, and the calls that answer it as JSON."""
    answers = raw["answers"]
    if isinstance(answers, str):
        if not answers.strip():
            raise ValueError("answers are empty")
        answer = _read_call_turn(answers, 1)
    else:
        calls, ids = _read_tool_calls(answers, 1)
        answer = SourceTurn("assistant", "", calls, ids)
    turns = [SourceTurn("user", _as_text(raw["query"], "query")), answer]
    return [*_read_system(raw, turns), *turns], ()


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} is {_name_kind(value)} and not text")
    return value


def _name_kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int | float):
        return "a number"
    return (
        "text"
        if isinstance(value, str)
        else "a list"
        if isinstance(value, Sequence)
        else type(value).__name__
    )


_Shape = tuple[str, str | None, frozenset[str], Callable[[Mapping[str, Any]], _Read]]


def _shape(needed: str, optional: str, read: Callable[[Mapping[str, Any]], _Read]) -> _Shape:
    """A shape by the one or two columns that it needs, and by others that it understands."""
    first, second = (*needed.split(), None)[:2]
    known = frozenset((*needed.split(), *optional.split(), "tools", "functions"))
    return str(first), second, known, read


_SHAPES: tuple[_Shape, ...] = (
    _shape("messages", "system", _read_messages),
    _shape("conversations", "system", _read_conversations),
    _shape("text", "", _read_text),
    _shape("prompt completion", "system", _read_prompt),
    _shape("instruction output", "input system history", _read_instruction),
    _shape("query answers", "system", _read_query),
)
