"""JSON calls without `<tool_call>`: in a ```json fence, in other tags, or bare on a line of its own.

So Qwen2.5-Coder answers where it should use its template's tags, and so Mistral, Granite, Phi and
Glaive's data mark their calls. Little but the form shows that such JSON is a call, so it must be
nothing else: no foreign keys, not the definition of a tool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.core.chat import ToolCall
from stages.core.dialects.json_calls import read_calls, read_value, walk_values, write_call
from stages.core.dialects.literals import NotLiteral
from stages.core.dialects.problems import Recovered, shorten
from stages.core.dialects.pythonic import skip_fence
from stages.core.dialects.scanning import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_TAGS,
    Block,
    Reply,
    Source,
    read_reply,
)
from stages.core.dialects.toolbox import Tools

NAME = "fenced_json"
TOOLS_OPEN = "<tools>"
TOOLS_CLOSE = "</tools>"
FENCE = "```"
_RESULT_OPEN, _RESULT_CLOSE = "<tool_response>", "</tool_response>"  # what stands in them is quoted
_CALL_START = r"""(?:\[\s*+)?\{\s*+["'](?:name|arguments|parameters|function|type|id)["']\s*+:"""
# Behind words JSON begins with its name, and the words are neither code nor other JSON.
_NAME_FIRST = r"""\{\s*+["']name["']\s*+:\s*+["']"""
_INLINE_START = rf"""(?:(?<=[^\s\[{{(,=`"'>])(?<!["']:)[ \t]++|(?<=[:：。])(?<!["']:))(?={_NAME_FIRST})"""
BARE_START = rf"(?:^|(?<=</think>))[ \t]*+(?={_CALL_START})|{_INLINE_START}"
_CALL_MARKS = {
    TOOLS_OPEN: TOOLS_CLOSE,
    "<tool_calls>": "</tool_calls>",
    "<function_call>": "</function_call>",
    "<functioncall>": "</functioncall>",  # Glaive
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron
    "<|tool_call|>": "<|/tool_call|>",  # Granite, Phi
    "[TOOL_CALLS]": "",  # Mistral
}
_OTHER_MARKS = {f"<{word}>": f"</{word}>" for word in ("tool", "json", "JSON", "xml", "response")}
"""Tags that models put around a call, and around other things as well."""
_CLOSINGS = _CALL_MARKS | _OTHER_MARKS
_OPTIONAL_CLOSINGS = frozenset(("[TOOL_CALLS]", "<functioncall>", "<|tool_call|>", "functools"))
_PHI = "functools"  # Phi-4-mini writes it right before its list, others in code
MARK_START = "|".join((*map(re.escape, _CLOSINGS), rf"(?<!\w){_PHI}(?=\[\s*+\{{)"))

_OPENINGS = re.compile(f"{CALL_OPEN}|{MARK_START}|{THINK_TAGS}|{FENCE}|{BARE_START}", re.MULTILINE)
_MARK = re.compile(MARK_START)
_INLINE = re.compile(rf"""{_INLINE_START}{_NAME_FIRST}([^"'\\]*+)""")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*+")
_ARGS = re.compile(r"(?:\[CALL_ID\][\w\-]*+)?(?:\[ARGS\])?\s*+(?=\{)")
_FENCE = re.compile(r"```[ \t]*+(?:(?:json[c5l]?|xml|tool_calls?|tool_code)\b)?\s*+(?=[{\[])", re.IGNORECASE)
_LOOKS_LIKE_CALL = re.compile(_CALL_START)
_NAME_KEY = re.compile(r"""["']name["']\s*+:""")
_ARGUMENTS_KEY = re.compile(r"""["'](?:arguments|parameters)["']""")
_FURTHER = 500  # characters behind a mistake that may still show a call
_LINE_END = re.compile(
    r"[ \t]*+(?:\r?\n|\Z|(?:<\|[a-z_]{2,20}\|>|</s>)\s*+\Z)"
)  # a turn's last token as well


def render(calls: Sequence[ToolCall], tools: Tools = None) -> str:
    """Each call in a fence of its own. Raises ValueError for what JSON cannot say."""
    return "\n".join(f"{FENCE}json\n{write_call(call)}\n{FENCE}" for call in calls)


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in this dialect."""
    return read_reply(Source(text, tools), _OPENINGS, read_block)


def read_block(source: Source, start: int) -> Block | None:
    """Read what opens at `start`: a fence, a mark, or white space and a bracket on a new line.

    A `<tool_call>` is stepped over: JSON in it is another dialect's.
    """
    text = source.text
    if text.startswith(CALL_OPEN, start):
        problem = f"{NAME}, character {start}: {CALL_OPEN} opens no call of this dialect"
        return Block(source.end_of_block(start), NAME, problems=[problem])
    if text.startswith(FENCE, start):
        return _read_fence(source, start)
    if (mark := _MARK.match(text, start)) is not None:
        return _read_marked(source, mark)
    return None if start < source.fence_end or source.exhausted else _read_bare(source, start)


def _read_values(source: Source, pos: int, problems: list[str], place: str) -> tuple[list[ToolCall], int]:
    """The calls in the JSON values from `pos` on, and the end of the last value. Raises NotLiteral.

    No calls when one of the values is no call: then the text shows something else, which is a problem
    only where it has both a name and arguments.
    """
    calls: list[ToolCall] = []
    end = pos
    if source.exhausted:
        return calls, end
    try:
        for value, start, end, forgiven in walk_values(source.text, pos):
            read, wrong = read_calls(value, marked=False)
            if forgiven:
                problems.append(Recovered(place, forgiven))
            if wrong:
                written = source.text[start:end]
                if '"name"' in written and '"arguments"' in written:
                    problems.append(f"{place}: {wrong[0]}: {shorten(written)}")
                return [], end
            calls += read
    except NotLiteral as error:
        source.budget -= error.reached - pos  # what came before it was read in vain as well
        raise
    return calls, end


def _read_inline(source: Source, pos: int, problems: list[str], place: str) -> tuple[list[ToolCall], int]:
    """The calls of offered tools from `pos` up to the first value that is none, and the end of the last."""
    calls: list[ToolCall] = []
    end = pos
    try:
        for written in walk_values(source.text, pos):
            read, wrong = read_calls(written.value, marked=False)
            if wrong or not read or any(call.name not in source.tools.schemas for call in read):
                source.budget -= written.end - written.start
                break
            if written.forgiven:
                problems.append(Recovered(place, written.forgiven))
            calls += read
            end = written.end
    except NotLiteral as error:
        source.budget -= error.reached - end
    return calls, end


def _meant_as_call(source: Source, start: int, end: int, error: NotLiteral) -> bool:
    """Whether what is no JSON was to be a call: it names arguments as well, or the text breaks off in it."""
    piece = source.text[start:end]
    if _NAME_KEY.search(piece) is None:
        return False
    return _ARGUMENTS_KEY.search(piece) is not None or source.find("}", error.pos) == -1


def _read_fence(source: Source, start: int) -> Block | None:
    if start < source.fence_end:
        return None
    text, place = source.text, f"{NAME}, character {start}"
    fence = _FENCE.match(text, start)
    skip_fence(source, start)
    if fence is None or _LOOKS_LIKE_CALL.match(text, fence.end()) is None:
        return None
    problems: list[str] = []
    try:
        calls, end = _read_values(source, fence.end(), problems, place)
    except NotLiteral as error:
        if not _meant_as_call(source, fence.end(), min(source.fence_end, len(text)), error):
            return None
        return Block(
            source.fence_end, NAME, problems=[f"{place}: invalid JSON ({error} at character {error.pos})"]
        )
    if not calls:
        return Block(source.fence_end, NAME, problems=problems) if problems else None
    pos = source.skip_space(end)
    if text.startswith(FENCE, pos):
        end = pos + len(FENCE)
    else:
        problems.append(Recovered(place, f"no closing {FENCE}"))
    source.fence_end = end
    return Block(end, NAME, calls, problems)


def read_mark(text: str, start: int) -> str:
    """The mark at `start`, empty where there is none."""
    mark = _MARK.match(text, start)
    return mark[0] if mark is not None else ""


def needs_offer(mark: str) -> bool:
    """Whether a mark is also put around other things than calls."""
    return mark in _OTHER_MARKS


def ends_line(text: str, end: int) -> bool:
    """Whether nothing but a turn's last token follows on the line of what ended."""
    return _LINE_END.match(text, end) is not None


def is_quoted(text: str, start: int) -> bool:
    """Whether what is at `start` is a result in its tag."""
    return text[max(0, start - 40) : start].rstrip().endswith(_RESULT_OPEN)


def _read_marked(source: Source, mark: re.Match[str]) -> Block | None:
    text, place, closing = source.text, f"{NAME}, character {mark.start()}", _CLOSINGS.get(mark[0], "")
    pos = source.skip_space(mark.end())
    problems: list[str] = []
    named = _find_name(source, pos) if not closing and mark[0] != _PHI else None
    if named is None and mark[0] != TOOLS_OPEN and _LOOKS_LIKE_CALL.match(text, pos) is None:
        return None
    try:
        if named is not None:
            arguments, end, forgiven = read_value(text, named[1])
            calls = [ToolCall(named[0], arguments)]
            if forgiven:
                problems.append(Recovered(place, forgiven))
        else:
            calls, end = _read_values(source, pos, problems, place)
    except NotLiteral as error:
        problems.append(f"{place}: invalid JSON ({error} at character {error.pos})")
        calls, end = [], pos
    if not calls:
        if mark[0] == TOOLS_OPEN and not problems:
            problems.append(f"{place}: no JSON object in {mark[0]}")
        return Block(end, NAME, problems=problems) if problems else None
    pos = source.skip_space(end)
    if closing and text.startswith(closing, pos):
        end = pos + len(closing)
    elif mark[0] not in _OPTIONAL_CLOSINGS:
        problems.append(Recovered(place, f"no {closing}"))
    return Block(end, NAME, calls, problems)


def _find_name(source: Source, pos: int) -> tuple[str, int] | None:
    """A tool's name before its arguments, as Mistral writes it, and where the arguments begin."""
    text, odd = source.text, source.tools.odd_names
    name = _NAME.match(text, pos)
    names = [each for each in odd if text.startswith(each, pos)] if text.startswith(odd, pos) else []
    for each in (*names, name[0] if name is not None else ""):
        if each and (arguments := _ARGS.match(text, pos + len(each))) is not None:
            return each, arguments.end()
    return None


def _read_bare(source: Source, start: int) -> Block | None:
    text, place = source.text, f"{NAME}, character {start}"
    begin = source.skip_space(start)
    if is_quoted(text, start):
        close = source.find(_RESULT_CLOSE, begin)
        return Block(close, NAME) if close != -1 else None
    problems: list[str] = []
    inline = _INLINE.match(text, start)
    if inline is None and _LOOKS_LIKE_CALL.match(text, begin) is None:
        return None  # opened for another reading
    if inline is not None:
        if inline[1] not in source.tools.schemas:
            return None  # answers show all kinds of JSON in their sentences
        calls, end = _read_inline(source, begin, problems, place)
        if not calls:
            return None
    else:
        try:
            calls, end = _read_values(source, begin, problems, place)
        except NotLiteral as error:
            if not _meant_as_call(source, begin, error.pos + _FURTHER, error):
                return None
            problem = f"{place}: invalid JSON ({error} at character {error.pos})"
            return Block(max(error.pos, begin + 1), NAME, problems=[problem])
        if not calls:
            return Block(end, NAME, problems=problems)
    closing = source.skip_space(end)
    for tag in (CALL_CLOSE, TOOLS_CLOSE):
        if text.startswith(tag, closing):
            problems.append(Recovered(place, f"{tag} without its opening tag"))
            return Block(closing + len(tag), NAME, calls, problems)
    if inline is None and ends_line(text, end):
        return Block(end, NAME, calls, problems)
    problem = f"{place}: JSON in the middle of prose"
    if all(call.name in source.tools.schemas for call in calls):
        return Block(end, NAME, calls, [*problems, problem])
    return Block(end, NAME, problems=[f"{problem} is no call"])
