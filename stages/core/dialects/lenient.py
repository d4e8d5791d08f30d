"""Find the calls of a reply whatever its dialect, and name the dialect.

Tags mark a call wherever they stand. What lies between `<tool_call>` tags is JSON, XML or Python by
its form. Where nothing but its form marks a piece of text as a call, it must name an offered tool,
if it is known which are, be it none.
"""

from __future__ import annotations

import re

from stages.core.dialects import bare_python, fenced_json, hermes, pythonic, qwen3_coder, variants
from stages.core.dialects.literals import NotLiteral
from stages.core.dialects.plain import read_plain
from stages.core.dialects.problems import Recovered, shorten
from stages.core.dialects.scanning import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_TAGS,
    Block,
    Reply,
    Source,
    close_block,
    read_reply,
)
from stages.core.dialects.toolbox import Toolbox, Tools, open_toolbox

_TAGS = "|".join(
    (
        *(CALL_OPEN, qwen3_coder.FUNCTION_START, fenced_json.MARK_START, pythonic.WRAPPER_START),
        *(variants.TAG_START, THINK_TAGS),
    )
)
_TAGS_ONLY = re.compile(_TAGS)
_JSON_STARTS = f"{fenced_json.FENCE}|{fenced_json.BARE_START}|{variants.BARE_START}"
_ALL = re.compile(f"{_TAGS}|{_JSON_STARTS}|{pythonic.LIST_START}", re.MULTILINE)
_ODD = re.compile(f"{_ALL.pattern}|{pythonic.ODD_START}", re.MULTILINE)
_CALL = re.compile(r"\w\(")


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in any dialect. The first call's dialect is named; a mixture is a problem."""
    box = open_toolbox(tools)
    return read_plain(text, box) or read_weighing(text, box)


def read_weighing(text: str, box: Toolbox) -> Reply:
    """Read a reply in any dialect and of any form."""
    openings = _ALL if "{" in text or "[" in text else _TAGS_ONLY
    return read_reply(Source(text, box), _ODD if "[" in text and box.odd_names else openings, _read_block)


def _read_block(source: Source, start: int) -> Block | None:
    text = source.text
    if text.startswith(CALL_OPEN, start):
        return _read_tagged(source, start)
    if text.startswith("<function", start) and qwen3_coder.starts_function(text, start):
        return qwen3_coder.read_block(source, start)
    if mark := fenced_json.read_mark(text, start):
        block = fenced_json.read_block(source, start)
        return _keep_offered(source, block, start) if fenced_json.needs_offer(mark) else block
    if text.startswith(fenced_json.FENCE, start):
        return _read_json(source, start)
    if text.startswith("<", start):
        read = variants.read_tag if variants.starts_tag(text, start) else pythonic.read_block
        return read(source, start)
    if pythonic.starts_list(source, start):
        return _read_list(source, start)
    return _read_json(source, start)


def _read_list(source: Source, start: int) -> Block | None:
    """Read a list of calls; in a sentence it is prose where nobody offers one of its tools."""
    block = pythonic.read_block(source, start)
    if block is None or not source.tools:
        return _keep_offered(source, block, start)
    if not block.calls:
        return None if pythonic.shows_another(source, start) else block
    offered = any(call.name in source.tools.schemas for call in block.calls)
    if not offered and pythonic.stands_in_sentence(source, start, block.end):
        return Block(block.end, block.dialect)
    return _keep_offered(source, block, start)


def _read_json(source: Source, start: int) -> Block | None:
    """Read a fence or bare JSON, under the usual keys or others."""
    if (block := variants.read_other_keys(source, start)) is not None:
        return block
    return _keep_offered(source, fenced_json.read_block(source, start), start)


