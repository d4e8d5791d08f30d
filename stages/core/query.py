"""One question of a suite: what is put to the model, and which calls count as right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from stages.core.chat import Conversation
from stages.core.definitions import Definition, adopt
from stages.core.dialects import Toolbox
from stages.core.matcher import Matcher
from stages.core.parameters import Parameters
from stages.core.tools import EXECUTE_CODE, FUNCTIONS

CODE_MODE = Toolbox((EXECUTE_CODE,))
ONE, SEVERAL = "one call", "several calls"
"""How the validator names the two shapes of an accepted answer in the places of its errors."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Expected(_Record):
    """One accepted call: a tool, or in Code Mode a function, and a matcher for each argument that matters."""

    function: str = Field(description="such as typecheck")
    arguments: dict[str, Matcher] = Field(
        default_factory=dict, description="by parameter name; an argument not named here may be anything"
    )
    closed: bool = Field(False, strict=True, description="no argument may be given that is not named here")


class Calls(_Record):
    """Several calls that are right together, in one turn."""

    calls: tuple[Expected, ...] = Field(min_length=1)
    ordered: bool = Field(False, strict=True, description="in this order; else in any")


def _tell_apart(data: Any) -> str:
    return SEVERAL if isinstance(data, Calls) or (isinstance(data, Mapping) and "calls" in data) else ONE


Accepted = Annotated[
    Annotated[Expected, Tag(ONE)] | Annotated[Calls, Tag(SEVERAL)], Discriminator(_tell_apart)
]


