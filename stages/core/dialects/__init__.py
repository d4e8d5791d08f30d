"""Tool-call dialects: how a model writes its calls, read into `ToolCall`s and written back.

`parse_reply` reads one dialect, `parse_any` finds it, `render_calls` writes it. No text raises: what
cannot be read stays in the content, and a problem says what and where. The choices that sources
disagree on are listed in docs/DIALECTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stages.core.chat import ToolCall
from stages.core.dialects import bare_python, fenced_json, hermes, lenient, pythonic, qwen3_coder
from stages.core.dialects.problems import Recovered
from stages.core.dialects.scanning import Reply
from stages.core.dialects.toolbox import Toolbox, Tools
from stages.core.errors import StageError

__all__ = ["DIALECTS", "Recovered", "Reply", "Toolbox", "Tools", "parse_any", "parse_reply", "render_calls"]

_T = TypeVar("_T")

_MODULES = {m.NAME: m for m in (hermes, qwen3_coder, bare_python, pythonic, fenced_json)}
_PARSERS: dict[str, Callable[[str, Tools], Reply]] = {n: m.parse for n, m in _MODULES.items()}
_RENDERERS: dict[str, Callable[[Sequence[ToolCall], Tools], str]] = {n: m.render for n, m in _MODULES.items()}

DIALECTS: tuple[str, ...] = tuple(_MODULES)
"""The names of the dialects, the targets' own first."""


def parse_reply(text: str, dialect: str, tools: Tools = None) -> Reply:
    """Read an assistant's turn in one dialect.

    `tools` (Tool objects or OpenAI-shaped dicts) give untyped values their types; for many texts hand
    them as a Toolbox. None: it is not known which are offered; empty: none are. Never raises on any text;
    raises StageError for a dialect that does not exist.
    """
    return _pick(_PARSERS, dialect)(text, tools)


def parse_any(text: str, tools: Tools = None) -> Reply:
    """Read an assistant's turn in whatever dialect it is, and name it. Never raises on any text."""
    return lenient.parse(text, tools)


def render_calls(calls: Sequence[ToolCall], dialect: str, tools: Tools = None) -> str:
    """The text of an assistant's calls, as the dialect's own chat template writes it.

    Raises StageError for a dialect that does not exist, and ValueError, naming the call, for one that
    the dialect cannot say so that it would be read back unchanged.
    """
    return _pick(_RENDERERS, dialect)(calls, tools)


def _pick(table: dict[str, _T], dialect: str) -> _T:
    if dialect not in table:
        raise StageError(f"unknown dialect {dialect!r}: use one of {', '.join(DIALECTS)}")
    return table[dialect]
