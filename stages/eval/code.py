"""What the code of a call would do: which functions it calls with which arguments.

The code is read, never run.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from dataclasses import dataclass

from stages.core.chat import ToolCall
from stages.core.tools import EXECUTE_CODE, FUNCTIONS


@dataclass(frozen=True)
class FunctionCall:
    """A call of a Code Mode function; an argument that is no literal is None."""

    function: str
    arguments: dict[str, str | None]


def functions_called(call: ToolCall) -> list[FunctionCall]:
    """The Code Mode functions in a call's code, in order; none when the code does not parse."""
    code = call.arguments.get("code")
    if call.name != EXECUTE_CODE.name or not isinstance(code, str):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a model's code is not the user's concern
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = _literal_names(tree)
    found = [
        (node.lineno, node.col_offset, _read_call(node, names))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    ]
    return [call for _, _, call in sorted(found, key=lambda item: item[:2])]


def _literal_names(tree: ast.AST) -> dict[str, str]:
    """Names that are assigned a text, and nothing else, anywhere in the code."""
    texts: dict[str, str] = {}
    bound: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound[node.id] += 1
        elif isinstance(node, ast.arg):
            bound[node.arg] += 1
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            text = _literal(node.value, {})
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            texts |= {t.id: text for t in targets if isinstance(t, ast.Name) and text is not None}
    return {name: text for name, text in texts.items() if bound[name] == 1}


def _read_call(node: ast.Call, names: dict[str, str]) -> FunctionCall:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    arguments = {
        parameter: _literal(value, names)
        for parameter, value in zip(FUNCTIONS[name].parameters, node.args, strict=False)
    }
    arguments |= {k.arg: _literal(k.value, names) for k in node.keywords if k.arg}
    return FunctionCall(name, arguments)


def _literal(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    return None
