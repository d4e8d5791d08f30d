"""The project that a model's code runs over: the sample project, with a file wherever a query needs one.

Queries name files that exist nowhere. A file of the sample project stands for each of them, chosen by
the path alone, and what the tools recorded about it goes by the new path. Nothing is run here.
"""

from __future__ import annotations

import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stages.core.sample import Sample, SampleFile, load_sample

SCRIPT_FOLDERS = {"scripts", "tools", "examples", "bin"}
SUFFIXES = "py|pyi|md|rst|txt|toml|ini|cfg|conf|ya?ml|json|csv|html|css|js|sh|xml|log|lock|env"
NO_PATHS = {"regex", "type"}  # rules of a matcher that hold something else
PATH = re.compile(rf"(?<![\w./-])(?:(?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:{SUFFIXES})\b)")


@dataclass(frozen=True)
class Project:
    """Files by their path, and the recorded output of git commands by the command."""

    files: Mapping[str, SampleFile]
    commands: Mapping[str, str]


def make_project(paths: Iterable[str] = ()) -> Project:
    """The sample project with something at each of these paths that it does not have.

    A path outside the project gets nothing.
    """
    sample = load_sample()
    files = {file.path: file for file in sample.files}
    for path in sorted(set(filter(None, map(inside_project, paths)))):
        if path not in files and not any(known.startswith(f"{path}/") for known in files):
            stand_in = _stand_in(sample, path)
            files[stand_in.path] = stand_in
    return Project(files, sample.commands)


def make_project_for(query: BaseModel, others: Iterable[str] = ()) -> Project:
    """The project in which this query makes sense: it has every path that the query names, and these."""
    return make_project([*named_paths(query.model_dump(mode="json", exclude_none=True)), *others])


def named_paths(value: Any, under_path: bool = False) -> Iterator[str]:
    """The paths in a JSON value: texts somewhere under a key `path`, and what looks like one elsewhere."""
    if isinstance(value, str):
        yield from [value] if under_path else find_paths(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NO_PATHS:
                yield from named_paths(item, under_path or key == "path")
    elif isinstance(value, list):
        for item in value:
            yield from named_paths(item, under_path)


def find_paths(text: str) -> list[str]:
    """What looks like a path in a text: something with a slash, or a name with a usual suffix."""
    return [found.rstrip(".-") for found in PATH.findall(text)]


def inside_project(path: str) -> str | None:
    """A path as the project writes it: `./src/` is `src`, nothing is `.`; None outside the project."""
    place = posixpath.normpath(path.partition("::")[0])
    return None if place.startswith(("/", "../")) or place == ".." or "\0" in place else place


def is_test(path: str) -> bool:
    """Whether pytest collects the file."""
    name = posixpath.basename(path)
    return name.endswith(".py") and (name.startswith("test_") or name.endswith("_test.py"))


def _stand_in(sample: Sample, path: str) -> SampleFile:
    """A file at this path; where the path is a folder, a module or a test inside it."""
    name = posixpath.basename(path)
    stem, suffix = posixpath.splitext(name)
    if not suffix and name[:1].islower():
        prefix = "test_" if "tests" in path.split("/") else ""
        return _stand_in(sample, f"{path}/{prefix}{stem}.py")
    if suffix != ".py":
        return SampleFile(path=path, text=sample.texts.get(suffix, sample.texts[".md"]))
    return _choose(sample, path).moved(path)


def _choose(sample: Sample, path: str) -> SampleFile:
    """A test for a test, a script for a script, a module for a module: by the path, always the same."""
    script = not SCRIPT_FOLDERS.isdisjoint(path.split("/"))
    files = [
        file
        for file in sample.files
        if file.path.endswith(".py")
        and is_test(file.path) == is_test(path)
        and (is_test(path) or (file.printed is not None) == script)
    ]
    return files[zlib.crc32(path.encode()) % len(files)]
