"""A row in the making: turns with their calls as structure, results with the calls that they answer.

Like all that is done for every row this is on the hot path: a turn without any sign of a call is not
parsed, and what rows share comes as ready bytes out of their offer.
"""

from __future__ import annotations

import math
import re
from typing import Any

import orjson

from stages.convert_data.converted import (
    ANSWER_EMPTY,
    AS_CODE,
    CALL_REPEATED,
    HAD_LINE,
    HAD_NONE,
    HAD_OTHER,
    NO_QUESTION,
    RESULT_MADE,
    SYSTEM_ADDED,
    SYSTEM_REPLACED,
    THOUGHT_TAGGED,
    Converted,
    Kind,
    SystemText,
    name_calls_read,
    name_mended,
    name_pattern,
)
from stages.convert_data.digests import digest_questions, digest_row
from stages.convert_data.marks import TURN_ENDED, cut_end_tokens, find_controls
from stages.convert_data.messages import SourceTurn, find_call
from stages.convert_data.offers import ConvertContext, Offer, ToolsUnclear, encode_system
from stages.convert_data.results import Pairing, is_tagged, split_results
from stages.convert_data.shapes import SourceRow, holds_turns
from stages.core.chat import ToolCall
from stages.core.dialects import Recovered, Reply, Toolbox, parse_any, render_calls
from stages.core.dialects.foreign import Sighting, find_foreign
from stages.core.dialects.problems import shorten
from stages.core.dialects.scanning import is_spoken_of
from stages.core.prompts import as_user_turn
from stages.core.records import DEEPEST
from stages.core.tools import EXECUTE_CODE, as_code_mode, is_code_mode_call

_LEGACY_TAG = re.compile(r"</?tool_call>|</?tool_response>|<function=|</function>|<parameter=|</parameter>")
_EMPTY_THOUGHT = re.compile(r"\s*+(?:<think>\s*+)?+</think>")
_LONGEST_PATH = 80  # of a place in an argument
_NO_TOOLS = Toolbox()


def is_text(raw: Any, source: SourceRow) -> bool:
    """Whether the row came as one text, in which tags are marks and no data."""
    if source.shape != "prompt":
        return source.shape == "text"
    return isinstance(raw["prompt"], str) and holds_turns(raw["prompt"])


