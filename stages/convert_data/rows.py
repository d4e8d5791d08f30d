"""One row of any understood shape to one neutral row, or the reason why not.

This is the hot path of a conversion: what rows share (the system turn, the tools) is prepared once
for a context and written as ready bytes, and a turn without any sign of a call is not parsed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import orjson
from xxhash import xxh3_128, xxh3_128_digest

from stages.convert_data.instructions import IN_USER_TURN, take_tools
from stages.convert_data.shapes import SourceRow, SourceTurn, read_row
from stages.core.chat import Tool, ToolCall
from stages.core.definitions import NONE, Definitions, adopt, read_definitions
from stages.core.dialects import Recovered, Reply, Toolbox, parse_any, render_calls
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.prompts import as_user_turn, offered_tools, system_message
from stages.core.tools import EXECUTE_CODE, as_code_mode, function_tools
from stages.core.wording import normalise_to_bytes

LEGACY_TAG = re.compile(r"</?tool_call>|</?tool_response>|<function=|</function>|<parameter=|</parameter>")
NO_DIGEST = bytes(16)  # of the questions of a row that asks none

_CALLABLE = Toolbox((EXECUTE_CODE, *function_tools()))
_CODE_MODE = (EXECUTE_CODE,)
_RESULT_OPEN = re.compile(r"\s*+<tool_response>\r?\n?")
_RESULT_CLOSE = re.compile(r"</tool_response>\s*+")
_SAYS_ALL = frozenset(("hermes", "fenced_json"))  # JSON has a form for every call
_REPEATED = re.compile(r"(?:assistant-(?:tool-)+){3,}")
_MOST_OFFERS = 512
_BEYOND_64_BITS = 2.0**64


class ToolsUnclear(Exception):
    """A row that the context's tools do not settle: it calls or defines tools that are not Code Mode's.

    No row is at fault, so this is no reason for a rejection: `inference.infer_tools` looks at all rows
    and says which tools the data has.
    """


@dataclass(frozen=True)
class ConvertContext:
    """What a conversion of rows needs to know; the same for every row of a data set."""

    setup: ModelSetup
    fixes: FixSet
    tools: tuple[Tool, ...] | None = None
    """The tools of rows that define none. None: not looked at yet, taken for Code Mode as long as no
    row contradicts; `()`: such rows have no tools."""
    given: bool = False
    """The tools were given for all rows, and go before a row's own."""
    untyped: frozenset[str] = frozenset()
    """`tool.argument` for what only untyped XML was seen of."""

    @cached_property
    def default(self) -> Offer:
        """What rows without tools of their own are offered."""
        with_tools = "tools" in self.fixes
        if self.tools is None or self.tools == _CODE_MODE:
            system = system_message(self.setup, self.fixes).content if with_tools else None
            return Offer(_define(offered_tools(self.fixes)), _CALLABLE, {}, code_mode=True, system=system)
        shown = _define(offered_tools(self.fixes, self.tools))
        known = _define(self.tools)
        return Offer(shown, known.box, self._drop_untyped(known.typed), added_system=self._added_system)

    @cached_property
    def _offers(self) -> dict[int, tuple[Definitions, Offer]]:
        return {}

    @property
    def _added_system(self) -> str | None:
        return self.setup.system if "tools" in self.fixes else None

    def _drop_untyped(self, typed: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        return {
            name: frozenset(key for key in keys if f"{name}.{key}" not in self.untyped)
            for name, keys in typed.items()
        }

    def choose(self, own: Definitions) -> Offer:
        """What a row is offered that defines the tools `own`. Raises ToolsUnclear."""
        if not own.tools or own.is_code_mode or self.given:
            return self.default
        if self.tools is None:
            raise ToolsUnclear("a row defines tools of its own")
        known = self._offers.get(id(own))
        if known is None or known[0] is not own:  # a pickled context brings the numbers of other objects
            if len(self._offers) >= _MOST_OFFERS:
                self._offers.clear()
            known = own, Offer(own, own.box, own.typed, added_system=self._added_system)
            self._offers[id(own)] = known
        return known[1]


def _define(tools: tuple[Tool, ...]) -> Definitions:
    return adopt(tool.to_json() for tool in tools) if tools else NONE


@dataclass(frozen=True, eq=False)
class Offer:
    """The tools of a row, how its calls are read, and the system turn that belongs to them."""

    shown: Definitions
    """What the row's `tools` say."""
    box: Toolbox
    typed: dict[str, frozenset[str]]
    code_mode: bool = False
    system: str | None = None
    """A system text in place of the row's own."""
    added_system: str | None = None
    """The system text of a row that has none."""

    @cached_property
    def head(self) -> bytes:
        """The beginning of the row as JSON, the system text in place of its own included."""
        system = b"" if self.system is None else _encode_system(self.system) + b","
        return b'{"messages":[' + system

    @cached_property
    def tail(self) -> bytes:
        """The end of the row as JSON, from the tools on."""
        return b'],"tools":' + self.shown.encoded + b"}\n"

    @cached_property
    def salt(self) -> bytes:
        """What sets apart the digests of rows with other tools."""
        return xxh3_128_digest(self.shown.encoded)


@lru_cache(maxsize=4096)
def _begin_digest(salt: bytes) -> xxh3_128:
    """A digest to be copied: to begin one anew takes longer than to digest a row."""
    return xxh3_128(salt)


Kind = tuple[tuple[str, ...], ...]
"""What the card counts of a row: shape, dialects, tools, pattern, changes, untyped, undefined, unwritable."""


@dataclass(slots=True)
class Converted:
    """A row in its new form, and what the card counts about it."""

    line: bytes
    """The row as JSON with a newline, to be written as it is."""
    shape: str
    pattern: str
    digests: tuple[bytes, bytes]
    """16 bytes each: of what the row says (turns, calls, tools, own system text), and of its user's
    turns in normalised wording, NO_DIGEST where it has none."""
    source: Any
    """The row as it came."""
    dialects: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    """`tool.argument` of XML values that stay text because no schema says their type."""
    undefined: list[str] = field(default_factory=list)
    """Tools that are called and that no definition names."""
    unwritable: list[str] = field(default_factory=list)
    """Why the target's dialect cannot say a turn's calls so that they are read back unchanged."""

    @property
    def kind(self) -> Kind:
        """All that is counted; equal for many rows."""
        return (
            (self.shape,),
            tuple(self.dialects) or ("none",),
            tuple(self.tools),
            (self.pattern,),
            tuple(self.changes),
            tuple(self.untyped),
            tuple(self.undefined),
            tuple(self.unwritable),
        )

    @property
    def row(self) -> dict[str, Any]:
        """The row as an object."""
        row: dict[str, Any] = orjson.loads(self.line)
        return row


class Rounded(ValueError):
    """A number that was an integer beyond 64 bits, unless it was written as a float."""


def convert_row(raw: Any, context: ConvertContext, *, exact: bool = False) -> Converted:
    """Convert one row; `exact` says that no integer of it was made a float when it was read.

    Raises ValueError with the reason when it cannot be done without a loss (Rounded where that depends on
    `exact`), and ToolsUnclear when the whole data set has to be looked at first.
    """
    source = read_row(raw)
    turns, own, changes = _take_own_tools(source)
    offer = context.choose(own) if "json" in context.fixes or "tools" in context.fixes else context.default
    if own.tools and offer.shown is not own and not own.is_code_mode:
        changes.append("tools of the row replaced by the given ones")
    if "json" not in context.fixes:
        return _keep_legacy(raw, source, turns, offer, context)
    draft = _Draft(context, offer, changes)
    draft.from_text, draft.exact = _is_text(raw, source), exact
    for turn in turns:
        role, text = turn[0], turn[1]
        if role == "assistant":
            draft.add_answer(turn)
        elif _holds_results(role, text, draft.from_text):
            draft.add_results(turn)
        elif role == "user":
            draft.questions.append(text)
            draft.turns.append({"role": "user", "content": text})
        else:
            draft.add_system(text)
    if not draft.answered:
        raise ValueError("no assistant turn")
    return draft.finish(raw, source)


def _take_own_tools(source: SourceRow) -> tuple[list[SourceTurn], Definitions, list[str]]:
    """The turns, the tools that the row defines in a column or a system text, and what changed."""
    changes = list(source.changes)
    own = read_definitions(source.tools) if source.tools is not None else NONE
    turns = source.turns
    for place, turn in enumerate(turns[:2]):
        if turn.role != "system" and not (turn.role == "user" and IN_USER_TURN in turn.text):
            continue
        if (taken := take_tools(turn.text)) is None:
            continue
        turns = [*turns[:place], turn._replace(text=taken.text), *turns[place + 1 :]]
        if own.tools and own.tools != taken.own.tools:
            changes.append("tools of the system text left out for those of the column")
        own = own if own.tools else taken.own
        changes += taken.changes
        break
    if own.changes:
        changes += own.changes
    return turns, own, changes


def _is_text(raw: Any, source: SourceRow) -> bool:
    """Whether the row came as one text, in which tags are marks and no data."""
    return source.shape == "text" or (source.shape == "prompt" and isinstance(raw["prompt"], str))


def _holds_results(role: str, text: str, from_text: bool) -> bool:
    """Whether a turn is a tool's, or a user's with results in tags; who asks about the tag has none."""
    if role != "user" or "<tool_response>" not in text:
        return role == "tool"
    return _RESULT_OPEN.match(text) is not None or (from_text and "</tool_response>" in text)


def _name_pattern(turns: list[SourceTurn]) -> str:
    """The order of roles; rounds of calls and results that go on and on count as one."""
    name = "-".join([turn[0] for turn in turns])
    return _REPEATED.sub("(assistant-tool)+-", name) if len(turns) > 6 else name


class _Draft:
    """A row in the making."""

    __slots__ = (
        *("answered", "changes", "context", "dialects", "disordered", "exact", "first_result", "from_text"),
        "last_result",
        *("later_systems", "next_id", "offer", "questions", "system", "tools", "turns", "undefined"),
        *("untyped", "unwritable", "waiting"),
    )

    def __init__(self, context: ConvertContext, offer: Offer, changes: list[str]) -> None:
        self.context = context
        self.offer = offer
        self.changes = changes
        self.from_text = self.exact = False
        self.system: str | None = None
        """The text of a system turn that comes first; it is not among `turns`."""
        self.later_systems = 0
        self.turns: list[dict[str, Any]] = []
        self.questions: list[str] = []
        self.dialects: list[str] = []
        self.tools: list[str] = []
        self.untyped: list[str] = []
        self.undefined: list[str] = []
        self.unwritable: list[str] = []
        self.answered = False
        self.next_id = 0
        self.waiting: list[tuple[int, str, str | None]] = []
        """Calls without a result: number, tool, and the id that the source gave."""
        self.first_result = self.last_result = -1
        self.disordered = False

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
        if self.first_result != -1:
            self._order_results()
        self.answered = True
        self.waiting = []
        text, given = turn[1], turn[2]
        message: dict[str, Any] = {"role": "assistant", "content": text}
        self.turns.append(message)
        read: list[ToolCall] = []
        if "<" in text or "{" in text or "[" in text:  # no dialect writes a call without one of them
            reply = self._parse(text)
            if reply.calls:
                read = self._take_calls(reply, given)
                message["content"] = text = _words_beside(reply)
                if any(piece.strip() for piece in reply.pieces[1:]):
                    self.changes.append("prose behind a call moved before it")
            elif given:
                self.dialects.append("messages")
            if "<" in text:
                _refuse_legacy_tags(text, "assistant")
        elif given:
            self.dialects.append("messages")
        if given or read:
            message["tool_calls"] = self._write_calls(given, turn[3], read)

    def _take_calls(self, reply: Reply, given: tuple[ToolCall, ...]) -> list[ToolCall]:
        """The calls that a text has beside those given as structure."""
        self.dialects.append(str(reply.dialect))
        self.changes.append(f"calls of {reply.dialect} read")
        if given and reply.calls == list(given):
            self.changes.append("calls written a second time in the text dropped")
            return []
        if reply.dialect == "qwen3_coder":
            self._note_untyped(reply.calls)
        return reply.calls

    def _write_calls(
        self, given: tuple[ToolCall, ...], ids: tuple[str | None, ...], read: list[ToolCall]
    ) -> list[dict[str, Any]]:
        written = [self._write_call(call, of, structured=True) for call, of in zip(given, ids, strict=True)]
        written += [self._write_call(call, None, structured=False) for call in read]
        if self.context.setup.dialect not in _SAYS_ALL:
            self._note_unwritable(written)
        return written

    def _parse(self, text: str) -> Reply:
        """The turn taken apart. Raises ValueError for a problem that was not mended with certainty."""
        reply = parse_any(text, self.offer.box)
        if not reply.problems:
            return reply
        if self.offer.code_mode and self.context.tools is None:
            foreign = [call.name for call in parse_any(text).calls if call.name not in _CALLABLE.schemas]
            if foreign:
                raise ToolsUnclear(f"{foreign[0]} is called, and nothing defines it")
        for problem in reply.problems:
            if not (reply.calls and isinstance(problem, Recovered)):
                raise ValueError(f"assistant turn: {problem}")
            self.changes.append(f"mended: {problem.kind}")
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
        if self.offer.code_mode:
            if call.name != EXECUTE_CODE.name:
                call = self._read_foreign_call(call)
        elif call.name not in self.offer.box.schemas:
            self.undefined.append(call.name)
        arguments = call.arguments
        for value in arguments.values():
            if type(value) is not str:
                arguments = self._drop_foreign_nulls(call) if structured else arguments
                for each in arguments.values():
                    _check_value(each, exact=self.exact or not structured)
                break
        number = self.next_id
        self.next_id += 1
        self.tools.append(call.name)
        self.waiting.append((number, call.name, source_id))
        return {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def _read_foreign_call(self, call: ToolCall) -> ToolCall:
        """A call in Code Mode of something else than its one tool."""
        written = as_code_mode(call)
        if written is not call:
            self.changes.append(f"direct call of {call.name} written as Code Mode")
            return written
        if self.context.tools is None:
            raise ToolsUnclear(f"{call.name} is called, and nothing defines it")
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
        if "<tool_response>" not in turn.text or not (self.from_text or _RESULT_OPEN.match(turn.text)):
            self._refuse_tags(turn.text)
            self._add_result(turn.text, turn.answers, turn.name)
            return
        text, at = turn.text, 0
        while at < len(text):
            opening = _RESULT_OPEN.match(text, at)
            closing = _RESULT_CLOSE.search(text, opening.end()) if opening is not None else None
            if opening is None or closing is None:
                raise ValueError("text beside <tool_response> in a result turn")
            if not self.waiting:
                raise ValueError("a tool result without a call before it")
            result = text[opening.end() : closing.start()].removesuffix("\n").removesuffix("\r")
            self._refuse_tags(result)
            self._add_result(result, turn.answers, None)
            at = closing.end()
        self.changes.append("tool result made a tool turn")

    def _refuse_tags(self, result: str) -> None:
        """In a text a tag in a result may be a call that was not taken apart; elsewhere it is data."""
        if self.from_text:
            _refuse_legacy_tags(result, "tool")

    def _add_result(self, text: str, answers: str | None, name: str | None) -> None:
        place = 0
        if answers is not None and any(source_id is not None for _, _, source_id in self.waiting):
            ids = [source_id for _, _, source_id in self.waiting]
            if answers not in ids:
                raise ValueError(f"a tool result answers {answers[:40]!r}, which no open call has as its id")
            place = ids.index(answers)
        elif name is not None and len(self.waiting) > 1:
            names = [tool for _, tool, _ in self.waiting]
            place = names.index(name) if name in names else 0
        message: dict[str, Any] = {"role": "tool", "content": text}
        if self.waiting:
            number, tool, _ = self.waiting.pop(place)
            message |= {"name": tool, "tool_call_id": f"call_{number}"}
            self.disordered = self.disordered or number < self.last_result
            self.last_result = number
        elif name:
            message["name"] = name
        if self.first_result == -1:
            self.first_result = len(self.turns)
        self.turns.append(message)

    def _order_results(self) -> None:
        """Put the results since the last answer in the order of their calls: templates write no ids."""
        if self.disordered:
            block = self.turns[self.first_result :]
            if all("tool_call_id" in message for message in block):
                block.sort(key=lambda message: int(message["tool_call_id"].removeprefix("call_")))
                self.turns[self.first_result :] = block
                self.changes.append("results put in the order of their calls")
        self.first_result = self.last_result = -1
        self.disordered = False

    # The row

    def finish(self, raw: Any, source: SourceRow) -> Converted:
        """The row as an object and as a line of JSON, with its digests."""
        if self.first_result != -1:
            self._order_results()
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
        digest = _begin_digest(offer.salt).copy()
        digest.update(body)
        head = offer.head
        if offer.system is None and system is not None:
            written = _encode_system(system)
            digest.update(written)
            head = head + written + b","
        return Converted(
            b"".join((head, body[1:-1], offer.tail)),
            source.shape,
            _name_pattern(source.turns),
            (digest.digest(), digest_questions(self.questions)),
            raw,
            self.dialects,
            self.tools,
            self.changes,
            self.untyped,
            self.undefined,
            self.unwritable,
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
            if own is None and not self.later_systems:
                self.changes.append("system turn added")
            elif self.later_systems or own not in (self.context.setup.system, offer.system):
                self.changes.append("another system text replaced")
            return offer.system, turns
        if own or (own is not None and offer.added_system is None):
            return own, turns
        if offer.added_system is None or self.later_systems:
            return None, turns if own is None else [{"role": "system", "content": own}, *turns]
        self.changes.append("system turn added")
        return offer.added_system, turns


@lru_cache(maxsize=1024)
def _encode_system(text: str) -> bytes:
    try:
        return orjson.dumps({"role": "system", "content": text})
    except TypeError as error:
        raise ValueError(f"text that JSON cannot hold: {error}") from None


def digest_questions(questions: list[str]) -> bytes:
    """16 bytes that are the same for the same questions in other case, punctuation and white space."""
    if not questions:
        return NO_DIGEST
    text = normalise_to_bytes("\n".join(questions) if len(questions) > 1 else questions[0])
    return xxh3_128_digest(text) if text else NO_DIGEST


def _words_beside(reply: Reply) -> str:
    """What a turn says beside its calls, the reasoning before them included."""
    words = reply.content.strip() if len(reply.pieces) < 2 else _join_pieces(reply)
    return f"<think>\n{reply.reasoning}\n</think>\n\n{words}".strip() if reply.reasoning else words


def _join_pieces(reply: Reply) -> str:
    """The prose around calls, a newline between where two words would become one."""
    words = ""
    for piece in reply.pieces:
        glued = words and piece and not (words[-1].isspace() or piece[0].isspace())
        words += f"\n{piece}" if glued else piece
    return words.strip()


def _refuse_legacy_tags(text: str, role: str) -> None:
    if "<" in text and (found := LEGACY_TAG.search(text)):
        raise ValueError(f"{found[0]} is left in a turn of the {role}")


def _check_value(value: Any, *, exact: bool) -> None:
    """Raise ValueError for a value that JSON cannot hold, and Rounded for one that may have been rounded."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("an argument that JSON cannot hold: a number that is not finite")
        elif not exact and isinstance(item, float) and abs(item) >= _BEYOND_64_BITS:
            raise Rounded(f"an argument that JSON cannot hold: {item:.17g} is beyond 64 bits and rounded")


# Without the fix json


def _keep_legacy(
    raw: Any, source: SourceRow, turns: list[SourceTurn], offer: Offer, context: ConvertContext
) -> Converted:
    """The text as it is; with the fix `tools` only the system turn and the tools are exchanged."""
    plain = source.shape in ("text", "messages")
    row = dict(raw) if plain else {"messages": [_keep_turn(turn) for turn in source.turns], "tools": []}
    if isinstance(row.get("tools"), str):  # how a column holds them, and no flaw of the text
        row["tools"] = list(read_definitions(source.tools).tools)
    if "tools" in context.fixes:
        row = _show_tools(raw, source, turns, offer)
    try:
        line = orjson.dumps(row) + b"\n"
    except TypeError as error:
        raise ValueError(f"text or a number that JSON cannot hold: {error}") from None
    if b"null" in line:  # as which a number that is not finite is written
        _check_value(row, exact=True)
    said = orjson.dumps([[turn.role, turn.text, *map(_keep_call, turn.calls)] for turn in source.turns])
    is_text = _is_text(raw, source)
    asked = [t.text for t in turns if t.role == "user" and not _holds_results("user", t.text, is_text)]
    converted = Converted(
        line,
        source.shape,
        _name_pattern(source.turns),
        (xxh3_128_digest(said), digest_questions(asked)),
        raw,
    )
    undecided = offer.code_mode and context.tools is None and "tools" in context.fixes
    for turn in source.turns:
        if turn.role != "assistant":
            continue
        reply = parse_any(turn.text, None if undecided else offer.box)
        calls = [*turn.calls, *reply.calls]
        if undecided and (foreign := [call.name for call in calls if call.name not in _CALLABLE.schemas]):
            raise ToolsUnclear(f"{foreign[0]} is called, and nothing defines it")
        if calls:
            converted.dialects.append(str(reply.dialect or "messages"))
            # Out of a text that is kept as it is may come half of a surrogate pair.
            converted.tools += [call.name.encode("utf-8", "backslashreplace").decode() for call in calls]
    return converted


def _show_tools(raw: Any, source: SourceRow, turns: list[SourceTurn], offer: Offer) -> dict[str, Any]:
    if source.shape == "messages" and offer.system is not None and not isinstance(raw["messages"], str):
        kept = [dict(message) for message in raw["messages"] if message.get("role") != "system"]
    else:
        kept = [_keep_turn(turn) for turn in turns if turn.role != "system" or offer.system is None]
    system = offer.system
    if system is None and not any(message.get("role") == "system" for message in kept):
        system = offer.added_system
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*head, *kept], "tools": list(offer.shown.tools)}


def _keep_turn(turn: SourceTurn) -> dict[str, Any]:
    """A turn with its text as it is, and with the calls that the source had as structure."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = list(map(_keep_call, turn.calls))
    return message


def _keep_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
