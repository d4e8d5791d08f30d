"""Which tools a row is offered, how its calls are read with them, and the system turn that they need.

An offer is made once for all rows with the same tools. What these rows share (the system turn, the
tools) it holds as ready bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import orjson
from xxhash import xxh3_128_digest

from stages.core.agreement import Signature
from stages.core.chat import Tool
from stages.core.definitions import NONE, Definitions, adopt
from stages.core.dialects import Toolbox
from stages.core.dialects.toolbox import UNKNOWN
from stages.core.fixes import FAIR, FixSet
from stages.core.preset import ModelSetup
from stages.core.prompts import offered_tools, system_message
from stages.core.tools import EXECUTE_CODE, function_tools

CALLABLE = Toolbox((EXECUTE_CODE, *function_tools()))
"""What may be called in Code Mode: its one tool, and its functions directly."""

_CODE_MODE = (EXECUTE_CODE,)
_SAYS_ALL = frozenset(("hermes", "fenced_json"))  # JSON has a form for every call
_MOST_OFFERS = 512


class ToolsUnclear(Exception):
    """Rows without tools are not certainly Code Mode's: one calls others, or other rows define some.

    No row is at fault, so this is no reason for a rejection: a `Census` of all rows says which
    tools the data has.
    """

    MIXED = "some rows define tools of their own, and others none"


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
    trial: bool = False
    """Whether rows are judged by themselves alone, before it is known which tools those without any have."""

    def try_rows(self) -> ConvertContext:
        """The context that rejects a row for its own faults alone."""
        return replace(self, trial=True)

    @cached_property
    def fair(self) -> ConvertContext:
        """The context of the fair arm, which decides for every arm which rows there are."""
        return replace(self, fixes=FAIR)

    @cached_property
    def default(self) -> Offer:
        """What rows without tools of their own are offered."""
        if self.trial:
            return Offer(NONE, UNKNOWN, {})
        with_tools = "tools" in self.fixes
        if self.tools is None or self.tools == _CODE_MODE:
            system = system_message(self.setup, self.fixes).content if with_tools else None
            return Offer(_define(offered_tools(self.fixes)), CALLABLE, {}, code_mode=True, system=system)
        shown = _define(offered_tools(self.fixes, self.tools))
        known = _define(self.tools)
        return Offer(shown, known.box, self._drop_untyped(known.typed), added_system=self._added_system)

    @cached_property
    def plain_offer(self) -> Offer | None:
        """The default where rows may be converted the short way of `plain`; it writes Code Mode alone."""
        usual = "json" in self.fixes and self.setup.tool_response == "template" and self.says_all
        return self.default if usual and self.default.system is not None else None

    @property
    def says_all(self) -> bool:
        """Whether the target's dialect has a form for every call."""
        return self.setup.dialect in _SAYS_ALL

    @cached_property
    def _offers(self) -> dict[int, tuple[Definitions, Offer]]:
        return {}

    @property
    def _added_system(self) -> str | None:
        return (self.setup.system or None) if "tools" in self.fixes else None

    def _drop_untyped(self, typed: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        return {
            name: frozenset(key for key in keys if f"{name}.{key}" not in self.untyped)
            for name, keys in typed.items()
        }

    def choose(self, own: Definitions) -> Offer:
        """What a row is offered that defines the tools `own`."""
        if not own.tools or own.is_code_mode or self.given:
            return self.default
        known = self._offers.get(id(own))
        if known is None or known[0] is not own:  # a pickled context brings the numbers of other objects
            if len(self._offers) >= _MOST_OFFERS:
                self._offers.clear()
            known = own, Offer(own, own.box, own.typed, added_system=self._added_system, is_own=True)
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
    is_own: bool = False
    """Whether the row itself defines the tools."""

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """What the calls of each tool must look like."""
        return {name: Signature(schema) for name, schema in self.box.schemas.items()}

    @cached_property
    def head(self) -> bytes:
        """The beginning of the row as JSON, the system text in place of its own included."""
        system = b"" if self.system is None else encode_system(self.system) + b","
        return b'{"messages":[' + system

    @cached_property
    def tail(self) -> bytes:
        """The end of the row as JSON, from the tools on."""
        return b'],"tools":' + self.shown.encoded + b"}\n"

    @cached_property
    def salt(self) -> bytes:
        """What sets apart the digests of rows with other tools."""
        return xxh3_128_digest(self.shown.encoded)


@lru_cache(maxsize=1024)
def encode_system(text: str) -> bytes:
    """A system turn as JSON. Raises ValueError for a text that JSON cannot hold."""
    try:
        return orjson.dumps({"role": "system", "content": text})
    except TypeError as error:
        raise ValueError(f"text that JSON cannot hold: {error}") from None
