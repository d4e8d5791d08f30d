"""Chat completions of a server, read into raw replies.

What came is kept as it came. Calls that the server's own parser read are also written in the target's
dialect, so that one scorer serves all engines; the reply is marked: nobody saw how the model wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, Field

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import render_calls
from stages.core.records import RawReply
from stages.eval.engines import Question, Sampling


class Function(BaseModel):
    """The function of a served call; `arguments` is JSON as text, from some servers an object."""

    name: str
    arguments: str | dict[str, Any] = ""


class _Call(BaseModel):
    function: Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """The part of an answer that is used; servers add keys of their own."""

    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str


class ModelList(BaseModel):
    """The answer to /models."""

    data: list[_Model]


def write_request(question: Question, sampling: Sampling, model: str | None) -> dict[str, Any]:
    """The body that asks a question; the server's chat template makes the prompt of it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_write_message(message) for message in question.row["messages"]],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "stream": False,
    }
    if question.row.get("tools"):
        body["tools"] = question.row["tools"]
    if sampling.temperature:
        body["seed"] = sampling.sample
    return body


def _write_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn in OpenAI's shape, which has the arguments of calls as text."""
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": _write_arguments(call["function"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _write_arguments(function: Mapping[str, Any]) -> str:
    return orjson.dumps(function["arguments"]).decode()


def read_completion(answer: Mapping[str, Any], question: Question, dialect: str, seconds: float) -> RawReply:
    """The reply in a valid completion, which is its first choice."""
    completion, choice = Completion.model_validate(answer), answer["choices"][0]
    message, usage = completion.choices[0].message, completion.usage or _Usage()
    called = message.tool_calls or []
    tools = [Tool.from_json(tool) for tool in question.row.get("tools") or ()]
    parts = [message.content or "", *(write_served_call(call.function, dialect, tools) for call in called)]
    return RawReply(
        id=question.id,
        text="\n".join(part for part in parts if part),
        tokens=usage.completion_tokens,
        finish="length" if completion.choices[0].finish_reason in ("length", "max_tokens") else "stop",
        seconds=seconds,
        prompt_tokens=usage.prompt_tokens,
        calls_by="server" if called else "model",
        served={"message": choice["message"], "finish_reason": choice.get("finish_reason")},
    )


def write_served_call(function: Function, dialect: str, tools: Sequence[Tool] = ()) -> str:
    """A call that a server read, in a dialect.

    Arguments that are no JSON object stay the text they are, in a block that reads as a malformed call.
    """
    given = function.arguments
    try:
        arguments = orjson.loads(given or "{}") if isinstance(given, str) else given
        if isinstance(arguments, dict):
            return render_calls([ToolCall(function.name, arguments)], dialect, tools)
    except ValueError:  # no JSON, or a call that the dialect cannot say
        pass
    raw = given if isinstance(given, str) else orjson.dumps(given).decode()
    name = orjson.dumps(function.name).decode()
    return f'<tool_call>\n{{"name": {name}, "arguments": {raw}}}\n</tool_call>'
