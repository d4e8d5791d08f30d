"""Scratch copies of the sample projects, each under one of its layouts.

A layout is a table of words that are renamed in paths and text alike, so that a handful of projects
gives hundreds of different paths that all really exist.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

# A fixed author and clock make git's commit ids the same on every machine.
_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada Builder",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_AUTHOR_DATE": "2024-05-01T10:00:00+0000",
    "GIT_COMMITTER_NAME": "Ada Builder",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
    "GIT_COMMITTER_DATE": "2024-05-01T10:00:00+0000",
}

_BRANCHES = ("main", "develop", "release", "staging", "fix-rounding", "new-names", "docs")


def quiet_environment(bytecode: Path) -> dict[str, str]:
    """The environment of every tool run: nothing from the user's settings, no colours.

    Compiled modules go to the folder `bytecode`, so that pytest starts quickly and projects stay clean.
    """
    return _GIT | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "TZ": "UTC",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "PYTHONPYCACHEPREFIX": str(bytecode),
        "PYTHONHASHSEED": "0",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "RUFF_NO_CACHE": "true",
    }


@dataclass(frozen=True)
class Layout:
    """A project under one set of names: `files` maps each path to its text."""

    name: str
    files: dict[str, str] = field(hash=False)

    @property
    def paths(self) -> list[str]:
        """Every file but the empty-looking package markers, sorted."""
        return sorted(path for path in self.files if not path.endswith("__init__.py"))

    @property
    def tests(self) -> list[str]:
        """The test files."""
        return [path for path in self.paths if Path(path).name.startswith("test_")]

    @property
    def sources(self) -> list[str]:
        """The Python files that are no tests and no loose scripts."""
        scripts, tests = set(self.scripts), set(self.tests)
        return [p for p in self.paths if p.endswith(".py") and p not in scripts and p not in tests]

    @property
    def scripts(self) -> list[str]:
        """The scripts that print something when run: those without a function."""
        return [p for p in self.paths if p.endswith(".py") and "def " not in self.files[p]]

    def paths_in(self, folder: str) -> list[str]:
        """The files under a folder, at any depth; `.` is all."""
        return [path for path in self.paths if folder == "." or path.startswith(folder + "/")]

    def folders(self, paths: list[str]) -> list[str]:
        """All folders above these paths, sorted."""
        return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"."})


def load_layouts(projects: Path, layouts: Path) -> list[Layout]:
    """Every layout of every sample project, in the order of the layouts file."""
    tables = tomllib.loads(layouts.read_text(encoding="utf-8"))
    found = []
    for project, renames in tables.items():
        files = read_project(projects / project)
        for number, words in enumerate(renames):
            renamed = {rename(path, words): rename(text, words) for path, text in files.items()}
            if len(renamed) != len(files):
                raise ValueError(f"layout {number} of {project} gives two files one path")
            found.append(Layout(f"{project}-{number}", renamed))
    return found


def read_project(folder: Path) -> dict[str, str]:
    """The text of every file by its path; caches and hidden files that a tool left behind do not count."""
    files = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in place.parts):
            files[place.as_posix()] = path.read_text(encoding="utf-8")
    return files


def rename(text: str, words: dict[str, str]) -> str:
    """Replace whole words; an underscore or a digit ends a word, so `test_cart` follows `cart`."""
    if not words:
        return text
    pattern = rf"(?<![A-Za-z])({'|'.join(map(re.escape, words))})(?![A-Za-z])"
    return re.sub(pattern, lambda match: words[match.group(1)], text)


def write_files(layout: Layout, folder: Path) -> Path:
    """Lay the project out in a folder."""
    for path, text in layout.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    return folder


def commit_files(layout: Layout, folder: Path) -> None:
    """A git history of one commit a file, on a branch that differs between layouts.

    Two layouts of three leave something uncommitted, so that `git status` has something to say.
    """

    environment = quiet_environment(folder.parent / "bytecode")

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True)

    number = int(layout.name.rpartition("-")[2])
    left = [[*layout.scripts], [*layout.scripts, "README.md"], []][number % 3]
    git("init", "--initial-branch", _BRANCHES[number % len(_BRANCHES)])
    git("config", "core.abbrev", "7")
    for path in [p for p in sorted(layout.files) if p not in left]:
        git("add", path)
        git("commit", "--message", f"Add {path}")


class Scratch:
    """Hands out scratch folders under one temporary root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def shared(self, layout: Layout, history: bool) -> Path:
        """The one untouched copy of a layout, with or without a git history; made on first use."""
        name = f"{layout.name}-git" if history else layout.name
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            folder = self._root / name
            if not folder.exists():
                write_files(layout, folder)
                if history:
                    commit_files(layout, folder)
            return folder

    def private(self, layout: Layout, number: int) -> Path:
        """A copy of its own, for a row that writes."""
        return write_files(layout, self._root / f"row-{number}")
