"""Tool jobs: a query in words, the code that serves it, and the layout it is about.

Phrases come from `phrases/*.toml`; this module fills in paths that exist in a layout.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratch import Layout


@dataclass(frozen=True)
class Step:
    """One call: the code, and what the answer needs to know about it."""

    functions: tuple[str, ...]
    form: str
    code: str
    path: str
    details: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Job:
    """A query and the calls that serve it."""

    kind: str
    query: str
    prose: str
    layout: Layout
    steps: tuple[Step, ...]


class Phrases:
    """The phrase files, and one way to pick from each."""

    def __init__(self, folder: Path, layouts: list[Layout]) -> None:
        self.layouts = layouts
        self._tables = {
            path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.toml"))
            if path.stem != "layouts"
        }

    def table(self, name: str) -> dict[str, Any]:
        """One phrase file, by its name."""
        return self._tables[name]

    def make_job(self, kind: str, rng: random.Random) -> Job:
        """A job of a kind: a function's name, `combined` or `sequence`."""
        layout = rng.choice(self.layouts)
        if kind in ("typecheck", "ruff_check", "pytest_run", "read_file"):
            words, style, steps = self._check_job(kind, layout, rng)
        elif kind == "run_command":
            words, style, steps = self._command_job(layout, rng)
        elif kind == "write_file":
            words, style, steps = self._write_job(rng)
        else:
            words, style, steps = self._joint_job(kind, layout, rng)
        table = self.table("combined" if kind == "sequence" else kind)
        prose = rng.choice(table["prose"]) if rng.random() < 0.4 else ""
        return Job(kind, self.wrap(words, style, rng), prose, layout, steps)

    def wrap(self, words: str, style: str, rng: random.Random) -> str:
        """Put words into one of the openings of a style."""
        template = rng.choice(self.table("wrappers")[style])
        return str(template.format(words, cap=words[0].upper() + words[1:]))

    def _check_job(self, kind: str, layout: Layout, rng: random.Random) -> tuple[str, str, tuple[Step, ...]]:
        groups = self.table(kind)["group"]
        group = rng.choices(groups, [len(g["path"]) + len(g.get("none", ())) for g in groups])[0]
        path = pick_path(kind, layout, rng)
        phrases = group["none" if path == "." else "path"]
        if kind == "pytest_run" and path != "." and not path.endswith(".py"):
            # "Does tests pass" is no sentence: a folder needs a phrase that speaks of what is in it.
            phrases = [phrase for phrase in phrases if " in {path}" in phrase]
        words = rng.choice(phrases).format(path=path)
        return words, group["style"], (make_step(kind, group["form"], path),)

    def _command_job(self, layout: Layout, rng: random.Random) -> tuple[str, str, tuple[Step, ...]]:
        commands = self.table("run_command")["command"]
        entry = rng.choices(commands, [len(c["imperative"]) + len(c["question"]) for c in commands])[0]
        python = layout.sources + layout.tests
        values = {
            "n": str(rng.randint(2, 7)),
            "file": rng.choice(layout.paths),
            "folder": rng.choice(layout.folders(layout.paths)),
            "script": rng.choice(layout.scripts),
            "ext": rng.choice(["py", "md", "toml"]),
        }
        if "{word}" in entry["command"]:
            values["folder"] = rng.choice(layout.folders(python))
            values["word"] = pick_word(layout, values["folder"], rng)
        if "{ext}" in entry["command"]:
            values["folder"] = (
                rng.choice([".", values["folder"]]) if values["ext"] != "py" else values["folder"]
            )
            if not any(p.endswith("." + values["ext"]) for p in layout.paths_in(values["folder"])):
                values["ext"] = Path(layout.paths_in(values["folder"])[0]).suffix[1:]
        style = rng.choice([s for s in ("imperative", "question") for _ in entry[s]])
        command = entry["command"].format_map(values)
        spoken = values | {"folder": "the project" if values["folder"] == "." else values["folder"]}
        step = Step(("run_command",), entry["answer"], f"print(run_command({command!r}))", command, values)
        return rng.choice(entry[style]).format_map(spoken), style, (step,)

    def _write_job(self, rng: random.Random) -> tuple[str, str, tuple[Step, ...]]:
        (group,) = self.table("write_file")["group"]
        path, content, words = self._fill_write(rng.choice(group["path"]), rng)
        return words, group["style"], (make_write(path, content),)

    def _fill_write(self, template: str, rng: random.Random) -> tuple[str, str, str]:
        """A path, a content that fits it, and the template with both."""
        values = self.table("write_file")["values"]
        sort = rng.choice(["text", "text", "code"])
        path = rng.choice(values["folders"]) + rng.choice(values[f"{sort}_names"])
        content = rng.choice(values[sort])
        quote = rng.choice("'\"")
        words = template.format(path=path, content=content, quoted=f"{quote}{content}{quote}")
        return path, content, words

    def _joint_job(self, kind: str, layout: Layout, rng: random.Random) -> tuple[str, str, tuple[Step, ...]]:
        entry = rng.choice(self.table("combined")["pair" if kind == "combined" else "sequence"])
        template = rng.choice(entry["imperative"])
        path, tests = rng.choice(layout.sources), rng.choice(layout.tests)
        if entry["first"] == "write_file":
            path, content, words = self._fill_write(template, rng)
            return words, "imperative", (make_write(path, content), make_step("read_file", "read", path))
        words = template.format(path=path, tests=tests)
        second = path if entry["second"] != "pytest_run" else tests
        if kind == "combined":
            return words, "imperative", (make_pair(entry["first"], path, entry["second"], second),)
        forms = {"read_file": "read", "pytest_run": "summary"}
        return (
            words,
            "imperative",
            (
                make_step(entry["first"], "count", path),
                make_step(entry["second"], forms[entry["second"]], second),
            ),
        )


