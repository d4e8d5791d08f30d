"""Messages in OpenAI's and ShareGPT's shape as turns, with the calls that they hold as structure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from stages.convert_data.converted import name_mended
from stages.convert_data.lines import load_once
from stages.convert_data.parts import RESULT_WRITTEN, holds_calls, is_json_result, open_parts, write_result
from stages.core.chat import ROLES, ToolCall
from stages.core.dialects.json_calls import NotCall, list_foreign_keys, read_call, read_calls, read_value
from stages.core.dialects.literals import NotLiteral, find_doubled
from stages.core.exact import is_same, load_json

# The concrete type first: an abstract one alone takes several times as long to ask.
OBJECT = (dict, Mapping)
_LIST = (list, Sequence)
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "ai", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")
_OTHER_KEYS = frozenset(("tool_calls", "function_call", "tool_call_id", "name"))
_USUAL_KEYS = frozenset(("role", "content")) | _OTHER_KEYS
_CALL_KEYS, _FUNCTION_KEYS = frozenset(("id", "type", "function")), frozenset(("name", "arguments"))
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THOUGHT = re.compile(r"\s*+(?:<think>)?+(.*?)</think>", re.DOTALL)
_NOTHING: tuple[Any, ...] = (None, "", [], {})


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


Turns = tuple[list[SourceTurn], tuple[str, ...]]
"""Turns, and what had no place in them."""


def read_messages(value: Any, column: str, role: str, content: str) -> Turns:
    """The turns of a list of messages whose keys are usually `role` and `content`.

    Calls in messages that follow each other are those of one turn. Raises ValueError, naming the column or
    the message, for what is none.
    """
    value = load_list(value, f"{column} is")
    if not value:
        raise ValueError(f"no {column}")
    changes: dict[str, None] = {}
    turns: list[SourceTurn] = []
    for turn in _read_each(value, role, content, changes):
        if turn.calls and turns and turns[-1].calls and not turn.text:
            before = turns.pop()
            turn = before._replace(calls=before.calls + turn.calls, ids=before.ids + turn.ids)
            changes["calls of messages that follow each other made one turn"] = None
        turns.append(turn)
    return turns, tuple(changes)


def _read_each(
    messages: Sequence[Any], role: str, content: str, changes: dict[str, None]
) -> Iterator[SourceTurn]:
    """The turns of messages, one or more of each."""
    for number, item in enumerate(messages):
        key = _find_key(item, _CONTENT_KEYS, content) if isinstance(item, OBJECT) else ""
        if key and holds_calls(item.get(key)):
            named = read_role(item.get(_find_key(item, _ROLE_KEYS, role)), number)
            try:
                opened = list(open_parts(item, named, key, changes))
            except ValueError as error:
                raise ValueError(f"message {number}: {error}") from None
            for one in opened:
                yield _read_message(one, number, role, content, changes)
        else:
            yield _read_message(item, number, role, content, changes)


def _read_message(
    data: Any, number: int, role_key: str, content_key: str, changes: dict[str, None]
) -> SourceTurn:
    if not isinstance(data, OBJECT):
        raise ValueError(f"message {number} is {name_kind(data)} and no object")
    role_key = _find_key(data, _ROLE_KEYS, role_key)
    content_key = _find_key(data, _CONTENT_KEYS, content_key)
    role = _note_role(data.get(role_key), number, changes)
    text = data.get(content_key)
    if type(text) is not str:
        if text is None and role != "assistant" and content_key in data:
            changes[f"null of a {'tool result' if role == 'tool' else role} made an empty text"] = None
        text = _join_parts(text, number, changes, role)
    if len(data) > 2 or data.get(content_key) is None:
        return _read_rich(data, number, role, text, (role_key, content_key), changes)
    return _read_call_message(text, number, changes) if role == "call" else SourceTurn(role, text)


def _find_key(data: Mapping[str, Any], keys: tuple[str, ...], usual: str) -> str:
    """The usual key or the first of some under which there is something, else the first that is there."""
    if data.get(usual) is not None:
        return usual
    filled = (key for key in keys if data.get(key) is not None)
    return next(filled, next((key for key in (usual, *keys) if key in data), usual))


def _read_rich(
    data: Mapping[str, Any],
    number: int,
    role: str,
    text: str,
    read: tuple[str, str],
    changes: dict[str, None],
) -> SourceTurn:
    """A message with more keys than the two for role and content that were `read`, or without content."""
    if role == "call" or not _USUAL_KEYS.issuperset(data):
        text = _read_more(data, role, text, read, changes)
    if role == "call":
        return _read_call_message(text, number, changes)
    has_calls = data.get("tool_calls") or data.get("function_call")
    calls, ids = _read_calls(data, number, changes) if has_calls else ((), ())
    if calls and role != "assistant":
        raise ValueError(f"message {number} has tool calls and is not the assistant's")
    if not (calls or text) and (read[1] not in data or (role == "assistant" and data[read[1]] is None)):
        seen = ", ".join(key for key in list(data)[:9] if data[key] is not None)
        raise ValueError(f"message {number} has neither content nor calls, only {seen}")
    answers, name = data.get("tool_call_id"), data.get("name")
    if answers is not None and not isinstance(answers, str):
        answers = str(answers)
    if name is not None and role == "tool" and not isinstance(name, str):
        raise ValueError(f"message {number}: its name is {name_kind(name)} and not text")
    if name and role != "tool":
        changes["name of a message not kept"] = None
    return SourceTurn(role, text, calls, ids, answers or None, name if role == "tool" else None)


def _read_calls(
    data: Mapping[str, Any], number: int, changes: dict[str, None]
) -> tuple[tuple[ToolCall, ...], tuple[str | None, ...]]:
    """The calls of a message and their ids, that under the deprecated key among them."""
    given, alone = data.get("tool_calls"), data.get("function_call")
    calls, ids = read_tool_calls(given, number, changes) if not holds_nothing(given) else ((), ())
    if holds_nothing(alone):
        return calls, ids
    call = _read_structured(alone, number, changes)
    if find_call(call, calls) is not None:
        changes["function_call that repeats a tool call dropped"] = None
        return calls, ids
    changes["function_call made a tool call"] = None
    return (*calls, call), (*ids, None)


def find_call(call: ToolCall, calls: Sequence[ToolCall]) -> int | None:
    """The place of the first of some calls that says the same to the letter; None where none does."""
    same = (
        n
        for n, each in enumerate(calls)
        if each.name == call.name and is_same(each.arguments, call.arguments)
    )
    return next(same, None)


def _read_more(
    data: Mapping[str, Any], role: str, text: str, read: tuple[str, str], changes: dict[str, None]
) -> str:
    """The text with the reasoning that stands beside it; other keys are noted as not kept."""
    kept = _OTHER_KEYS if role != "call" else frozenset[str]()
    for key, value in data.items():
        if key in read or key in kept or value in _NOTHING:
            continue
        if key in _ROLE_KEYS and isinstance(value, str) and ROLE_NAMES.get(value) == role:
            continue  # the same said twice
        if key in _CONTENT_KEYS and value == text:
            continue
        if key in _REASONING_KEYS and role == "assistant" and isinstance(value, str):
            if (thought := _THOUGHT.match(text)) is not None and thought[1].strip() == value.strip():
                continue
            if not text.lstrip().startswith("<think>"):
                if value.strip():
                    text = f"<think>\n{value.strip()}\n</think>\n\n{text}"
                    changes[f"{key} of a message put into its text"] = None
                continue
        changes[f"{str(key)[:40]} of a message not kept"] = None
    return text


def read_role(role: Any, number: int) -> str:
    """The role that a name stands for, `call` for a turn that is one. Raises ValueError for others."""
    if role is None:
        raise ValueError(f"message {number} has no role")
    known = ROLE_NAMES.get(role) if isinstance(role, str) else None
    if known is None and isinstance(role, str):
        known = ROLE_NAMES.get(role.strip().lower().replace("-", "_"))
    if known is None:
        raise ValueError(f"message {number}: unknown role {str(role)[:40]!r}: known are {', '.join(ROLES)}")
    return known


def _join_parts(content: Any, number: int, changes: dict[str, None], role: str) -> str:
    """The text of content that is missing or comes in parts. Raises ValueError for other media."""
    if content is None:
        return ""
    if role == "tool" and is_json_result(content):
        changes[RESULT_WRITTEN] = None
        return write_result(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"message {number}: content must be text, and it is {name_kind(content)}")
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


def read_tool_calls(
    given: Any, number: int, changes: dict[str, None]
) -> tuple[tuple[ToolCall, ...], tuple[str | None, ...]]:
    """The calls in a list, and their ids. Raises ValueError, naming the message, for what is none."""
    given = load_list(given, f"message {number}: tool_calls are")
    ids = [str(call["id"]) if isinstance(call, OBJECT) and call.get("id") else None for call in given]
    return tuple([_read_structured(call, number, changes) for call in given]), tuple(ids)


def _read_structured(call: Any, number: int, changes: dict[str, None]) -> ToolCall:
    """A call in OpenAI shape, with `arguments` as an object or as JSON text."""
    function = call.get("function", call) if isinstance(call, OBJECT) else None
    if isinstance(function, OBJECT):
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = _decode_arguments(arguments, name, number, changes)
            if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
                arguments = _decode_arguments(arguments, name, number, changes)
                changes[name_mended("arguments that were encoded twice")] = None
        if isinstance(arguments, dict) and isinstance(name, str) and name:
            if not (_CALL_KEYS.issuperset(call) and _FUNCTION_KEYS.issuperset(function)):
                _note_foreign(call, changes)
            return ToolCall(name, arguments)
    try:
        read = read_call(call)
    except NotCall as error:
        raise ValueError(f"message {number}: a tool call is no call: {error}") from None
    _refuse_doubled(read.arguments, read.name, number)
    _note_changes(call, read, changes)
    return read


def _note_changes(call: Mapping[str, Any], read: ToolCall, changes: dict[str, None]) -> None:
    """Note arguments of a call that are read as none, and what stands beside its name and arguments."""
    inner = call.get("function")
    function = inner if isinstance(inner, Mapping) else call
    if not read.arguments and "arguments" in function and _says_nothing(function["arguments"]):
        changes["arguments of a call that are null or empty made {}"] = None
    _note_foreign(call, changes)


def _says_nothing(arguments: Any) -> bool:
    return arguments is None or (isinstance(arguments, str) and arguments.strip() in ("", "null"))


def _note_foreign(call: Mapping[str, Any], changes: dict[str, None]) -> None:
    """Note what stands in a call beside its name and its arguments."""
    for key in list_foreign_keys(call):
        function = call.get("function")
        places = (call, function) if isinstance(function, Mapping) else (call,)
        if any(place.get(key) not in _NOTHING for place in places):
            changes[f"{key[:40]} of a call not kept"] = None


def _decode_arguments(text: str, name: Any, number: int, changes: dict[str, None]) -> Any:
    try:
        decoded = load_json(text)
    except ValueError as error:
        reason = str(error)
    else:
        # As many colons as keys: none is there twice.
        if isinstance(decoded, dict) and text.count(":") > len(decoded):
            _refuse_doubled(read_value(text, len(text) - len(text.lstrip()))[0], name, number)
        return decoded
    try:
        value, end, forgiven = read_value(text, len(text) - len(text.lstrip()))
    except NotLiteral:
        end = -1
    if end == -1 or text[end:].strip():
        raise ValueError(f"message {number}: the arguments of {name!r} are no JSON: {reason}")
    _refuse_doubled(value, name, number)
    _note_mended(forgiven, changes)
    return value


def _note_mended(forgiven: str, changes: dict[str, None]) -> None:
    if forgiven:
        changes[name_mended(forgiven)] = None


def _refuse_doubled(arguments: Any, name: Any, number: int) -> None:
    if key := find_doubled(arguments):
        raise ValueError(f"message {number}: the arguments of {name!r} have {key[:40]!r} twice")


def read_turn(named: str, text: str, number: int, changes: dict[str, None]) -> SourceTurn:
    """A turn of a role, by any of its names, and a text. Raises ValueError as `read_role` does."""
    role = _note_role(named, number, changes)
    return _read_call_message(text, number, changes) if role == "call" else SourceTurn(role, text)


def _note_role(named: Any, number: int, changes: dict[str, None]) -> str:
    role = read_role(named, number)
    if role == "system" and named != role:
        changes[f"role {named} made system"] = None
    return role


def _read_call_message(text: str, number: int, changes: dict[str, None]) -> SourceTurn:
    changes["turn of a call made the assistant's tool call"] = None
    return read_call_turn(text, number, changes)


def read_call_turn(text: str, number: int, changes: dict[str, None]) -> SourceTurn:
    """The turn of a `function_call` role: one call as JSON, or a list of them."""
    start = len(text) - len(text.lstrip())
    try:
        value, end, forgiven = read_value(text, start)
    except NotLiteral as error:
        raise ValueError(f"message {number}: a call that is no JSON: {error}") from None
    calls, wrong = read_calls(value)
    if wrong or text[end:].strip():
        raise ValueError(f"message {number}: a call turn that is no call: {(wrong or ['text behind it'])[0]}")
    if key := find_doubled([value, *(call.arguments for call in calls)]):
        raise ValueError(f"message {number}: a call has {key[:40]!r} twice")
    _note_mended(forgiven, changes)
    for call, read in zip(value if isinstance(value, list) else [value], calls, strict=True):
        _note_changes(call, read, changes)
    return SourceTurn("assistant", "", tuple(calls), (None,) * len(calls))


def load_list(value: Any, said: str) -> Any:
    """A list, or the one in a JSON text. Raises ValueError that begins with what is `said` of it."""
    if isinstance(value, str):
        try:
            value = load_once(value)
        except orjson.JSONDecodeError:
            raise ValueError(f"{said} text and no JSON list") from None
    if not isinstance(value, _LIST) or isinstance(value, str | bytes):
        raise ValueError(f"{said} {name_kind(value)} and no list")
    return value


def holds_nothing(value: Any) -> bool:
    """Whether a column or a key is empty, as JSON text too."""
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def name_kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes)
    return "a list" if is_list else type(value).__name__
