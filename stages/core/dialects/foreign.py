"""The marks of calls in a text that no dialect here has read: whose format it is, and how certain that is.

A mark is certain where it stands outside code and is a token of some model's vocabulary, or has the name
of an offered tool behind it; JSON, where nothing else is said with it. Anything else may be words about
calls. For nearly all texts this is no more than a look for a few characters, and for none more than a
fixed number of passes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from stages.core.dialects.json_calls import NotCall, read_value
from stages.core.dialects.literals import NotLiteral
from stages.core.dialects.pythonic import read_calls_at
from stages.core.dialects.scanning import Source
from stages.core.dialects.toolbox import Toolbox
from stages.core.dialects.variants import read_any_keys

MARKED = re.compile(r"<tools?>\s*[{\[]|<(?:tool_calls|function_?call|TOOLCALL|\|tool_call\|)>|\[TOOL_CALLS\]")
"""Marks of JSON calls that the dialects here read."""
BRACKETED = re.compile(r"<\|python_tag\|>|<\|tool_call_start\|>")
"""Marks of Python's calls that the dialects here read."""
NAME_IN_JSON = re.compile(
    r"""[{,]\s*["'](?:name|function|tool|tool_name|function_name|action)["']\s*:\s*["']([\w.-]+)["']"""
)
"""A key under which JSON has the name of a tool, and the name."""


class Sighting(NamedTuple):
    """A mark in a text."""

    family: str
    """Whose format it belongs to."""
    start: int
    certain: bool
    """Whether a call is meant; else it may only be spoken of."""


class _Mark(NamedTuple):
    family: str
    pattern: str
    token: bool = False
    """Of a model's vocabulary: no words have it, so that it needs no tool's name behind it."""
    alone: bool = True
    """Whether it is a mark, though no certain one, without a tool's name behind it."""
    sure: bool = True
    """Whether a tool's name behind it makes it certain."""


_ANGLED = (  # each behind `<`
    _Mark("DeepSeek", r"[|｜]tool▁|｜DSML｜", token=True),
    _Mark("Kimi", r"\|tool_calls?_(?:section_|argument_)?begin\|>", token=True),
    _Mark("Harmony (gpt-oss)", r"\|call\|>|\|(?:channel|start)\|>[^<]{0,80}\bto=\w", token=True),
    _Mark("Gemma", r"start_function_call>|\|tool_call>", token=True),
    _Mark("GLM", "arg_key>", token=True),
    _Mark("MiniMax", "minimax:tool_call>", token=True),
    _Mark("Seed", "seed:tool_call>", token=True),
    _Mark("LongCat", "longcat_tool_call>", token=True),
    _Mark("Cohere", r"\|START_ACTION\|>", token=True),
    _Mark("InternLM", r"\|action_start\|>", token=True),
    _Mark("Functionary", r"\|recipient\|>(?!\s*all\b)", token=True),
    _Mark("Apertus", r"\|tools_prefix\|>", token=True),
    _Mark("Llama", r"\|python_(?:tag|start)\|>", token=True),
    _Mark("LFM2", r"\|tool_call_start\|>", token=True),
    _Mark("Granite or Phi", r"\|tool_call\|>", token=True),
    _Mark(
        "a model unknown here", r"[|｜][\w:/]{0,30}(?:tool|function)[_-]?calls?[\w:]{0,30}[|｜]>", token=True
    ),
    _Mark(  # around a call that was taken out
        "tags that are nearly <tool_call>",
        r"(?i:tool[-_ ]?(?:call|use)s?)\s*+>\s*+</(?i:tool[-_ ]?(?:call|use)s?)",
        token=True,
    ),
    _Mark("Anthropic (XML)", r"(?:antml:)?invoke(?:\s+name=|>)|tool_use>"),
    _Mark(
        "tags that are nearly <tool_call>",
        r"(?!tool_call>)(?i:tool[-_ ]?(?:call|use)s?|function[-_ ]?calls?)\s*+>",
    ),
    _Mark("XML", r"(?:tool_name|function_name|function)>|(?:tool|call|function_call)\s+name=", alone=False),
)
_OTHER = (
    _Mark("Mistral", r"\[TOOL_CALLS\]", token=True),
    _Mark("Qwen-Agent (✿FUNCTION✿)", "✿FUNCTION✿", token=True),
    _Mark("escaped tags", r"&lt;(?:tool[-_]?(?:call|use)s?|function[-_]?calls?|invoke\b|function=)"),
    _Mark("Harmony (gpt-oss)", r"\bto=functions\."),
    _Mark("ReAct (Action: …)", r"^[ \t*]*+Action[ \t*]*+:(?=[^\n]{0,200}\n\s*+\**Action Input)"),
    _Mark(
        "ReAct (Action: …)",
        r"^[ \t*]*+Action[ \t*]*+:(?=[ \t*`]*+[\w.\-]++(?:[*`]*+\(|[ \t*`]*+(?:[\r\n\[{]|\Z)"
        r"|[ \t]++\(\s*+(?:[)\"'{\[\d-]|\w++\s*+=)))",
        alone=False,
    ),
    _Mark(  # `Action: open (the door)` has a remark in brackets, or a call's argument
        "ReAct (Action: …)",
        r"^[ \t*]*+Action[ \t*]*+:(?=[ \t*`]*+[\w.\-]++[ \t]++\()",
        alone=False,
        sure=False,
    ),
    _Mark("Functionary", r"^>>>(?=\w)", alone=False),
    _Mark("GLM-4 (a name above JSON)", r"^(?=[\w.\-]++[ \t]*+\r?\n\{)", alone=False),
)


