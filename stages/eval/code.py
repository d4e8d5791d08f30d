"""What the code of a call would do: which functions it calls with which arguments.

The code is read here, never run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stages.core.chat import ToolCall
from stages.core.tools import EXECUTE_CODE, FUNCTIONS


@dataclass(frozen=True)
class FunctionCall:
    """A call of a function with its arguments by name; one that is no literal is UNKNOWN."""

    function: str
    arguments: dict[str, Any]
    rest: bool = field(default=False, compare=False)
    """It has more arguments, in a `*` or `**`."""

    @property
    def open(self) -> bool:
        """Whether only running the code would tell what it is called with."""
        return self.rest or any(value is UNKNOWN for value in self.arguments.values())


LONGEST_CODE = 100_000  # characters that are parsed: a model that writes more has run away
LONGEST_CALL, MOST_CALLS, MOST_CLOSINGS = 1000, 20, 8  # of what is looked for in code that does not parse
UNKNOWN = object()
"""Stands for a value that only running the code would tell."""
_NAMED = re.compile(rf"(?<![\w.])(?:{'|'.join(FUNCTIONS)})(?!\w)")
_CALLED = re.compile(rf"(?<![\w.])({'|'.join(FUNCTIONS)})\s*\(")


def code_of(call: ToolCall) -> str | None:
    """The code that a call sends; None where it sends none."""
    code = call.arguments.get("code")
    return code if call.name == EXECUTE_CODE.name and isinstance(code, str) else None


def parse_code(code: str) -> ast.Module | None:
    """The tree of some Python code; None when it does not parse, or is longer than any sensible code."""
    if len(code) > LONGEST_CODE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a model's code is not the user's concern
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def functions_called(call: ToolCall) -> list[FunctionCall]:
    """The Code Mode functions in a call's code, in order; of code that does not parse those it names."""
    code = code_of(call)
    if code is None:
        return []
    tree = parse_code(code)
    return _find_calls(code) if tree is None else _read_calls(tree)


def functions_unread(code: str) -> set[str]:
    """The Code Mode functions that code may call with arguments which its text does not tell.

    It names them otherwise than in a call whose arguments are all literals: `map(typecheck, paths)`. Code
    that does not parse and names none may have meant any.
    """
    tree = parse_code(code)
    if tree is None:
        named, read = Counter(_NAMED.findall(code)), _find_calls(code)
        if not named:
            return set(FUNCTIONS)
    else:
        named, read = Counter(_list_names(tree)), _read_calls(tree)
    told = Counter(call.function for call in read if not call.open)
    return {name for name, times in named.items() if times > told[name]}


def _list_names(tree: ast.AST) -> Iterator[str]:
    """The Code Mode functions that code names, each time; also as the text by which a name is looked up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _CALLED.findall(node.value)
            names = [node.value]
        else:
            names = [getattr(node, "id", ""), getattr(node, "attr", "")]
        yield from (name for name in names if name in FUNCTIONS)


def _read_calls(tree: ast.AST) -> list[FunctionCall]:
    names = _literal_names(tree)
    found = [
        (node.lineno, node.col_offset, _read_call(node, names))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    ]
    return [call for _, _, call in sorted(found, key=lambda item: item[:2])]


def _find_calls(code: str) -> list[FunctionCall]:
    """The calls in code which does not parse, unless it is longer than any sensible code."""
    if len(code) > LONGEST_CODE:
        return []
    return [_read_call_at(code, match) for match in islice(_CALLED.finditer(code), MOST_CALLS)]


def _read_call_at(code: str, opening: re.Match[str]) -> FunctionCall:
    """A call with the arguments that it has if it stands whole."""
    near = code[opening.start() : opening.start() + LONGEST_CALL]
    for closing in islice(re.finditer(r"\)", near), MOST_CLOSINGS):
        tree = parse_code(near[: closing.end()])
        if tree is not None and (calls := _read_calls(tree)):  # none where the bracket opens another line
            return calls[0]
    return FunctionCall(opening[1], {}, rest=True)


def _literal_names(tree: ast.AST) -> dict[str, Any]:
    """Names that are assigned one literal, and nothing else, anywhere in the code."""
    values: dict[str, Any] = {}
    bound: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound[node.id] += 1
        elif isinstance(node, ast.arg):
            bound[node.arg] += 1
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            value = _literal(node.value, {})
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            values |= {t.id: value for t in targets if isinstance(t, ast.Name) and value is not UNKNOWN}
    return {name: value for name, value in values.items() if bound[name] == 1}


def _read_call(node: ast.Call, names: Mapping[str, Any]) -> FunctionCall:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    arguments = {
        parameter: _literal(value, names)
        for parameter, value in zip(FUNCTIONS[name].parameters, node.args, strict=False)
    }
    arguments |= {k.arg: _literal(k.value, names) for k in node.keywords if k.arg}
    rest = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
    return FunctionCall(name, arguments, rest)


def _literal(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of a literal, or of a name that stands for one."""
    if isinstance(node, ast.Name):
        return names.get(node.id, UNKNOWN)
    if isinstance(node, ast.JoinedStr) and all(isinstance(part, ast.Constant) for part in node.values):
        return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