def read_tools(value: Any) -> Any:
    """Definitions in any shape that a conversion takes, so that both show a model the same text.

    Raises ValueError for what holds none.
    """
    if value is None:
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("tools: use a list of tool definitions")
    tools = adopt(value).tools
    names = [tool["function"]["name"] for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two tools are named {min(twice)}: keep one of them")
    return tools


def _read_messages(value: Any) -> Any:
    """The neutral form of given turns, whose calls may have their arguments as a JSON string."""
    if not isinstance(value, list | tuple) or not value:
        return value
    messages = _order_results([_decode_arguments(m) if isinstance(m, Mapping) else m for m in value])
    rows: list[dict[str, Any]] = Conversation.from_row({"messages": messages}).to_row()["messages"]
    given = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    called = [call["function"]["name"] for row in rows for call in row.get("tool_calls", ())]
    for message, row in zip(messages, rows, strict=True):
        if "tool_call_id" in row:  # of a result that answers a call
            number = int(row["tool_call_id"].removeprefix("call_"))
            if message.get("tool_call_id") not in (None, given[number]):
                raise ValueError(
                    "a result in `messages` has the id of no call that waits for it: give every call of a "
                    "turn one result"
                )
            row["name"] = called[number]
        elif row["role"] == "tool":
            raise ValueError("a tool result in `messages` has no call before it: give the turn that made it")
    return rows


def _order_results(messages: Sequence[Any]) -> list[Any]:
    """The results behind a turn with calls in the order of these, where their ids say which is whose."""
    ordered: list[Any] = []
    ids: list[Any] = []
    for is_result, group in groupby(messages, lambda m: isinstance(m, Mapping) and m.get("role") == "tool"):
        turns = list(group)
        if is_result:
            named = [turn.get("tool_call_id") for turn in turns]
            known = all(isinstance(name, str) and ids.count(name) == 1 for name in named)
            turns = sorted(turns, key=lambda turn: ids.index(turn["tool_call_id"])) if known else turns
        else:
            calls = turns[-1].get("tool_calls") if isinstance(turns[-1], Mapping) else None
            calls = calls if isinstance(calls, list) else []
            ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
        ordered += turns
    return ordered


def _decode_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    decoded = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            try:
                arguments = orjson.loads(function["arguments"])
            except orjson.JSONDecodeError:
                raise ValueError("the arguments of a given call are a text that is no JSON") from None
            call = {**call, "function": {**function, "arguments": arguments}}
        decoded.append(call)
    return {**message, "tool_calls": decoded}


class Query(_Record):
    """One question to the model."""

    id: str = Field(description="unique in the suite")
    category: str = Field(
        description="typecheck, concept, …; by default the function that is wanted, or direct"
    )
    kind: Literal["tool", "direct"] = Field(
        description="whether a tool must be called; by default whether calls are accepted"
    )
    query: str = Field("", description="the user's text; without one, `messages` end with a user or a tool")
    accept: tuple[Accepted, ...] = Field((), description="accepted calls; any one of these is right")
    terms: tuple[str, ...] = Field((), description="beginnings of words of which a direct answer uses one")
    tools: Annotated[tuple[Definition, ...] | None, BeforeValidator(read_tools)] = Field(
        None, description="the tools that are offered, in OpenAI shape; None: Code Mode's execute_code"
    )
    messages: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_read_messages)] = Field(
        (), description="the turns before the user's text: a system text, earlier calls and their results"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        accept = data.get("accept")
        first = accept[0] if isinstance(accept, list | tuple) and accept else None
        if isinstance(first, Mapping) and isinstance(first.get("calls"), list) and first["calls"]:
            first = first["calls"][0]
        function = first.get("function") if isinstance(first, Mapping) else None
        return {"kind": "tool" if accept else "direct", "category": function or "direct"} | data

    @model_validator(mode="after")
    def _fits_together(self) -> Query:
        if (self.kind == "tool") != bool(self.accept):
            raise ValueError("a tool query has accepted calls, a direct one has none")
        if self.query.isspace():
            raise ValueError("`query` is blank: give the user's text, or leave it out")
        if not all(map(str.strip, self.terms)):
            raise ValueError("one of the `terms` is blank, which any answer has: leave it out")
        last = self.messages[-1]["role"] if self.messages else ""
        if not self.query and last not in ("user", "tool"):
            raise ValueError("give `query`, or `messages` that end with a turn of the user or a tool")
        if any(message["role"] == "system" for message in self.messages[1:]):
            raise ValueError("only the first of the `messages` may be a system text")
        if self.tools is None and any(message["role"] == "system" for message in self.messages):
            raise ValueError("Code Mode has a system text of its own: give `tools`, or leave yours out")
        for expected in self.expected:
            self._require_callable(expected)
        return self

    @property
    def expected(self) -> Iterator[Expected]:
        """Every call in any accepted answer."""
        for accepted in self.accept:
            yield from accepted.calls if isinstance(accepted, Calls) else (accepted,)

    def _require_callable(self, expected: Expected) -> None:
        known = self.parameters
        if expected.function not in known:
            offered = f"use one of {', '.join(known)}" if known else "this query offers no tool"
            raise ValueError(f"no function {expected.function!r}: {offered}")
        parameters = known[expected.function]
        unknown = set() if parameters is None else expected.arguments.keys() - set(parameters)
        if unknown:
            raise ValueError(f"{expected.function} has no parameter {', '.join(sorted(unknown))}")

    @property
    def wants_several(self) -> bool:
        """Whether an accepted answer has more than one call."""
        return any(isinstance(one, Calls) and len(one.calls) > 1 for one in self.accept)

    @property
    def code_mode(self) -> bool:
        """Whether it offers `execute_code`, and the accepted calls are of functions in its code."""
        return self.tools is None

    @property
    def parameters(self) -> dict[str, tuple[str, ...] | None]:
        """The parameters of what an accepted call may name; None where the definition lists none."""
        if self.tools is None:
            return {function.name: function.parameters for function in FUNCTIONS.values()}
        return {name: _list_parameters(schema) for name, schema in self.toolbox.schemas.items()}

    @property
    def toolbox(self) -> Toolbox:
        """The tools that are offered, as parsers take them."""
        return CODE_MODE if self.tools is None else Toolbox(self.tools)

    @property
    def turns(self) -> tuple[dict[str, Any], ...]:
        """What the model is shown behind its system turn, or from it on where `messages` have one."""
        return (*self.messages, {"role": "user", "content": self.query}) if self.query else self.messages

    @property
    def question(self) -> str:
        """The user's first words, by which a training row on the same matter is known."""
        return next((turn["content"] for turn in self.turns if turn["role"] == "user"), "")

    @property
    def functions(self) -> tuple[str, ...]:
        """What the first accepted answer calls, each name once."""
        first = self.accept[:1]
        calls: Sequence[Expected] = [
            call for one in first for call in (one.calls if isinstance(one, Calls) else (one,))
        ]
        return tuple(dict.fromkeys(call.function for call in calls))


def _list_parameters(schema: Mapping[str, Any]) -> tuple[str, ...] | None:
    found = Parameters(schema)
    return tuple(found.parts) if found.parts and found.others is False else None