def pick_path(kind: str, layout: Layout, rng: random.Random) -> str:
    """A file, a folder, or `.` where the query names no path."""
    if kind == "read_file":
        return rng.choice(layout.paths)
    files = layout.tests if kind == "pytest_run" else layout.sources * 3 + layout.tests + layout.scripts
    draw = rng.random()
    if draw < 0.63:
        return rng.choice(files)
    if draw < 0.75:
        return rng.choice(layout.folders(files))
    return "."


def pick_word(layout: Layout, folder: str, rng: random.Random) -> str:
    """A word to search for: a function or class that the folder defines."""
    text = "\n".join(layout.files[p] for p in layout.paths_in(folder) if p.endswith(".py"))
    words = {
        line.split("(")[0].split(":")[0].split()[1]
        for line in text.splitlines()
        if line.lstrip().startswith(("def ", "class ")) and "__" not in line
    }
    return rng.choice(sorted(words))


def make_step(function: str, form: str, path: str) -> Step:
    """The one way a function is called for a form of question."""
    return Step((function,), form, _CODE[function, form].format(path=repr(path)), path)


def make_write(path: str, content: str) -> Step:
    """Write a text to a file."""
    code = f"print(write_file({path!r}, {content!r}))"
    return Step(("write_file",), "write", code, path, {"content": content})


def make_pair(first: str, path: str, second: str, other: str) -> Step:
    """Two functions in one piece of code, which prints one line."""
    names = {"typecheck": "types", "ruff_check": "lint", "pytest_run": "tests"}
    counts = {
        "typecheck": "types.error_count, 'errors'",
        "ruff_check": "lint.violation_count, 'violations'",
        "pytest_run": "tests.failed, 'failed'",
    }
    code = (
        f"{names[first]} = {first}({path!r})\n"
        f"{names[second]} = {second}({other!r})\n"
        f"print({counts[first]}, {counts[second]})"
    )
    return Step((first, second), "pair", code, path, {"other": other})


_TYPES = "result = typecheck({path})\nprint(result.error_count, 'errors')"
_RUFF = "result = ruff_check({path})\nprint(result.violation_count, 'violations')"
_PYTEST = "result = pytest_run({path})\nprint(result.passed, 'passed', result.failed, 'failed')"
_CODE = {
    ("typecheck", "count"): _TYPES,
    ("typecheck", "list"): _TYPES
    + "\nfor error in result.errors:\n    print(error.file, error.line, error.message)",
    ("ruff_check", "count"): _RUFF,
    ("ruff_check", "fixable"): _RUFF + "\nprint(result.fixable_count, 'fixable')",
    ("ruff_check", "list"): _RUFF
    + "\nfor item in result.violations:\n    print(item.file, item.line, item.code, item.message)",
    ("pytest_run", "summary"): _PYTEST,
    ("pytest_run", "failures"): _PYTEST
    + "\nfor test in result.tests:\n    if test.outcome == 'failed':\n        print(test.name, test.message)",
    ("read_file", "read"): "print(read_file({path}))",
}
