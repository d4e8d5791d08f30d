"""Whose fault an error of the sandbox is: that of the code, or of the sandbox, which is not all of Python.

Code that fails in the sandbox and would not fail in Python is unscored. So the question is always whether
Python has what was missed: a module or a name of the standard library, a method, a kind of statement,
a file system. What Python lacks as well, and what is wrong in any Python, is the code's own fault.
"""

from __future__ import annotations

import builtins
import io
import pathlib
import re
import sys
import types
from collections.abc import Callable

from pydantic import BaseModel

from stages.eval.results import all_fields

SURE = {"pydantic", "pytest"}  # libraries that are there wherever the functions of Code Mode are
RESULTS = {field.partition(".")[0] for field in all_fields()}


def sandbox_is_to_blame(kind: str, message: str, code: str) -> bool:
    """Whether Python would have gone on where the sandbox raised an error of this kind.

    What this machine's Python has decides, and a doubt is settled for the code.
    """
    missing = MISSING.get(kind)
    return missing is not None and missing(message, code)


def code_ended_itself(kind: str, message: str, code: str) -> bool:
    """Whether Python would have ended there without a word, by an exit that the sandbox has or lacks.

    What the code did before is all that it does. The status of an exit that is lacking is not known.
    """
    if kind == "SystemExit":
        return not message
    if kind not in EXITS or EXITS[kind].search(message) is None:
        return False
    if kind == "RuntimeError" and RAISES.findall(code) != ["SystemExit"]:
        return False
    return CATCHES.search(code) is None


def _is_unwritten(message: str, code: str) -> bool:
    """The interpreter says NotImplementedError for what it does not know; code can also raise it."""
    return "NotImplementedError" not in code


def _is_too_deep(message: str, code: str) -> bool:
    return "too deeply nested" in message


def _lacks_module(message: str, code: str) -> bool:
    found = re.search(r"No module named '(\w+)|cannot import name '\w+' from '(\w+)", message)
    return found is not None and (found[1] or found[2]) in sys.stdlib_module_names | SURE


def _lacks_name(message: str, code: str) -> bool:
    found = re.search(r"name '(\w+)' is not defined", message)
    return found is not None and hasattr(builtins, found[1])


def _lacks_attribute(message: str, code: str) -> bool:
    if found := re.search(r"module '(\w+)' has no attribute", message):
        return found[1] in sys.stdlib_module_names
    found = re.search(r"'([\w.]+)' (?:object )?has no attribute '(\w+)'", message)
    if found is None:
        return False
    kind, name = found[1], found[2]
    owner = BaseModel if kind in RESULTS else TYPES.get(kind, object)
    return hasattr(owner, name) or name in ("__dict__", "__mro__", "__bases__", "__subclasses__")


def _lacks_system(message: str, code: str) -> bool:
    """Files and environment of a machine: the sandbox has none. And mistakes of its own it has."""
    return (
        message.startswith(("Permission denied:", "Internal error in monty"))
        or "not supported in this environment" in message
    )


RAISES = re.compile(r"\braise (\w+)\(")
CATCHES = re.compile(r"\bexcept\s*(?::|\(?[\w, ]{0,100}(?:SystemExit|BaseException))")
EXITS = {
    "RuntimeError": re.compile("exceptions can only be called with"),  # such as SystemExit(0)
    "AttributeError": re.compile(r"module 'sys' has no attribute 'exit'"),
    "NameError": re.compile(r"name '(?:exit|quit)' is not defined"),
}
MISSING: dict[str, Callable[[str, str], bool]] = {
    "NotImplementedError": _is_unwritten,
    "SyntaxError": _is_too_deep,
    "ModuleNotFoundError": _lacks_module,
    "ImportError": _lacks_module,
    "NameError": _lacks_name,
    "AttributeError": _lacks_attribute,
    "RuntimeError": _lacks_system,
    "PermissionError": _lacks_system,
}
TYPES: dict[str, type] = {
    **{name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)},
    "function": types.FunctionType,
    "module": types.ModuleType,
    "NoneType": type(None),
    "_io.TextIOWrapper": io.TextIOWrapper,
    "re.Match": re.Match,
    "re.Pattern": re.Pattern,
    "PosixPath": pathlib.PosixPath,
}