def _join(marks: Sequence[_Mark], before: str = "") -> re.Pattern[str]:
    """One expression whose n-th group is the n-th mark."""
    return re.compile(f"{before}(?:{'|'.join(f'({mark.pattern})' for mark in marks)})", re.MULTILINE)


_ANGLED_MARK, _OTHER_MARK = _join(_ANGLED, "<"), _join(_OTHER)
_NAMED_TAG = re.compile(r"<([\w.\-]++)>(?=\s*+<([\w\-]++)>)")  # <read_file><path>, as Cline writes
_CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]++`|^ {0,3}~~~.*?(?:^ {0,3}~~~|\Z)"
    # Lines that are indented behind words and a blank line.
    r"|(?<=\S)[ \t\r]*+\n(?:[ \t\r]*+\n)++(?:(?:[ \t\r]*+\n)*+(?: {4}|\t)[^\n]*+(?:\n|\Z))++",
    re.DOTALL | re.MULTILINE,
)
_MAY_BE_CODE = ("`", "~~~", "\n    ", "\n\t")
_TOOL_CODE = re.compile(r"```tool_code\b")
_CALLED = re.compile(r"([\w.]+)\(")
_CALL_FIRST = re.compile(r"\s*+(?=([\w.\-]++)\()")
_PLAIN_NAME = re.compile(r"""[{,]\s*["']name""")
_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters|args|params|(?:action_|tool_)?input)["']\s*:""")
_DEFINITION = re.compile(r"""["'](?:description|properties)["']\s*:""")
_WORD = re.compile(r"[\w.\-]+")
_BREAK = re.compile(r"\n[ \t\r]*+\n")
_ALL_JSON = re.compile(r"(?:\{|\[\s*+[{\[\"']).*[}\]]", re.DOTALL)
_CLOSERS = re.compile(r"[\s}\]]*+\Z")
_LINE_BRACKET = re.compile(r"^[ \t]*+[{\[]", re.MULTILINE)
_NEAR, _FAR = 120, 400  # characters behind a mark in which its tool, or what belongs to it, stands
_MOST = 10_000  # marks of a text: no real one comes near
_SYNTAX = frozenset(
    (
        *("name", "tool", "tool_name", "tool_call", "tool_use", "function", "function_name", "function_call"),
        *("functions", "invoke", "action", "type", "json", "quot", "lt", "gt", "amp"),
    )
)


def find_foreign(text: str, box: Toolbox) -> Sighting | None:
    """The first certain mark of a call in a text without calls; else the first that is uncertain, if any."""
    if not _may_show(text):
        return None
    code: list[tuple[int, int]] | None = None
    uncertain: Sighting | None = None
    for seen in islice(_walk_marks(text, box), _MOST):
        if code is None:
            shown = any(sign in text for sign in _MAY_BE_CODE)
            code = [match.span() for match in _CODE.finditer(text)] if shown else []
        if seen.certain and not _is_within(seen.start, code):
            return seen
        uncertain = uncertain or seen._replace(certain=False)
    if (fence := _TOOL_CODE.search(text)) is not None:
        named = any(name in box.schemas for name in _CALLED.findall(text, fence.end(), fence.end() + _FAR))
        return Sighting("Gemma (```tool_code)", fence.start(), named)
    return uncertain


def _may_show(text: str) -> bool:
    """Whether a mark is possible at all."""
    return "<" in text or "{" in text or text.rstrip()[-1:] == ")" or _may_show_other(text)


def _may_show_other(text: str) -> bool:
    """The same for marks without a `<`; one character is looked for before several."""
    return (
        ("&" in text and "&lt;" in text)
        or ("`" in text and "```tool_code" in text)
        or ("=" in text and "to=" in text)
        or ("[" in text and "[TOOL" in text)
        or (">" in text and ">>>" in text)
        or "✿" in text
        or "Action" in text
    )


def _walk_marks(text: str, box: Toolbox) -> Iterator[Sighting]:
    """The marks in a text; `certain` as they would be outside code."""
    if "<" in text:
        yield from _walk(text, box, _ANGLED_MARK, _ANGLED)
        yield from _walk_named_tags(text, box)
    if "\n{" in text or _may_show_other(text):
        yield from _walk(text, box, _OTHER_MARK, _OTHER)
    if "{" in text:
        yield from _walk_json(text, box)
    if text.rstrip()[-1:] == ")" and (start := _find_whole_call(text, box)) != -1:
        yield Sighting("Python without brackets", start, True)