def _read_tagged(source: Source, start: int) -> Block:
    """Read a `<tool_call>` block in the dialect that its first characters show."""
    body = source.skip_space(start + len(CALL_OPEN))
    if (doubled := _read_doubled(source, start, body)) is not None:
        return doubled
    if source.text.startswith((CALL_OPEN, CALL_CLOSE), body):
        end = source.end_of_block(start)
        return Block(end, hermes.NAME, problems=[f"character {start}: nothing in {CALL_OPEN}"])
    if source.text.startswith("<function", body):
        return qwen3_coder.read_block(source, start)
    if (python := _read_python_calls(source, start, body)) is not None:
        return python
    if (
        qwen3_coder.starts_behind_prose(source.text, body)
        and (xml := qwen3_coder.read_block(source, start)).calls
    ):
        return xml
    is_json = hermes.starts_json(source.text, body)
    if is_json:
        block = hermes.read_block(source, start)
        if block.calls or source.text.startswith("{", body):
            return block
    if not source.tools or bare_python.TOOL in source.tools.schemas:
        code = _read_code(source, start)
        if code is not None:
            return code
    if is_json:
        return block
    end = source.end_of_block(start)
    found = shorten(source.text[start : min(end, start + 100)])
    takes_code = not source.tools or bare_python.TOOL in source.tools.schemas
    last = "Python" if takes_code else "a call of an offered tool in Python"
    what = f"neither JSON nor XML nor {last}"
    return Block(end, hermes.NAME, problems=[f"character {start}: {what}: {found}"])


def _read_doubled(source: Source, start: int, body: int) -> Block | None:
    """Read a call whose opening tag stands twice."""
    inside = source.skip_space(body + len(CALL_OPEN))
    if not source.text.startswith(CALL_OPEN, body) or source.text.startswith(CALL_OPEN, inside):
        return None
    block = _read_tagged(source, body)
    if not block.calls:
        return None
    block.problems.insert(0, Recovered(f"{block.dialect}, character {start}", f"{CALL_OPEN} once too often"))
    return block


def _read_python_calls(source: Source, start: int, body: int) -> Block | None:
    """Read `<tool_call>` around calls as Python writes them: of tools that are offered, or, where none are
    known, in a list. Where code may be sent it is code."""
    schemas = source.tools.schemas
    if bare_python.TOOL in schemas or not (source.tools or pythonic.starts_list(source, body)):
        return None
    if source.exhausted:
        return None
    try:
        calls, end = pythonic.read_calls_at(source, body)
    except NotLiteral as error:
        source.budget -= error.reached - body
        return None
    if not calls or not all(call.name in schemas if source.tools else call.arguments for call in calls):
        source.budget -= end - body
        return None
    place = f"{pythonic.NAME}, character {start}"
    end, leftover, closed = close_block(source, source.skip_space(end), end)
    if leftover or not (closed or end == len(source.text)):
        return None
    problems: list[str] = [Recovered(place, f"Python's calls in {CALL_OPEN}")]
    if not closed:
        problems.append(Recovered(place, f"no {CALL_CLOSE}"))
    return Block(end, pythonic.NAME, calls, problems)


def _read_code(source: Source, start: int) -> Block | None:
    """Read a block as code if it is Python, or at least calls something where code may be sent.

    What this interpreter cannot parse may still be meant as code, as in a newer Python.
    """
    block = bare_python.read_block(source, start)
    if not block.calls:
        return None
    code = block.calls[0].arguments[bare_python.ARGUMENT]
    if bare_python.does_something(code):
        return block
    if bare_python.TOOL not in source.tools.schemas or _CALL.search(code) is None:
        return None
    problem = f"{bare_python.NAME}, character {start}: the code does not parse as Python"
    return Block(block.end, block.dialect, block.calls, [*block.problems, problem])


def _keep_offered(source: Source, block: Block | None, start: int) -> Block | None:
    """Drop a block whose calls nothing marks and that names a tool nobody offered.

    Where no tools are offered at all, nothing is meant as a call: it is prose, and no problem.
    """
    if block is None or not source.tools.known:
        return block
    if not source.tools:
        return Block(block.end, block.dialect)
    if not block.calls:
        return block
    foreign = [call.name for call in block.calls if call.name not in source.tools.schemas]
    if not foreign:
        return block
    problem = f"{block.dialect}, character {start}: {foreign[0]!r} is not an offered tool, so not a call"
    return Block(block.end, block.dialect, problems=[problem])
