"""The commands that `run_command` knows in the sandbox. They are answered from files in memory.

Those of the corpus are known, and `cat`: `cat`, `head`, `tail`, `wc -l`, `ls`, `grep -rn WORD PATH`,
`find FOLDER -name PATTERN`, `python SCRIPT`, and the git commands that were recorded. Any other, and all
that needs a shell (pipes, redirections, variables, several commands), has no answer. Nor has one whose
output would be too large: it is put together in the process that runs the evaluation.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable

from stages.eval.project import Project, inside_project

SHELL = re.compile(r"[|&;<>$`\\\n\0]")
GLOB = re.compile(r"[*?\[]")
LOG = re.compile(r"(git log --oneline) (?:-n ?|-|--max-count[= ])([0-9]{1,6})")
COUNT = re.compile(r"-n?([0-9]{1,6})")
LONGEST = 1000  # characters; no command of a developer is longer, and reading it takes time
LARGEST = 1_000_000  # characters of an answer
MISSING = "No such file or directory"
EMPTY = "(no output)"  # what run_command says for a command that prints nothing


def answer_command(command: str, project: Project) -> str | None:
    """What the command prints in this project; None when it is not among the known ones."""
    if len(command) > LONGEST or SHELL.search(command):
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[:1] == ["git"]:
        return _git(" ".join(words), project)
    answer = KNOWN.get(words[0]) if words else None
    lines = answer(words[1:], project) if answer else None
    return None if lines is None else "\n".join(lines).rstrip() or EMPTY


def _git(command: str, project: Project) -> str | None:
    log = LOG.fullmatch(command)
    if log is None:
        return project.commands.get(command)
    return "\n".join(project.commands[log[1]].splitlines()[: int(log[2])]) or EMPTY


def _cat(arguments: list[str], project: Project) -> list[str] | None:
    return _each_file(arguments, project, "cat: {}: {}", lambda lines: lines)


def _head(arguments: list[str], project: Project) -> list[str] | None:
    count, paths = _line_count(arguments)
    shown = "head: cannot open '{}' for reading: {}"
    return _each_file(paths, project, shown, lambda lines: lines[:count]) if len(paths) == 1 else None


def _tail(arguments: list[str], project: Project) -> list[str] | None:
    count, paths = _line_count(arguments)
    shown = "tail: cannot open '{}' for reading: {}"
    return (
        _each_file(paths, project, shown, lambda lines: lines[max(len(lines) - count, 0) :])
        if len(paths) == 1
        else None
    )


def _line_count(arguments: list[str]) -> tuple[int, list[str]]:
    """The number of lines of `-n 5`, `-n5` or `-5`, 10 without, and the other arguments."""
    split = 2 if arguments[:1] == ["-n"] else 1
    found = COUNT.fullmatch("".join(arguments[:split]))
    return (int(found[1]), arguments[split:]) if found else (10, arguments)


def _wc(arguments: list[str], project: Project) -> list[str] | None:
    if len(arguments) != 2 or arguments[0] != "-l":
        return None
    path = arguments[1]
    return _each_file([path], project, "wc: {}: {}", lambda lines: [f"{len(lines)} {path}"])


def _each_file(
    paths: list[str], project: Project, complaint: str, read: Callable[[list[str]], list[str]]
) -> list[str] | None:
    """What `read` makes of the lines of each file; a complaint for a path that is no file."""
    if not paths or any(path.startswith("-") or GLOB.search(path) for path in paths):
        return None
    shown: list[str] = []
    room = LARGEST
    for path in paths:
        place = inside_project(path) or ""
        if place not in project.files and _below(place, project):
            return None  # each tool has words of its own for a folder
        found = project.files.get(place)
        lines = read(found.text.splitlines()) if found else [complaint.format(path, MISSING)]
        room -= sum(len(line) + 1 for line in lines)
        if room < 0:
            return None
        shown += lines
    return shown


def _take(lines: Iterable[str]) -> list[str] | None:
    """The lines; None where they are too much, without having made them all."""
    taken, room = [], LARGEST
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            return None
        taken.append(line)
    return taken


def _ls(arguments: list[str], project: Project) -> list[str] | None:
    path = arguments[0] if arguments else "."
    if len(arguments) > 1 or path.startswith("-") or GLOB.search(path):
        return None
    place = inside_project(path)
    if place in project.files:
        return [path]
    entries = _entries(place, project) if place else []
    return entries or [f"ls: cannot access '{path}': {MISSING}"]


def _entries(folder: str, project: Project) -> list[str]:
    """The names in a folder, without hidden ones; none when there is no such folder."""
    inside = (path if folder == "." else path.removeprefix(f"{folder}/") for path in _below(folder, project))
    return sorted({path.partition("/")[0] for path in inside if not path.startswith(".")})


def _below(folder: str, project: Project) -> list[str]:
    """The files of a folder, at any depth."""
    return sorted(path for path in project.files if folder == "." or path.startswith(f"{folder}/"))


def _grep(arguments: list[str], project: Project) -> list[str] | None:
    if len(arguments) != 3 or not re.fullmatch(r"-[rRni]+", arguments[0]):
        return None
    flags, word, path = arguments
    place = inside_project(path)
    if not re.fullmatch(r"[\w ]+", word) or place is None or not {"r", "R"} & set(flags):
        return None
    paths = _below(place, project)
    if not paths and place not in project.files:
        return [f"grep: {path}: {MISSING}"]
    wanted = re.compile(word, re.IGNORECASE if "i" in flags else 0)
    return _take(
        f"{prefix}{f'{number}:' if 'n' in flags else ''}{line}"
        for found in paths or [place]
        for prefix in [f"{_shown(found, place, path)}:" if paths else ""]
        for number, line in enumerate(project.files[found].text.splitlines(), 1)
        if wanted.search(line)
    )


def _find(arguments: list[str], project: Project) -> list[str] | None:
    if len(arguments) != 3 or arguments[1] != "-name" or "." not in arguments[2]:
        return None  # a pattern without a dot is about folders as well
    path, _, pattern = arguments
    place = inside_project(path)
    found = _below(place, project) if place else []
    if not found:
        return [f"find: '{path}': {MISSING}"]
    names = (p for p in found if fnmatch.fnmatchcase(posixpath.basename(p), pattern))
    return _take(_shown(name, place or "", path) for name in names)


def _shown(found: str, place: str, path: str) -> str:
    """A file below `place` as a tool shows it that was told to look in `path`."""
    return posixpath.join(path, found if place == "." else found.removeprefix(f"{place}/"))


def _python(arguments: list[str], project: Project) -> list[str] | None:
    place = inside_project(arguments[0]) if len(arguments) == 1 else None
    file = project.files.get(place) if place else None
    return file.printed.splitlines() if file is not None and file.printed is not None else None


KNOWN: dict[str, Callable[[list[str], Project], list[str] | None]] = {
    "cat": _cat,
    "head": _head,
    "tail": _tail,
    "wc": _wc,
    "ls": _ls,
    "grep": _grep,
    "find": _find,
    "python": _python,
    "python3": _python,
}
