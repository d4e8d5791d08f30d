"""One legacy row to one neutral row, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from stages.core.chat import Conversation, Message, Tool, ToolCall
from stages.core.chatml import Turn, split_chatml
from stages.core.dialects import Reply, parse_any
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.prompts import offered_tools, system_message
from stages.core.tools import EXECUTE_CODE, as_code_mode, function_tools

_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_CALLABLE = (EXECUTE_CODE, *function_tools())
RESULT_PREFIX = "Tool result:\n"  # of a user turn, where the preset wants results as such
LEGACY_TAG = re.compile(r"</?tool_call>|</?tool_response>|<function=|</function>|<parameter=|</parameter>")


@dataclass
class Converted:
    """A row in its new form, and what the card counts about it."""

    row: dict[str, Any]
    pattern: str
    dialects: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def convert_row(raw: Any, setup: ModelSetup, fixes: FixSet) -> Converted:
    """Convert one row. Raises ValueError with the reason when it cannot be done without a loss."""
    turns, given = read_turns(raw)
    if "json" not in fixes:
        return _keep_legacy(raw, turns, setup, fixes)
    converted = Converted({}, "-".join(turn.role for turn in turns))
    messages, waiting = [], []
    for turn in turns:
        if turn.role == "assistant":
            message = _read_assistant(turn, converted)
            waiting = [call.name for call in message.calls]
            messages.append(message)
        elif turn.role == "tool" or "<tool_response>" in turn.text:
            messages += _read_results(turn, waiting, converted)
        else:
            messages.append(Message("system" if turn.role == "system" else "user", turn.text))
    messages = _set_system(messages, setup, fixes, converted)
    if not any(message.role == "assistant" for message in messages):
        raise ValueError("no assistant turn")
    _refuse_legacy_tags(messages)
    if setup.tool_response == "user":
        messages = [Message("user", RESULT_PREFIX + m.content) if m.role == "tool" else m for m in messages]
    converted.row = Conversation(tuple(messages), offered_tools(fixes) or given).to_row()
    return converted


@dataclass(frozen=True)
class _RichTurn(Turn):
    """A turn of a `{"messages"}` row, which may carry structured calls."""

    calls: tuple[ToolCall, ...] = ()


def read_turns(raw: Any) -> tuple[list[Turn], tuple[Tool, ...]]:
    """The turns and tools of a `{"text"}` or `{"messages"}` row; ValueError when it is neither."""
    if not isinstance(raw, Mapping):
        raise ValueError("not a JSON object")
    if isinstance(raw.get("text"), str):
        return split_chatml(raw["text"]), ()
    if "messages" in raw:
        conversation = Conversation.from_row(_decode_arguments(raw))
        return [_RichTurn(m.role, m.content, m.calls) for m in conversation.messages], conversation.tools
    raise ValueError(f'neither "text" nor "messages" among its keys: {", ".join(map(str, raw)) or "none"}')


def _decode_arguments(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with `arguments` that are JSON strings, as OpenAI's API writes them, decoded once."""
    if not isinstance(raw["messages"], list):
        return raw
    return {**raw, "messages": [_decode_message(message) for message in raw["messages"]]}


def _decode_message(message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_decode_call(call) for call in message["tool_calls"]]}


def _decode_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": orjson.loads(function["arguments"])}}


def _read_assistant(turn: Turn, converted: Converted) -> Message:
    given = turn.calls if isinstance(turn, _RichTurn) else ()
    reply = parse_any(turn.text, _CALLABLE)
    if reply.problems:
        raise ValueError(f"assistant turn: {reply.problems[0]}")
    calls = tuple(as_code_mode(call) for call in (*given, *reply.calls))
    for before, after in zip((*given, *reply.calls), calls, strict=True):
        if before is not after:
            converted.changes.append(f"direct call of {before.name} written as Code Mode")
    if reply.calls:
        converted.dialects.append(str(reply.dialect))
        converted.changes.append(f"calls of {reply.dialect} read")
    elif given:
        converted.dialects.append("messages")
    converted.tools += [call.name for call in calls]
    return Message("assistant", _words_beside(reply) if reply.calls else turn.text, calls)


def _words_beside(reply: Reply) -> str:
    """What a turn says beside its calls, the reasoning before them included."""
    thoughts = f"<think>\n{reply.reasoning}\n</think>\n\n" if reply.reasoning else ""
    return f"{thoughts}{reply.content.strip()}".strip()


def _read_results(turn: Turn, waiting: list[str], converted: Converted) -> list[Message]:
    if "<tool_response>" not in turn.text:
        return [Message("tool", turn.text, tool=waiting.pop(0) if waiting else None)]
    results, at = [], 0
    while at < len(turn.text):
        match = _RESPONSE.match(turn.text, at)
        if match is None:
            raise ValueError("text beside <tool_response> in a result turn")
        if not waiting:
            raise ValueError("a tool result without a call before it")
        results.append(Message("tool", match[1], tool=waiting.pop(0)))
        at = match.end()
    converted.changes.append("tool result made a tool turn")
    return results


def _set_system(
    messages: list[Message], setup: ModelSetup, fixes: FixSet, converted: Converted
) -> list[Message]:
    """With the fix `tools`, the system turn that evaluation uses as well; else what the row has."""
    if "tools" not in fixes:
        return messages
    own = [m.content for m in messages if m.role == "system"]
    if not own:
        converted.changes.append("system turn added")
    elif own != [setup.system]:
        converted.changes.append("another system text replaced")
    return [system_message(setup, fixes), *(m for m in messages if m.role != "system")]


def _refuse_legacy_tags(messages: list[Message]) -> None:
    for message in messages:
        if message.role in ("assistant", "tool") and (found := LEGACY_TAG.search(message.content)):
            raise ValueError(f"{found[0]} is left in a turn of the {message.role}")


def _keep_legacy(raw: Any, turns: list[Turn], setup: ModelSetup, fixes: FixSet) -> Converted:
    """Without the fix `json`: the text as it is; with `tools` only its system turn is exchanged."""
    converted = Converted(dict(raw), "-".join(turn.role for turn in turns))
    for turn in turns:
        if turn.role == "assistant" and (reply := parse_any(turn.text, _CALLABLE)).calls:
            converted.dialects.append(str(reply.dialect))
            converted.tools += [call.name for call in reply.calls]
    if "tools" in fixes:
        rest = [turn for turn in _plain_turns(raw, turns) if turn["role"] != "system"]
        system = {"role": "system", "content": system_message(setup, fixes).content}
        converted.row = {"messages": [system, *rest], "tools": [t.to_json() for t in offered_tools(fixes)]}
    return converted


def _plain_turns(raw: Mapping[str, Any], turns: list[Turn]) -> list[dict[str, Any]]:
    """The turns as messages; those of a `{"messages"}` row as they are, their calls included."""
    if not any(isinstance(turn, _RichTurn) for turn in turns):
        return [{"role": turn.role, "content": turn.text} for turn in turns]
    return [dict(message) for message in raw["messages"]]
