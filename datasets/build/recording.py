"""Records the sample project: every tool runs once on every file that it can say something about."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path, PurePosixPath

import orjson

from runners import Workshop, check_tools
from scratch import Layout, commit_files, read_project, write_files
from stages.core.sample import Sample, SampleFile

PROJECT = "bakery"
# Short forms: the long ones give advice that differs between versions of git.
COMMANDS = (
    "git log --oneline",
    "git status --short",
    "git diff",
    "git branch",
    "git branch --show-current",
    "git ls-files",
)


def build_recording(datasets: Path) -> list[str]:
    """The lines of the recording, a JSON file, the same every time.

    Raises StageError when a tool is missing or has another version than the plan names.
    """
    plan = tomllib.loads((datasets / "build" / "phrases" / "plan.toml").read_text(encoding="utf-8"))
    check_tools(plan["tools"])
    layout = Layout(f"{PROJECT}-0", read_project(datasets / "projects" / PROJECT))
    with tempfile.TemporaryDirectory() as folder:
        root = write_files(layout, Path(folder).resolve() / PROJECT)
        commit_files(layout, root)
        workshop = Workshop(root, {})
        sample = Sample(
            project=PROJECT,
            tools=plan["tools"],
            files=tuple(record_file(workshop, layout, path) for path in sorted(layout.files)),
            texts={  # backwards, so that the first file of a suffix stays
                PurePosixPath(path).suffix: text
                for path, text in sorted(layout.files.items(), reverse=True)
                if not path.endswith(".py")
            },
            commands={command: workshop.run_command(command) for command in COMMANDS},
        )
    return orjson.dumps(sample.model_dump(mode="json"), option=orjson.OPT_INDENT_2).decode().split("\n")


def record_file(workshop: Workshop, layout: Layout, path: str) -> SampleFile:
    """One file; only Python is checked, only tests are run by pytest, only scripts by python."""
    if not path.endswith(".py"):
        return SampleFile(path=path, text=layout.files[path])
    return SampleFile(
        path=path,
        text=layout.files[path],
        errors=tuple(workshop.typecheck(path).errors),
        violations=tuple(workshop.ruff_check(path).violations),
        tests=tuple(workshop.pytest_run(path).tests) if path in layout.tests else (),
        printed=workshop.run_command(f"python {path}") if path in layout.scripts else None,
    )