class Draft:
    """What is known of a row so far. Its turns are added in their order, then it is finished."""

    __slots__ = (
        *("answered", "changes", "context", "dialects", "from_text", "later_systems", "lookalikes"),
        *("misfits", "offer", "pairing", "questions", "system", "tools", "turns", "undefined", "untyped"),
        *("unwritable", "written"),
    )

    def __init__(self, context: ConvertContext, offer: Offer, changes: list[str], *, from_text: bool) -> None:
        self.context = context
        self.offer = offer
        self.changes = changes
        self.from_text = from_text
        self.system: str | None = None
        """The text of a system turn that comes first; it is not among `turns`."""
        self.later_systems = 0
        self.written: SystemText = ()
        self.turns: list[dict[str, Any]] = []
        self.questions: list[str] = []
        self.dialects: list[str] = []
        self.tools: list[str] = []
        self.untyped: list[str] = []
        self.undefined: list[str] = []
        self.misfits: list[str] = []
        self.unwritable: list[str] = []
        self.lookalikes: list[str] = []
        self.answered = False
        self.pairing = Pairing(self.turns, changes)

    def add_system(self, text: str) -> None:
        """A system turn."""
        if self.system is None and not self.turns:
            self.system = text
        else:
            self.later_systems += 1
            self.turns.append({"role": "system", "content": text})

    # The assistant's turns

    def add_answer(self, turn: SourceTurn) -> None:
        """An assistant's turn, its calls taken out of the text."""
        self.pairing.begin_answer()
        self.answered = True
        given = turn[2]
        if (text := cut_end_tokens(turn[1])) != turn[1]:
            self.changes.append(name_mended(TURN_ENDED))
        said = text
        message: dict[str, Any] = {"role": "assistant", "content": text}
        self.turns.append(message)
        read: list[ToolCall] = []
        if "<" in text or "{" in text or "[" in text:  # no dialect writes a call without one of them
            reply = self._parse(text)
            said = reply.content
            if find_legacy_tag(reply.reasoning):
                self.changes.append(THOUGHT_TAGGED)
            if reply.calls:
                read = self._take_calls(reply, given)
                message["content"] = text = words_beside(reply, text)
                if goes_on_behind(reply):
                    self.changes.append("prose behind a call moved before it")
            elif given:
                self.dialects.append("messages")
        elif given:
            self.dialects.append("messages")
        self._look_for_foreign(said, has_calls=bool(given or read))
        _refuse_legacy_tags(said, "assistant")
        if given or read:
            message["tool_calls"] = self._write_calls(given, turn[3], read)
        elif not said or said.isspace():  # a thought alone answers nothing
            self.changes.append(ANSWER_EMPTY)

    def _look_for_foreign(self, said: str, *, has_calls: bool) -> None:
        """Note what looks like a call in a turn without any. Raises ValueError where it certainly is one."""
        seen = find_foreign(said, self.offer.box)
        if seen is None:
            return
        if seen.certain:
            raise ValueError(describe_foreign(said, seen))
        if not has_calls:
            self.lookalikes.append(seen.family)

    def _take_calls(self, reply: Reply, given: tuple[ToolCall, ...]) -> list[ToolCall]:
        """The calls that a text has beside those given as structure."""
        self.dialects.append(str(reply.dialect))
        self.changes.append(name_calls_read(str(reply.dialect)))
        calls = _drop_repeated(reply.calls, given) if given else reply.calls
        if len(calls) < len(reply.calls):
            self.changes.append(CALL_REPEATED)
        if reply.dialect == "qwen3_coder":
            self._note_untyped(calls)
        return calls

    def _write_calls(
        self, given: tuple[ToolCall, ...], ids: tuple[str | None, ...], read: list[ToolCall]
    ) -> list[dict[str, Any]]:
        written = [self._write_call(call, of, structured=True) for call, of in zip(given, ids, strict=True)]
        written += [self._write_call(call, None, structured=False) for call in read]
        if not self.context.says_all:
            self._note_unwritable(written)
        return written

    def _parse(self, text: str) -> Reply:
        """The turn taken apart. Raises ValueError for a problem that was not mended with certainty."""
        reply = parse_any(text, self.offer.box)
        if not reply.problems:
            return reply
        if self.offer.code_mode and self.context.tools is None:
            foreign = [call.name for call in parse_any(text).calls if not is_code_mode_call(call)]
            if foreign:
                raise ToolsUnclear(f"{foreign[0]} is called, and nothing defines it")
        for problem in reply.problems:
            if not (reply.calls and isinstance(problem, Recovered)):
                if (seen := find_foreign(text, _NO_TOOLS)) is not None and seen.certain:
                    raise ValueError(describe_foreign(text, seen))
                raise ValueError(f"assistant turn: {problem}")
            self.changes.append(name_mended(problem.kind))
        return reply

    def _note_untyped(self, calls: list[ToolCall]) -> None:
        if self.offer.code_mode:  # every argument of its functions is text
            return
        for call in calls:
            typed = self.offer.typed.get(call.name, frozenset())
            self.untyped += [f"{call.name}.{key}" for key in call.arguments if key not in typed]

    def _note_unwritable(self, written: list[dict[str, Any]]) -> None:
        calls = [ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in written]
        try:
            render_calls(calls, self.context.setup.dialect, self.offer.box)
        except ValueError as error:
            self.unwritable.append(str(error))

    def _write_call(self, call: ToolCall, source_id: str | None, *, structured: bool) -> dict[str, Any]:
        arguments, name = call.arguments, call.name
        for value in arguments.values():
            if type(value) is not str:
                arguments = self._drop_foreign_nulls(call) if structured else arguments
                check_value(arguments)
                call = ToolCall(call.name, arguments)
                break
        if (signature := self.offer.signatures.get(name)) and (found := signature.compare(arguments)):
            self.misfits += [f"{name}.{path[:_LONGEST_PATH]}: {why}" for path, why in found]
        if self.offer.code_mode:
            if call.name != EXECUTE_CODE.name:
                call = self._read_foreign_call(call)
        elif call.name not in self.offer.box.schemas:
            self.undefined.append(call.name)
        self.tools.append(call.name)
        return {
            "id": self.pairing.open_call(call.name, name, source_id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _read_foreign_call(self, call: ToolCall) -> ToolCall:
        """A call in Code Mode of something else than its one tool."""
        if self.context.tools is None and not is_code_mode_call(call):
            raise ToolsUnclear(f"{call.name} is called, and nothing defines it")
        written = as_code_mode(call)
        if written is not call:
            self.changes.append(f"direct call of {call.name} {AS_CODE}")
            return written
        self.undefined.append(call.name)
        return call

    def _drop_foreign_nulls(self, call: ToolCall) -> dict[str, Any]:
        """The arguments less the nulls that a column of one type for all rows fills in."""
        schema = self.offer.box.schemas.get(call.name)
        known = schema.get("properties") if schema is not None else None
        if not isinstance(known, dict):
            return call.arguments
        kept = {key: value for key, value in call.arguments.items() if value is not None or key in known}
        if len(kept) < len(call.arguments):
            self.changes.append("foreign nulls dropped from arguments")
        return kept

    # Results

    def add_results(self, turn: SourceTurn) -> None:
        """A turn that holds the result of a call, or several in tags."""
        if not is_tagged(turn.text, self.from_text):
            self._refuse_tags(turn.text)
            self.pairing.add_result(turn.text, turn.answers, turn.name)
            return
        for result in split_results(turn.text):
            if not self.pairing.waiting:
                raise ValueError("a tool result without a call before it")
            self._refuse_tags(result)
            self.pairing.add_result(result, turn.answers, turn.name)
        self.changes.append(RESULT_MADE)

    def _refuse_tags(self, result: str) -> None:
        """In a text a tag in a result may be a call that was not taken apart; elsewhere it is data."""
        if self.from_text:
            _refuse_legacy_tags(result, "tool")

    # The row

    def finish(self, raw: Any, source: SourceRow) -> Converted:
        """The row as an object and as a line of JSON, with its digests."""
        self.pairing.finish()
        if not self.questions:
            self.changes.append(NO_QUESTION)
        turns = self.turns
        if self.context.setup.tool_response == "user" and any(m["role"] == "tool" for m in turns):
            turns = [as_user_turn(m) if m["role"] == "tool" else m for m in turns]
            self.changes.append("tool result made a user turn")
        system, turns = self._settle_system(turns)
        try:
            body = orjson.dumps(turns)
        except TypeError as error:  # half of a surrogate pair, an integer beyond 64 bits
            raise ValueError(f"text or a number that JSON cannot hold: {error}") from None
        offer = self.offer
        own_system = b""
        head = offer.head
        if offer.system is None and system is not None:
            own_system = encode_system(system)
            head = head + own_system + b","
        return Converted(
            b"".join((head, body[1:-1], offer.tail)),
            (digest_row(offer.salt, body, own_system), digest_questions(self.questions)),
            raw,
            Kind(
                source.shape,
                name_pattern([turn[0] for turn in source.turns]),
                tuple(self.dialects),
                tuple(self.tools),
                tuple(self.changes),
                tuple(self.untyped),
                tuple(self.undefined),
                tuple(self.pairing.unanswered),
                tuple(self.unwritable),
                tuple(self.lookalikes),
                offer.is_own,
                self.written,
                tuple(self.misfits),
                offer.shown.faults if offer.is_own else (),
                find_controls(body, own_system),
            ),
        )

    def _settle_system(self, turns: list[dict[str, Any]]) -> tuple[str | None, list[dict[str, Any]]]:
        """The system text of the row, and the other turns.

        In Code Mode with the fix `tools` it is the text that evaluation uses as well. Else it is the
        row's own; a row without one gets the preset's with that fix.
        """
        own, offer = self.system, self.offer
        if offer.system is not None:
            if self.later_systems:
                turns = [m for m in turns if m["role"] != "system"]
                self.changes.append(SYSTEM_REPLACED)
                self.written = offer.system, HAD_OTHER
            else:
                change, self.written = replace_system(own, offer.system, self.context.setup.system)
                self.changes += [change] if change else []
            return offer.system, turns
        if own or (own is not None and offer.added_system is None):
            return own, turns
        if offer.added_system is None or self.later_systems:
            return None, turns if own is None else [{"role": "system", "content": own}, *turns]
        self.changes.append(SYSTEM_ADDED)
        self.written = offer.added_system, HAD_NONE
        return offer.added_system, turns


def replace_system(own: str | None, system: str, line: str) -> tuple[str, SystemText]:
    """What the card says where `system` takes the place of a row's own text: the change, and both texts.

    `line` is the preset's alone, which is no text of the row's.
    """
    if own is None:
        return SYSTEM_ADDED, (system, HAD_NONE)
    if own not in (line, system):
        return SYSTEM_REPLACED, (system, HAD_OTHER)
    return "", () if own == system else (system, HAD_LINE)


def _drop_repeated(calls: list[ToolCall], given: tuple[ToolCall, ...]) -> list[ToolCall]:
    """The calls of a text without those that the turn has as structure as well."""
    left, new = list(given), list[ToolCall]()
    for call in calls:
        place = find_call(call, left)
        if place is None:
            new.append(call)
        else:
            del left[place]
    return new


def words_beside(reply: Reply, text: str) -> str:
    """What a turn of this text says beside its calls, the reasoning before them included, be it empty."""
    words = reply.content.strip() if len(reply.pieces) < 2 else _join_pieces(reply)
    thought = reply.reasoning or ("</think>" in text and _EMPTY_THOUGHT.match(text))
    return f"<think>\n{reply.reasoning}\n</think>\n\n{words}".strip() if thought else words


def goes_on_behind(reply: Reply) -> bool:
    """Whether a turn says anything behind a call."""
    return any(piece.strip() for piece in reply.pieces[1:])


def _join_pieces(reply: Reply) -> str:
    """The prose around calls, a newline between where two words would become one."""
    words = ""
    for piece in reply.pieces:
        glued = words and piece and not (words[-1].isspace() or piece[0].isspace())
        words += f"\n{piece}" if glued else piece
    return words.strip()


def describe_foreign(text: str, seen: Sighting) -> str:
    """Why a row with a call in another format is rejected."""
    written = shorten(text[seen.start : seen.start + 100])
    return f"assistant turn: a tool call in a format that is not read ({seen.family}): {written}"


def find_legacy_tag(text: str) -> str:
    """The first tag of an old format in a text, empty where there is none; in backquotes it is spoken of."""
    for found in _LEGACY_TAG.finditer(text) if "<" in text else ():
        if not is_spoken_of(text, found.start(), found[0]):
            return found[0]
    return ""


def _refuse_legacy_tags(text: str, role: str) -> None:
    if tag := find_legacy_tag(text):
        raise ValueError(f"{tag} is left in a turn of the {role}")


def check_value(value: Any) -> None:
    """Raise ValueError for a value that JSON cannot hold, or that is too deep for those who read it."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"an argument that is nested more than {DEEPEST} levels deep")
        if isinstance(item, dict):
            waiting += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("an argument that JSON cannot hold: a number that is not finite")
