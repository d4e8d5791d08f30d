"""Chat completions of a server, read into raw replies.

What came is kept as it came. Calls that the server's own parser read are also written in the target's
dialect, so that one scorer serves all engines; the reply is marked: nobody saw how the model wrote them.
So is one whose calls the parser could not read: it is a reply with a call that nobody can read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import render_calls
from stages.core.records import RawReply, as_json
from stages.eval.engines import Question, Sampling
from stages.eval.engines.transport import ServerError, hide_key

ENDED = ("stop", "tool_calls", "function_call", "eos_token", "stop_sequence", "end_turn")
CUT = ("length", "max_tokens")


class Function(BaseModel):
    """The function of a served call; `arguments` is JSON as text, from some servers an object, or null."""

    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(BaseModel):
    function: Function


def _join_parts(content: Any) -> Any:
    """The text of a content that comes as a list of parts; thoughts and pictures are none of it."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    return "".join(str(part.get("text") or "") for part in parts)


def _refuse_error(error: Any) -> Any:
    """Raise the error that a server sends instead of a completion, with a status that says all is well."""
    if error:
        said = error.get("message") if isinstance(error, Mapping) else None
        line = " ".join(hide_key(str(said or error)).split())[:200]
        raise PydanticCustomError("server_error", "{said}", {"said": line})
    return error


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_join_parts)] = None
    tool_calls: list[Any] | None = None
    function_call: Any = None  # of older servers: one call, without the list


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """The part of an answer that is used; servers add keys of their own."""

    error: Annotated[Any, AfterValidator(_refuse_error)] = None
    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str
    created: Any = None
    root: Any = None
    parent: Any = None
    meta: Any = None


class ModelList(BaseModel):
    """The answer to /models."""

    data: list[_Model]


def describe_model(answer: bytes, name: str | None) -> dict[str, Any]:
    """What the list of /models tells of a model beside its name: when and of what it was made, its size.

    Empty where it tells nothing, and for an answer that is no such list.
    """
    try:
        models = ModelList.model_validate_json(answer).data
    except ValidationError:
        return {}
    model = next((model for model in models if model.id == name), None)
    if model is None:
        return {}
    sizes = model.meta if isinstance(model.meta, dict) else {}
    told = {
        "created": model.created,
        "root": model.root,
        "parent": model.parent,
        "size": sizes.get("size"),
        "parameters": sizes.get("n_params"),
    }
    return {key: value for key, value in told.items() if isinstance(value, str | int | float)}


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


def _read_finish(reason: str | None) -> Literal["stop", "length"] | None:
    """How a reply ended; None where the server does not say, or names what was not the model's doing."""
    return "stop" if reason in ENDED else "length" if reason in CUT else None


def read_completion(answer: Mapping[str, Any], question: Question, dialect: str, seconds: float) -> RawReply:
    """The reply in a valid completion, which is its first choice."""
    completion, choice = Completion.model_validate(answer), answer["choices"][0]
    message, usage = completion.choices[0].message, completion.usage or _Usage()
    reason = completion.choices[0].finish_reason
    older = [{"function": message.function_call}] if message.function_call else []
    called, cut = message.tool_calls or older, reason in CUT
    tools = [Tool.from_json(tool) for tool in question.row.get("tools") or ()]
    calls = [_write_call(call, dialect, tools) for call in called[:-1]]
    calls += [_write_call(call, dialect, tools, cut=cut) for call in called[-1:]]
    return RawReply(
        id=question.id,
        text="\n".join(part for part in [message.content or "", *calls] if part),
        tokens=usage.completion_tokens,
        finish=_read_finish(reason),
        seconds=seconds,
        prompt_tokens=usage.prompt_tokens,
        # Without any call, that reason tells of one that the server's parser dropped.
        calls_by="server" if called or reason in ("tool_calls", "function_call") else "model",
        served=as_json({"message": choice["message"], "finish_reason": choice.get("finish_reason")}),
    )


def read_refusal(error: ServerError, question: Question, seconds: float) -> RawReply:
    """The reply that a server could not read: no text, and what the server said."""
    return RawReply(
        id=question.id,
        text="",
        finish=None,
        seconds=seconds,
        calls_by="server",
        served={"error": error.said or str(error), "status": error.status},
    )


def _write_call(call: Any, dialect: str, tools: Sequence[Tool], *, cut: bool = False) -> str:
    """A served call in a dialect; one that is none, such as one without a name, as it came."""
    try:
        return write_served_call(_Call.model_validate(call).function, dialect, tools, cut=cut)
    except ValidationError:
        raw = as_json(call.get("function", call) if isinstance(call, dict) else call)
        return f"<tool_call>\n{orjson.dumps(raw).decode()}\n</tool_call>"


def write_served_call(
    function: Function, dialect: str, tools: Sequence[Tool] = (), *, cut: bool = False
) -> str:
    """A call that a server read, in a dialect.

    Arguments that are no JSON object stay the text they are, in a block that reads as a malformed call, or
    with `cut` as one that the token limit broke off.
    """
    given = function.arguments or "{}"
    try:
        arguments = orjson.loads(given) if isinstance(given, str) else given
        if isinstance(arguments, dict):
            return render_calls([ToolCall(function.name, arguments)], dialect, tools)
    except ValueError:  # no JSON, or a call that the dialect cannot say
        pass
    raw = given if isinstance(given, str) else orjson.dumps(as_json(given)).decode()
    name = orjson.dumps(function.name).decode()
    block = f'<tool_call>\n{{"name": {name}, "arguments": {raw}}}\n</tool_call>'
    return block.removesuffix("}\n</tool_call>") if cut else block
