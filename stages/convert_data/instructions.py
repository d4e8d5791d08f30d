"""Tool definitions and call instructions inside a system text, as chat templates write them there.

The target's template writes its own, so both are taken out of the text. Known are the wordings of
Qwen2.5, Qwen3, Qwen3-Coder, Hermes, Llama 3.1, Glaive and this project's own template. Where the
definitions stand in other words, they alone are taken out and the words stay.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from stages.core.definitions import Definitions, adopt, skip_separator
from stages.core.dialects.json_calls import read_value
from stages.core.dialects.literals import NotLiteral, read_literal

TAKEN_OUT = "tool definitions taken out of the system text"
LEFT_OVER = "the system text still describes a call format"

IN_USER_TURN = "Given the following functions"
"""How Llama 3.1 begins the first user's turn, where its template defines the tools."""

_BLOCK = re.compile(r"<tools>\s*+(?=[\[{]|<function>\s*+<name>)")
# Sentence by sentence: among them may stand some of the row's own, which no target's template writes.
_HEAD_SENTENCES = (
    r"# Tools",
    r"Tools:",
    r"Here are the available tools\s*:",
    r"You (?:may|can) call (?:one or more|multiple) functions(?: to assist with the user query)?\.",
    r"You (?:are provided with|have access to) function signatures within <tools>\s*</tools> XML tags[.:]",
    r"You have access to the following (?:functions|tools):",
    r"You are a function[- ]calling AI (?:model|assistant)\.",
    r"If (?:the )?available tools are not relevant in assisting with (?:the )?user query, "
    r"just respond in natural conversational language\.",
    r"Don['’]t make assumptions about what values to plug into functions?\.",
    r"After calling (?:&|and) executing the functions?, you will be provided with function results within "
    r"<tool_response>\s*</tool_response> XML tags\.",
)
_HEAD = re.compile(rf"(?:(?:{'|'.join(_HEAD_SENTENCES)})\s*+)++\Z".replace(" ", r"\s+"))
_EXAMPLE = r"<tool_call>\s*(?:\{|<function).*?</tool_call>"
_TAILS = tuple(
    re.compile(r"\s*" + pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        rf"For each function call,? return a JSON object\b.*?{_EXAMPLE}(?:\s*<\|im_end\|>)?",
        rf"(?:Use|For each function call return a JSON object, with) the following pydantic .*?{_EXAMPLE}",
        r"A tool call looks like this:\n<tool_call>\n.*?\n</tool_call>",
        r"If you choose to call a function ONLY reply.*?</IMPORTANT>",
        rf"If you choose to call a function ONLY reply.*?{_EXAMPLE}",
    )
)
_OPENERS = (
    re.compile(r" with access to the following functions\. Use them if required\s*-?\s*(?=[\[{])"),
    re.compile(
        rf"{IN_USER_TURN}, please respond with a JSON for a function call .*?"
        r"Do not use variables\.\s*(?=[\[{])",
        re.DOTALL,
    ),
)
_CALL_FORMAT = re.compile(r"</?tool_call>|<function=|</?tools>")

_FUNCTION = re.compile(
    r"\s*<function>\s*<name>(?P<name>.*?)</name>\s*<description>(?P<description>.*?)</description>"
    r"\s*<parameters>(?P<parameters>.*?)\s*</parameters>(?:\s*<return>.*?</return>)?\s*</function>",
    re.DOTALL,
)
_PARAMETER = re.compile(r"\s*<parameter>\s*<name>(.*?)</name>(.*?)\s*</parameter>", re.DOTALL)
_FIELD = re.compile(r"\s*<(\w+)>(.*?)</\1>", re.DOTALL)


class Taken(NamedTuple):
    """A text without its tool definitions, and the definitions."""

    text: str
    own: Definitions
    changes: tuple[str, ...]


