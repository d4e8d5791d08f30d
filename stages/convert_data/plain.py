"""The commonest rows, converted in few steps: ChatML of Code Mode, one call in a turn and one result of it.

What is written and counted of such a row is what the full way in `rows` and `draft` writes and counts,
in a fraction of the time; a test holds the two together. Whatever is not of this form, or has a
problem, is left to the full way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from stages.convert_data.converted import (
    RESULT_MADE,
    UNANSWERED_AMONG,
    UNANSWERED_LAST,
    Converted,
    Kind,
    SystemText,
    name_calls_read,
    name_pattern,
)
from stages.convert_data.digests import digest_questions, digest_row
from stages.convert_data.draft import find_legacy_tag, goes_on_behind, replace_system, words_beside
from stages.convert_data.instructions import IN_USER_TURN, may_define
from stages.convert_data.marks import cut_end_tokens
from stages.convert_data.offers import ConvertContext
from stages.core.chatml import cut_plainly
from stages.core.dialects import Toolbox
from stages.core.dialects.foreign import find_foreign
from stages.core.dialects.lenient import read_weighing
from stages.core.dialects.plain import Call, find_calls
from stages.core.tools import EXECUTE_CODE

_TOOL = EXECUTE_CODE.name
_KEYS = frozenset(("code",))
_SYSTEM = "system\n"
_RESULT_OPEN, _RESULT_CLOSE = "<tool_response>\n", "\n</tool_response>"

# What a turn is; one with a call is the call's dialect.
_QUESTION, _RESULT, _ANSWER = "question", "result", "answer"


def convert_plain(raw: Any, context: ConvertContext) -> Converted | None:
    """The converted row if it is of the commonest form, else None."""
    offer = context.plain_offer
    if offer is None or offer.system is None or type(raw) is not dict or len(raw) != 1:
        return None
    text = raw.get("text")
    if type(text) is not str or not (parts := cut_plainly(text)) or IN_USER_TURN in text:
        return None
    own = parts.pop(0)[len(_SYSTEM) :] if parts[0].startswith(_SYSTEM) else None
    if own is not None and may_define(own):
        return None
    turns: list[dict[str, Any]] = []
    questions: list[str] = []
    forms = _write_turns(parts, offer.box, turns, questions)
    if not (forms and questions):
        return None
    try:
        body = orjson.dumps(turns)
    except TypeError:  # the full way says what JSON cannot hold
        return None
    return Converted(
        b"".join((offer.head, body[1:-1], offer.tail)),
        (digest_row(offer.salt, body), digest_questions(questions)),
        raw,
        _name_kind(forms, own is not None, *replace_system(own, offer.system, context.setup.system)),
    )


def _write_turns(
    parts: list[str], box: Toolbox, turns: list[dict[str, Any]], questions: list[str]
) -> tuple[str, ...]:
    """Write the turns of a row and note its questions; what each turn is, nothing where one is not plain."""
    forms: list[str] = []
    calls, waiting, answered = 0, False, False
    for part in parts:
        role, newline, words = part.partition("\n")
        form = _QUESTION
        turn: dict[str, Any] = {"role": role, "content": words}
        if role == "assistant" and newline:
            form, waiting, answered = _ANSWER, False, True
            if "<" in words or "{" in words or "[" in words:  # no dialect writes a call without one of them
                if (form := _read_answer(turn, calls, box)) == "":
                    return ()
                if waiting := form != _ANSWER:
                    calls += 1
            elif not words or words.isspace() or find_foreign(words, box) is not None:  # the full way tells
                return ()
        elif role != "user" or not newline:
            return ()
        elif "<tool_response>" not in words:
            questions.append(words)
        elif waiting and (result := _read_result(words)) is not None:
            form, waiting = _RESULT, False
            turn = {"role": "tool", "content": result, "name": _TOOL, "tool_call_id": f"call_{calls - 1}"}
        else:
            return ()
        turns.append(turn)
        forms.append(form)
    return tuple(forms) if answered else ()


def _read_answer(turn: dict[str, Any], number: int, box: Toolbox) -> str:
    """Put the call of an answer into its turn, as call `number`; what the turn is, empty for no plain one."""
    text = turn["content"]
    found = find_calls(text, box) or _find_other_calls(text, box)
    if found is None:
        return ""
    words, calls, dialect = found
    if ("<" in words and find_legacy_tag(words)) or find_foreign(words, box) is not None:
        return ""
    if not calls:
        return dialect
    name, arguments = calls[0]
    if len(calls) > 1 or name != _TOOL or arguments.keys() != _KEYS or type(arguments["code"]) is not str:
        return ""
    turn["content"] = words.strip()
    function = {"name": _TOOL, "arguments": arguments}
    turn["tool_calls"] = [{"id": f"call_{number}", "type": "function", "function": function}]
    return dialect


def _find_other_calls(text: str, box: Toolbox) -> tuple[str, list[Call], str] | None:
    """The same for a text with calls in other forms, or without any; None where there is a problem."""
    if cut_end_tokens(text) != text:
        return None
    reply = read_weighing(text, box)
    if reply.problems or (reply.calls and goes_on_behind(reply)):
        return None
    if not reply.calls:  # of a thought alone the full way says that it is no answer
        return (text, [], _ANSWER) if reply.content.strip() else None
    calls = [(call.name, call.arguments) for call in reply.calls]
    return words_beside(reply, text), calls, str(reply.dialect)


def _read_result(words: str) -> str | None:
    """The result in a turn of nothing but a result, None where that is not certain."""
    if not (words.startswith(_RESULT_OPEN) and words.endswith(_RESULT_CLOSE)):
        return None
    result = words[len(_RESULT_OPEN) : -len(_RESULT_CLOSE)]
    return None if "<" in result and find_legacy_tag(result) else result


@lru_cache(maxsize=4096)
def _name_kind(forms: tuple[str, ...], has_system: bool, change: str, system: SystemText) -> Kind:
    """What the card counts about a row of such turns."""
    called = tuple(form for form in forms if form not in (_QUESTION, _RESULT, _ANSWER))
    roles = ["user" if form in (_QUESTION, _RESULT) else "assistant" for form in forms]
    changes = [
        RESULT_MADE if form == _RESULT else name_calls_read(form)
        for form in forms
        if form not in (_QUESTION, _ANSWER)
    ]
    return Kind(
        "text",
        name_pattern(["system", *roles] if has_system else roles),
        called,
        (_TOOL,) * len(called),
        tuple([*changes, change] if change else changes),
        unanswered=_find_unanswered(forms),
        system=system,
    )


def _find_unanswered(forms: tuple[str, ...]) -> tuple[str, ...]:
    """Where each call stands that has no result."""
    found: list[str] = []
    waiting = False
    for form in forms:
        if form == _RESULT:
            waiting = False
        elif form != _QUESTION:
            found += [UNANSWERED_AMONG] if waiting else []
            waiting = form != _ANSWER
    return (*found, UNANSWERED_LAST) if waiting else tuple(found)