def _walk(text: str, box: Toolbox, pattern: re.Pattern[str], marks: Sequence[_Mark]) -> Iterator[Sighting]:
    for match in pattern.finditer(text):
        mark = marks[(match.lastindex or 1) - 1]
        named = mark.token or _names_a_tool(text, match.end(), box)
        if named or mark.alone:
            yield Sighting(mark.family, match.start(), named and mark.sure)


def _walk_named_tags(text: str, box: Toolbox) -> Iterator[Sighting]:
    """Tags with the name of a tool around one with the name of its argument."""
    for match in _NAMED_TAG.finditer(text):
        schema = box.schemas.get(match[1])
        if schema is not None and match[2] in (schema.get("properties") or ()):
            yield Sighting("Cline (tags of the name of a tool)", match.start(), True)


def _walk_json(text: str, box: Toolbox) -> Iterator[Sighting]:
    """JSON with the name of a tool; under `name` it needs arguments, since much else has a name."""
    place: _Surroundings | None = None
    for match in NAME_IN_JSON.finditer(text):
        start, end = match.start(), match.end() + _FAR
        offered = match[1] in box.schemas
        has_arguments = _ARGUMENTS.search(text, match.end(), end) is not None
        if _PLAIN_NAME.match(text, start):
            if not (offered and has_arguments) or _DEFINITION.search(text, match.end(), end):
                continue
        elif not (offered or has_arguments):
            continue
        if offered and place is None:
            place = _Surroundings(text)
        certain = offered and place is not None and place.show_a_call(start, has_arguments)
        yield Sighting("JSON with other keys, or among words", start, certain)


class _Surroundings:
    """What JSON stands among: a sentence or a log line quotes it, a call has a paragraph to itself."""

    def __init__(self, text: str) -> None:
        self._text = text.rstrip()
        self._budget = 4 * len(text)
        """Characters that may still be read to see what a value is."""
        self._starts = [0, *(match.end() for match in _BREAK.finditer(self._text))]
        whole = _is_json(self._text)
        ends = [*self._starts[1:], len(self._text)]
        self._is_json = [
            whole or _is_json(self._text[start:end]) for start, end in zip(self._starts, ends, strict=True)
        ]
        bracket = _LINE_BRACKET.search(self._text, self._starts[-1]) if self._text[-1] in "}]" else None
        self._last = len(self._text) if bracket is None else bracket.start()
        """Where the JSON begins that the text ends with, if it begins a line."""

    def show_a_call(self, start: int, has_arguments: bool) -> bool:
        """Whether JSON with the name of an offered tool at `start` is there to be called."""
        if self._is_json[bisect_right(self._starts, start) - 1] or (has_arguments and start >= self._last):
            return True
        return has_arguments and self._ends_as_call(start)

    def _ends_as_call(self, start: int) -> bool:
        """Whether a text ends in a call's name and arguments, and nothing else is in them."""
        if self._budget < 0 or not self._text.startswith("{", start):
            return False
        try:
            value, end, _ = read_value(self._text, start)
            read_any_keys(value)
        except NotLiteral as error:
            self._budget -= error.reached - start
            return False
        except NotCall:
            self._budget -= end - start
            return False
        self._budget -= end - start
        return _CLOSERS.match(self._text, end) is not None


def _is_json(text: str) -> bool:
    """Whether a text looks like JSON and nothing else."""
    return _ALL_JSON.fullmatch(text.strip()) is not None


def _find_whole_call(text: str, box: Toolbox) -> int:
    """Where the calls begin that a text is and nothing else, as Python writes them; -1 for other texts.

    `f(x) looks it up (in a file)` speaks of a tool.
    """
    first = _CALL_FIRST.match(text)
    if first is None or first[1] not in box.schemas:
        return -1
    try:
        calls, end = read_calls_at(Source(text, box), first.end())
    except NotLiteral:
        return -1
    offered = all(call.name in box.schemas for call in calls)
    return first.end() if offered and not text[end:].strip() else -1


def _names_a_tool(text: str, pos: int, box: Toolbox) -> bool:
    """Whether the first word from `pos` on that is no syntax of a format is the name of an offered tool."""
    for match in _WORD.finditer(text, pos, pos + _NEAR):
        word = match[0].removeprefix("functions.").strip(".-")
        if word in box.schemas:
            return True
        if word.lower() not in _SYNTAX:
            return False
    return False


def _is_within(start: int, spans: Sequence[tuple[int, int]]) -> bool:
    place = bisect_right(spans, (start, start)) - 1
    return place >= 0 and spans[place][0] <= start < spans[place][1]
