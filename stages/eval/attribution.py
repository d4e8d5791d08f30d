"""What went wrong first in a reply.

A reply is followed in the order in which a model writes it: it decides for a call or an answer, opens
the call in a dialect, writes it well, names a tool, fills in its arguments, sends code, and ends. The
first of these that is wrong is the cause of the failure; what comes later may be its consequence. So a
reply that hit the token limit ran away only where all that it had written by then was well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import DIALECTS, Reply, Toolbox, parse_reply
from stages.core.dialects.foreign import BRACKETED, MARKED, NAME_IN_JSON, find_foreign
from stages.core.query import Query
from stages.core.records import Cause, RawReply
from stages.eval.behaviour import Behaviour
from stages.eval.code import code_of, parse_code
from stages.eval.cutoff import breaks_off
from stages.eval.matching import Match, begin_right, match_calls
from stages.eval.repetition import find_loop, find_repeated_line

THINKING, THOUGHT = "<think>", "</think>"  # behind the second a model answers
BEFORE_A_LOOP = 20  # characters before a loop that say nothing yet
AS_CODE = "python"  # no dialect: the functions are called in a code block, or in bare code
_TAGGED = re.compile(r"<tool_call>\s*(?:```\w*\s*)?(<function|[{\[])?")
_GLM = "<arg_key>"
_XML = re.compile(r"<function(?:=| name=)")
_SPOKEN_OF = re.compile(r"`(?:<[/|]?[\w|= .-]{1,40}>|\[TOOL_CALLS\])`")  # a mark alone, as code
_QUOTED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_OTHER_TURN = re.compile(  # the marks of ChatML, Llama and Gemma
    r"^<tool_response>|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>", re.MULTILINE
)
_LISTED = re.compile(r"^[ \t]*\[\s*([\w.]+)\(", re.MULTILINE)
_ALONE = re.compile(r"\s*(?:```\w*\s*)?[{\[].*[}\]]\s*(?:```\s*)?", re.DOTALL)  # nothing but JSON
_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters)["']\s*:""")
_FENCED_CODE = re.compile(r"```(?:python|py|tool_code)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Signs:
    """What a reply shows whatever dialect it is read in."""

    attempt: str | None
    """The dialect, or other format, in which it seems to open a call, or AS_CODE; None where nothing does."""
    calls: bool
    """Some dialect reads a call in it."""
    loop: int | None
    """Where it begins to repeat itself."""
    empty: bool
    """It has nothing behind its reasoning, or never came to the end of it."""
    ended: bool | None
    """It ended by itself and did not hit the token limit; None where it was stopped for another reason."""
    went_on: bool
    """It wrote a turn of someone else: a result that nobody gave, or the head of the next turn."""
    torn: bool
    """It hit the token limit within a block that was well written so far, as was all before it."""

    @property
    def foreign(self) -> bool:
        """It opens a call in a format that no dialect here reads."""
        return self.attempt not in (None, AS_CODE, *DIALECTS)

    @property
    def cut(self) -> bool:
        """It hit the token limit."""
        return self.ended is False

    @property
    def stuck(self) -> bool:
        """It said nothing but one thing over and over."""
        return self.loop is not None and self.loop < BEFORE_A_LOOP and not (self.calls or self.attempt)


def read_signs(query: Query, reply: RawReply, lenient: Reply, dialect: str) -> Signs:
    """Look at a reply for what no parser says; `dialect` is the one that is expected."""
    # What a model thinks before it answers is neither a call nor a loop of the answer.
    thinks_on = reply.text.lstrip().startswith(THINKING) and THOUGHT not in reply.text
    said = reply.text.rpartition(THOUGHT)[2] if lenient.reasoning else "" if thinks_on else reply.text
    # JSON whose opening tag is missing is meant as the dialect that its closing tag belongs to.
    half_tagged = lenient.dialect == "fenced_json" and dialect == "hermes" and "</tool_call>" in said
    # Where a server's parser found a call the model wrote it as that parser expects, be it readable or not.
    meant = half_tagged or reply.calls_by == "server"
    return Signs(
        attempt=dialect if meant else lenient.dialect or find_attempt(said, query, dialect),
        calls=bool(lenient.calls),
        loop=find_loop(reply.text if thinks_on else said),
        empty=thinks_on or (not lenient.calls and not lenient.content.strip()),
        ended={"stop": True, "length": False}.get(reply.finish or ""),
        went_on=_OTHER_TURN.search(_QUOTED.sub("", lenient.content)) is not None,
        torn=reply.finish == "length" and breaks_off(reply.text, dialect, query.toolbox),
    )


def find_attempt(text: str, query: Query, dialect: str) -> str | None:
    """The dialect in which a text seems to open a call that cannot be read; None where it does not.

    Another model's format is named where its marks are certain. A direct question may be about JSON or code,
    so there only tags and the names of offered tools count, and of other tools JSON that is all of the text.
    A tag that stands alone as code is spoken of.
    """
    text = _SPOKEN_OF.sub("", text)
    if tagged := _TAGGED.search(text):
        if tagged[1] == "<function":
            return "qwen3_coder"
        if tagged[1]:
            return "hermes"
        code = query.code_mode and re.match(r"[\w\s=.]*\w\(", text[tagged.end() :])
        xml = _find_family(text, query) if _GLM in text else None  # of models that have the same tag
        return "bare_python" if code else xml or dialect
    if _XML.search(text):
        return "qwen3_coder"
    if "</tool_call>" in text:
        return dialect
    names = {*query.parameters, *query.toolbox.schemas}
    guess = query.kind == "tool" or _ALONE.fullmatch(text) is not None
    if MARKED.search(text) or _names_a_tool(text, names, guess=guess):
        return "fenced_json"
    listed = any(name in names for name in _LISTED.findall(text)) or _is_list_of_calls(text)
    if BRACKETED.search(text) or listed:
        return "pythonic"
    if family := _find_family(text, query):
        return family
    return AS_CODE if query.kind == "tool" and _calls_in_code(text, names) else None


def _is_list_of_calls(text: str) -> bool:
    """Whether a text is nothing but calls as Python lists them, be their tools offered or not."""
    if _LISTED.match(text.strip()) is None or not text.rstrip().endswith("]"):
        return False
    reply = parse_reply(text, "pythonic")
    return reply.calls != [] and not reply.content


def _find_family(text: str, query: Query) -> str | None:
    """The format of another model whose certain marks a text has; functions of Code Mode count as tools."""
    functions = [Tool(name, "", {}) for name in query.parameters] if query.code_mode else []
    seen = find_foreign(text, Toolbox((*query.toolbox, *functions)))
    return seen.family if seen is not None and seen.certain else None


def _names_a_tool(text: str, names: set[str], *, guess: bool) -> bool:
    """Whether JSON names an offered tool, or with `guess` any one beside its arguments."""
    found = NAME_IN_JSON.findall(text)
    return bool(names.intersection(found)) or bool(guess and found and _ARGUMENTS.search(text))


def _calls_in_code(text: str, names: set[str]) -> bool:
    """Whether a code block, or the whole text as code, calls one of the functions."""
    call = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(names)))})\s*\(")
    if any(call.search(code) for code in _FENCED_CODE.findall(text)):
        return bool(names)
    return bool(names) and call.search(text) is not None and parse_code(text.strip()) is not None


def find_cause(
    query: Query, reading: Reply, signs: Signs, dialect: str | None, code: Behaviour
) -> Cause | None:
    """What went wrong first, None where nothing did.

    `dialect` is the expected one, None for a lenient reading, which forgives another dialect and what
    could be mended. `code` is what the code of the reading's calls did.
    """
    if signs.stuck:
        return "repeated itself"
    if query.kind == "direct":
        decided_wrong = signs.calls or signs.attempt is not None
        return "decided wrong" if decided_wrong else _find_bad_end(signs, empty="said nothing")
    if not reading.calls:
        return _find_unread(signs, dialect)
    if dialect is None:  # whatever comes behind a call could have been cut off there
        return _find_wrong_call(query, reading.calls, code)
    if reading.problems and not signs.torn:
        return "malformed"
    return _find_wrong_call(query, reading.calls, code, torn=signs.torn) or _find_bad_end(signs)


def _find_unread(signs: Signs, dialect: str | None) -> Cause:
    """Why a reply that should have a call has none that can be read."""
    if signs.attempt is None:
        undecided = _find_bad_end(signs) if signs.cut and signs.empty else None
        return undecided or "decided wrong"
    if signs.attempt == AS_CODE or signs.foreign or dialect not in (signs.attempt, None):
        return "wrong dialect"
    return (_find_bad_end(signs) if signs.torn else None) or "malformed"


def _find_wrong_call(
    query: Query, calls: Sequence[ToolCall], code: Behaviour, *, torn: bool = False
) -> Cause | None:
    """What is wrong with calls; where a reply was `torn`, one that is missing may have been to come."""
    match = match_calls(query, calls, code)
    if torn and not match.arguments and begin_right(query, calls, code):
        match = Match(True, True)
    if not query.code_mode and not match.arguments and _only_repeats(query, calls):
        return "repeated itself"
    if match.tool is False:
        return "wrong tool"
    if match.arguments is False:
        return "wrong arguments"
    if code.works is False:
        return "code fails"
    return "repeated itself" if query.code_mode and _repeat_code(calls) else None


def _repeat_code(calls: Sequence[ToolCall]) -> bool:
    """Whether a call is made twice, or its code says one line over and over."""
    codes = [code for call in calls if (code := code_of(call)) is not None]
    return len(_distinct(calls)) < len(calls) or any(find_repeated_line(code) is not None for code in codes)


def _only_repeats(query: Query, calls: Sequence[ToolCall]) -> bool:
    """Whether the calls would be right, had none been made twice."""
    distinct = _distinct(calls)
    return len(distinct) < len(calls) and match_calls(query, distinct) == Match(True, True)


def _distinct(calls: Sequence[ToolCall]) -> list[ToolCall]:
    return [call for i, call in enumerate(calls) if call not in calls[:i]]


def _find_bad_end(signs: Signs, empty: Cause | None = None) -> Cause | None:
    if signs.loop is not None:
        return "repeated itself"
    if signs.cut or signs.went_on:
        return "ran away"
    return empty if signs.empty else None
