"""Tool definitions and call instructions inside a system text, as chat templates write them there.

The target's template writes its own, so both are taken out of the text. Known are the wordings of
Qwen2.5, Qwen3, Qwen3-Coder, Hermes, Llama 3.1, Kimi, Glaive, ToolACE and this project's own template.
Where the definitions stand in other words, they alone are taken out and the words stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from stages.convert_data.messages import SourceTurn
from stages.core.definitions import NONE, Definitions, adopt, read_objects
from stages.core.dialects.json_calls import read_value
from stages.core.dialects.literals import NotLiteral

TAKEN_OUT = "tool definitions taken out of a turn's text"
LEFT_OVER = "a text without its tool definitions still describes a call format"
NOT_TAKEN = "a system text holds what may be tool definitions, and they were not taken"

IN_USER_TURN = "Given the following functions"
"""How Llama 3.1 begins the first user's turn, where its template defines the tools."""

_SAID = "tools in the system text are"
_BLOCK = re.compile(r"<tools>\s*+(?=[\[{]|<function>\s*+<name>)")
# Sentence by sentence: among them may stand some of the row's own, which no target's template writes.
_HEAD_SENTENCES = (
    r"# Tools:?",
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
_HEAD_SENTENCE = re.compile(rf"(?:{'|'.join(_HEAD_SENTENCES)})\s*+".replace(" ", r"\s+"))
_SENTENCE_ENDS = ".!?:;>。！？："
_END_AMONG = re.compile(r"[.!?](?=\s)|[。！？]")


class _Wording(NamedTuple):
    """Known words in steps. What stands between two steps goes with them, so it must not be the row's own."""

    reach: int
    """Characters behind a step in which the next one has to end: little more than the known words take."""
    in_one: bool
    """Whether the words are one sentence, so that another one among them is the row's own."""
    steps: tuple[re.Pattern[str], ...]


def _wording(reach: int, *steps: str, in_one: bool = True) -> _Wording:
    return _Wording(reach, in_one, tuple(re.compile(step, re.IGNORECASE) for step in steps))


_EXAMPLE = (r"<tool_call>\s*+(?:\{|<function)", r"</tool_call>")
_FORMAT = r"\s*+If you choose to call a function ONLY reply"
_TAILS = (
    _wording(
        200,
        r"\s*+For each function call,? return a JSON object\b",
        _EXAMPLE[0],
        r"</tool_call>(?:\s*+<\|im_end\|>)?",
    ),
    _wording(
        600,
        r"\s*+(?:Use|For each function call return a JSON object, with) the following pydantic ",
        *_EXAMPLE,
    ),
    _wording(100, r"\s*+A tool call looks like this:\n<tool_call>\n", r"\n</tool_call>"),
    _wording(1500, _FORMAT, r"</IMPORTANT>", in_one=False),
    _wording(600, _FORMAT, *_EXAMPLE, in_one=False),
    _wording(
        150,
        r"\s*+\.?\s*+Should you decide to return the function call\(?s?\)?[.,]\s*+",
        r"put it in the format of \[func1\(",
        r"func2\(params\)\](?:\s*+NO other text MUST be included\.)?",
        in_one=False,
    ),
    _wording(0, r"\s*+<\|im_end\|>"),
)
_OPENERS = (
    _wording(0, r" with access to the following functions\. Use them if required\s*+(?:-\s*+)?(?=[\[{])"),
    _wording(
        400,
        rf"{IN_USER_TURN}, please respond with a JSON for a function call ",
        r"Do not use variables\.\s*+(?=[\[{])",
        in_one=False,
    ),
    _wording(0, r"Here is a list of functions in JSON format that you can invoke[:.]\s*+(?=[\[{])"),
    _wording(0, r"<\|im_system\|>tool_declare<\|im_middle\|>\s*+(?=[\[{])"),
)
_CALL_FORMAT = re.compile(r"</?tool_call>|<function=|</?tools>|\[func\w*+\(param")
_HINTS = ("<tools>", "following functions", "functions in JSON format", "tool_declare")
_SCHEMA_KEY = re.compile(r"[\"'](?:parameters|input_schema)[\"']\s*+:")
_LIST_START = re.compile(r"\[\s*+\{|\{(?=\s*+[\"'](?:type|name|function|description)[\"']\s*+:)")

_FUNCTION = re.compile(r"\s*+<function>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"\s*+<parameter>(.*?)</parameter>", re.DOTALL)
_FIELD = re.compile(r"\s*+<([^<>/\s]++)>(.*?)</\1>", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][-+]?\d++)?", re.ASCII)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_TEXTS = frozenset(("name", "description", "title", "pattern", "format", "ref", "$ref"))
_LISTS = frozenset(("enum", "required"))
_VALUES = frozenset(("default", "const", "example"))
_OF_A_PARAMETER = frozenset(
    (*("type", "description", "enum", "anyOf", "oneOf", "allOf", "$ref", "properties", "items"), *_VALUES)
)


class Taken(NamedTuple):
    """A text without its tool definitions, and the definitions."""

    text: str
    own: Definitions
    changes: tuple[str, ...]


def find_definitions(turns: Sequence[SourceTurn]) -> tuple[int, Taken] | None:
    """The first turn that defines tools, by its place, and what is taken out of it; None where none does.

    Such is a system turn, or the first question as Llama 3.1 writes it. A system turn that only may define
    some is as it was, and NOT_TAKEN says so. Raises ValueError for definitions that cannot be read.
    """
    missed = None
    for place, turn in enumerate(turns[:2]):
        if turn.role == "system" or (turn.role == "user" and IN_USER_TURN in turn.text):
            taken = take_tools(turn.text)
            if taken is None and turn.role == "system" and _SCHEMA_KEY.search(turn.text):
                taken = take_list(turn.text)
                missed = missed or (None if taken else (place, Taken(turn.text, NONE, (NOT_TAKEN,))))
            if taken is not None:
                return place, taken
    return missed


def take_tools(text: str) -> Taken | None:
    """The tools that a text defines, and the text without them; None where it defines none.

    Raises ValueError when there are definitions that cannot be read.
    """
    return _take_tools(text) if any(words in text for words in _HINTS) else None


def may_define(system: str) -> bool:
    """Whether a system text has words that definitions of tools come with."""
    return "parameters" in system or "input_schema" in system or any(words in system for words in _HINTS)


@lru_cache(maxsize=512)
def _take_tools(text: str) -> Taken | None:
    block = _BLOCK.search(text)
    if block is not None:
        found, end = _read_block(text, block.end())
        start = _find_start(text, block.start())
    else:
        opener = next((span for wording in _OPENERS if (span := _find_opener(text, wording))), None)
        if opener is None:
            return None
        start, end = opener
        found, end = read_objects(text, end, _SAID)
    if not found:
        return None
    before, after = text[:start].rstrip(), text[_find_end(text, end) :].strip()
    if block is None and before and not _begins_sentence(text, start):
        before += "."
    rest = "\n\n".join(filter(None, (before, after)))
    own = adopt(found)
    left = (LEFT_OVER,) if _CALL_FORMAT.search(rest) else ()
    return Taken(rest, own, (TAKEN_OUT, *left))


@lru_cache(maxsize=512)
def take_list(text: str) -> Taken | None:
    """The tools that a text defines in JSON behind any words, and the text without them; None for none."""
    pos = 0
    while (found := _LIST_START.search(text, pos)) is not None:
        try:
            items, end = read_objects(text, found.start(), _SAID)
            own = adopt(items) if items and all(map(_is_definition, items)) else NONE
        except ValueError:
            return None  # what is left of a broken list is not the whole of it
        if own.tools:
            rest = "\n\n".join(filter(None, (text[: found.start()].rstrip(), text[end:].strip())))
            left = (LEFT_OVER,) if _CALL_FORMAT.search(rest) else ()
            return Taken(rest, own, (TAKEN_OUT, *left))
        pos = end
    return None


def _is_definition(item: Any) -> bool:
    """Whether an object is the definition of a tool and no call of one, nor any record with a name."""
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return False
    parameters = function.get("parameters", function.get("input_schema"))
    if isinstance(parameters, Mapping) and parameters:
        return isinstance(parameters.get("properties"), Mapping) or all(map(_says_type, parameters.values()))
    return isinstance(function.get("description"), str) and not parameters


def _says_type(part: Any) -> bool:
    """Whether an object tells what a parameter may be, and is no argument in the example of a call."""
    return isinstance(part, Mapping) and not _OF_A_PARAMETER.isdisjoint(part)


def _find_start(text: str, block: int) -> int:
    """Where the known words begin that lead up to the definitions."""
    start = end = 0
    for sentence in _HEAD_SENTENCE.finditer(text, 0, block):
        if sentence.start() != end:
            if not _begins_sentence(text, sentence.start()):
                continue
            start = sentence.start()
        end = sentence.end()
    return start if end == block else block


def _begins_sentence(text: str, pos: int) -> bool:
    """Whether what stands at `pos` is no part of the sentence or the word before it."""
    before = text[max(0, pos - 9) : pos].rstrip(" \t")
    return not before or before[-1] == "\n" or before[-1] in _SENTENCE_ENDS


def _find_opener(text: str, wording: _Wording) -> tuple[int, int] | None:
    """Where the words begin and end that lead up to definitions without tags."""
    found = wording.steps[0].search(text)
    return (found.start(), end) if found and (end := _follow(text, found, wording)) != -1 else None


def _find_end(text: str, block: int) -> int:
    """Where the instructions end that follow the definitions."""
    for wording in _TAILS:
        found = wording.steps[0].match(text, block)
        if found is not None and (end := _follow(text, found, wording)) != -1:
            return end
    return block


def _follow(text: str, found: re.Match[str], wording: _Wording) -> int:
    """The end of the last step of a wording whose first was found; -1 where one of them is missing."""
    end = found.end()
    for step in wording.steps[1:]:
        following = step.search(text, end, end + wording.reach)
        if following is None or (wording.in_one and _END_AMONG.search(text, end, following.start())):
            return -1
        end = following.end()
    return end


def _read_block(text: str, start: int) -> tuple[list[Any], int]:
    """The definitions in `<tools>` tags, and the position behind the closing tag."""
    if text.startswith("<function>", start):
        end = text.find("</tools>", start)
        body = text[start : end if end != -1 else len(text)]
        return _read_xml(body), end + len("</tools>") if end != -1 else len(text)
    found, end = read_objects(text, start, _SAID)
    if not text.startswith("</tools>", end):
        raise ValueError(f"tools in the system text: no </tools> at character {end}")
    return found, end + len("</tools>")


def _read_xml(body: str) -> list[dict[str, Any]]:
    """Definitions as Qwen3-Coder's templates write them. Raises ValueError for anything else."""
    tools, pos = [], 0
    while (function := _FUNCTION.match(body, pos)) is not None:
        fields = _list_fields(function[1])
        if "name" not in fields:
            raise _not_a_definition(function[1])
        tool: dict[str, Any] = {"name": fields.pop("name"), "description": fields.pop("description", "")}
        tool["parameters"] = _read_schema(fields.pop("parameters", ""))
        tools.append(tool | _read_fields(fields))
        pos = function.end()
    if body[pos:].strip():
        raise _not_a_definition(body[pos:])
    return tools


def _read_schema(text: str) -> dict[str, Any]:
    properties, pos = {}, 0
    while (parameter := _PARAMETER.match(text, pos)) is not None:
        fields = _list_fields(parameter[1])
        if "name" not in fields:
            raise _not_a_definition(parameter[1])
        name = fields.pop("name")
        if name in properties:
            raise ValueError(f"tools in the system text: parameter {name[:40]!r} twice in one definition")
        properties[name] = _read_fields(fields)
        pos = parameter.end()
    return {"type": "object", "properties": properties, **_read_fields(_list_fields(text[pos:]))}


def _list_fields(text: str) -> dict[str, str]:
    """The fields `<key>text</key>` one after the other. Raises ValueError for anything else."""
    fields, pos = dict[str, str](), 0
    while (field := _FIELD.match(text, pos)) is not None:
        if field[1] in fields:
            raise ValueError(f"tools in the system text: <{field[1][:40]}> twice in one definition")
        fields[field[1]] = field[2]
        pos = field.end()
    if text[pos:].strip():
        raise _not_a_definition(text[pos:])
    return fields


def _not_a_definition(text: str) -> ValueError:
    return ValueError(f"tools in the system text: not a definition: {text.strip()[:40]!r}")


def _read_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    of_text = fields.get("type") == "string"
    return {key: _read_field(key, text, of_text=of_text) for key, text in fields.items()}


def _read_field(key: str, text: str, *, of_text: bool) -> Any:
    """A field of a definition: JSON, what Python's `str` writes, a list in backquotes, or text.

    The template writes a text as it is, so the field's name, or the type that it belongs to, must tell
    the text `5` from the number.
    """
    if key in _TEXTS:
        return text
    if text.startswith(("[", "{")):
        value = _read_whole(text)
        if value is None and key in _LISTS and text.startswith("[") and text.endswith("]"):
            return _read_items(text[1:-1])
        return text if value is None else value
    return text if key == "type" or (of_text and key in _VALUES and text != "None") else _read_scalar(text)


def _read_whole(text: str) -> Any:
    """The list or object that a text is, None where it is none."""
    try:
        value, end, _ = read_value(text, 0)
    except NotLiteral:
        return None
    return value if end == len(text) else None


def _read_items(text: str) -> list[Any]:
    """Items with a comma between, texts in backquotes: a comma in one of these ends no item."""
    items, open_text = list[Any](), list[str]()
    for part in text.split(", "):
        if not open_text and not part.startswith("`"):
            items.append(_read_scalar(part))
            continue
        open_text.append(part)
        if part.endswith("`") and (len(open_text) > 1 or len(part) > 1):
            items.append(", ".join(open_text)[1:-1])
            open_text = []
    return [*items, *open_text]


def _read_scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text) is None:
        return text
    try:
        return json.loads(text)
    except ValueError:  # an integer beyond Python's limit of digits
        return text