def take_tools(text: str) -> Taken | None:
    """The tools that a text defines, and the text without them; None where it defines none.

    Raises ValueError when there are definitions that cannot be read.
    """
    return _take_tools(text) if may_define(text) else None


def may_define(text: str) -> bool:
    """Whether a text has the words that all definitions of tools come with."""
    return "<tools>" in text or "following functions" in text


@lru_cache(maxsize=512)
def _take_tools(text: str) -> Taken | None:
    block = _BLOCK.search(text)
    if block is not None:
        found, end = _read_block(text, block.end())
        start = _find_start(text, block.start())
    else:
        opener = next((match for pattern in _OPENERS if (match := pattern.search(text))), None)
        if opener is None:
            return None
        found, end = _read_objects(text, opener.end())
        start = opener.start()
    if not found:
        return None
    before, after = text[:start].rstrip(), text[_find_end(text, end) :].strip()
    if block is None and before and not before.endswith((".", "\n")):
        before += "."
    rest = "\n\n".join(filter(None, (before, after)))
    own = adopt(found)
    left = (LEFT_OVER,) if _CALL_FORMAT.search(rest) else ()
    return Taken(rest, own, (TAKEN_OUT, *left))


def _find_start(text: str, block: int) -> int:
    """Where the known words begin that lead up to the definitions."""
    found = _HEAD.search(text, 0, block)
    return found.start() if found is not None else block


def _find_end(text: str, block: int) -> int:
    """Where the instructions end that follow the definitions."""
    return next((m.end() for tail in _TAILS if (m := tail.match(text, block))), block)


def _read_block(text: str, start: int) -> tuple[list[Any], int]:
    """The definitions in `<tools>` tags, and the position behind the closing tag."""
    if text.startswith("<function>", start):
        end = text.find("</tools>", start)
        body = text[start : end if end != -1 else len(text)]
        return _read_xml(body), end + len("</tools>") if end != -1 else len(text)
    found, end = _read_objects(text, start)
    if not text.startswith("</tools>", end):
        raise ValueError(f"tools in the system text: no </tools> at character {end}")
    return found, end + len("</tools>")


def _read_objects(text: str, start: int) -> tuple[list[Any], int]:
    """The objects or lists from `start` on, and the position behind the last and its white space."""
    found: list[Any] = []
    pos = start
    while text.startswith(("{", "["), pos):
        try:
            value, end, _ = read_value(text, pos)
        except NotLiteral as error:
            raise ValueError(
                f"tools in the system text are not JSON: {error} at character {error.pos}"
            ) from None
        found += value if isinstance(value, list) else [value]
        pos = skip_separator(text, end)
    return found, pos


def _read_xml(body: str) -> list[dict[str, Any]]:
    """Definitions as Qwen3-Coder's template writes them. Raises ValueError for anything else."""
    tools, pos = [], 0
    while (function := _FUNCTION.match(body, pos)) is not None:
        parameters, at = function["parameters"], 0
        properties = {}
        while (parameter := _PARAMETER.match(parameters, at)) is not None:
            properties[parameter[1]] = {k: _read_field(v) for k, v in _FIELD.findall(parameter[2])}
            at = parameter.end()
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        required = dict(_FIELD.findall(parameters[at:])).get("required")
        if required is not None:
            schema["required"] = _read_field(required)
        tools.append({"name": function["name"], "description": function["description"], "parameters": schema})
        pos = function.end()
    if body[pos:].strip():
        raise ValueError(f"tools in the system text: not a definition: {body[pos:].strip()[:40]!r}")
    return tools


def _read_field(text: str) -> Any:
    """A field of a definition: a list in backquotes, JSON or a Python literal, else text."""
    if text.startswith("[") and "`" in text:
        return [item.strip().strip("`") for item in text[1:-1].split(", ")]
    if text.startswith(("[", "{")):
        try:
            value, end = read_literal(text, 0)
        except NotLiteral:
            return text
        return value if end == len(text) else text
    return text
