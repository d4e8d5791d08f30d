"""What the code of a call would do: which functions it calls with which arguments.

The code is read here, never run.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.chat import ToolCall
from stages.core.tools import EXECUTE_CODE, FUNCTIONS


@dataclass(frozen=True)
class FunctionCall:
    """A call of a function with its arguments by name; one that is no literal is UNKNOWN."""

    function: str
    arguments: dict[str, Any]


LONGEST_CODE = 100_000  # characters that are parsed: a model that writes more has run away
UNKNOWN = object()
"""Stands for a value that only running the code would tell."""


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
    """The Code Mode functions in a call's code, in order; none when the code does not parse."""
    code = code_of(call)
    tree = None if code is None else parse_code(code)
    if tree is None:
        return []
    names = _literal_names(tree)
    found = [
        (node.lineno, node.col_offset, _read_call(node, names))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    ]
    return [call for _, _, call in sorted(found, key=lambda item: item[:2])]


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
    return FunctionCall(name, arguments)


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
