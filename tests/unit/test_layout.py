"""The house: who may import whom, and that nothing shared needs MLX."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"convert_data", "audit", "train", "fuse", "quantize", "eval", "retest_fair", "report"}
HEAVY = ("mlx", "mlx_lm", "torch", "transformers", "huggingface_hub")
FILES = sorted((ROOT / "stages").glob("*/**/*.py"))
# Modules of stages that need no model: what they do can be tested and run anywhere.
LIGHT = (
    "stages.audit.recipe",
    "stages.convert_data.stage",
    "stages.eval.__main__",
    "stages.eval.code",
    "stages.eval.sandbox",
    "stages.eval.engines.endpoint",
    "stages.eval.engines.local",
    "stages.eval.engines.recorded",
    "stages.eval.parity",
    "stages.eval.recipe",
    "stages.eval.score",
    "stages.eval.stage",
    "stages.fuse.recipe",
    "stages.quantize.recipe",
    "stages.report.stage",
    "stages.retest_fair.stage",
    "stages.train.recipe",
    "stages.train.rows",
    "stages.train.saved",
)
# Imports the modules that are named, as if MLX were not installed.
BARE_IMPORTS = """
import importlib, sys
sys.modules.update({name: None for name in ("mlx", "mlx_lm")})
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def packages_imported(source: str) -> set[str]:
    """The packages below `stages` that a module names in its imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("stages.")}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("import os", set()),
        ("import stages.train.rows", {"train"}),
        ("from stages import audit as package", {"audit"}),
        ("from stages.core.chat import Tool", {"core"}),
        ("def f() -> None:\n    from stages.fuse.stage import fuse", {"fuse"}),
    ],
)
def test_imports_are_found(source: str, packages: set[str]) -> None:
    assert packages_imported(source) == packages


def test_every_stage_is_a_package_that_can_be_run() -> None:
    assert {path.parent.name for path in FILES if path.name == "__main__.py"} >= STAGES
    assert len(FILES) >= 82
    assert sum("core" in path.parts for path in FILES) >= 30


def test_a_stage_says_what_it_reads_and_writes() -> None:
    for stage in sorted(STAGES):
        text = (
            ast.get_docstring(ast.parse((ROOT / "stages" / stage / "__init__.py").read_text("utf-8"))) or ""
        )
        assert "\nReads:" in text, stage
        assert "\nWrites:" in text, stage


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "stages")))
def test_no_stage_imports_another_and_core_imports_none(path: Path) -> None:
    own = path.relative_to(ROOT / "stages").parts[0]
    assert packages_imported(path.read_text("utf-8")) <= {"core", own}


def test_importing_all_of_core_never_imports_mlx() -> None:
    code = """
import importlib, pkgutil, sys
import stages.core
names = [m.name for m in pkgutil.walk_packages(stages.core.__path__, "stages.core.")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({m.split(".")[0] for m in sys.modules} & set(sys.argv[1:])))
"""
    done = run_python(code, *HEAVY)
    assert done.returncode == 0, done.stderr
    count, *loaded = done.stdout.split()
    assert int(count) >= 25
    assert loaded == []


def test_modules_without_a_model_work_where_mlx_is_not_installed() -> None:
    done = run_python(BARE_IMPORTS, *LIGHT)
    assert done.returncode == 0, done.stderr


def modules_imported(source: str) -> set[str]:
    """The modules of this project, and of MLX, that a file names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name for name in names if name.split(".")[0] in ("stages", "tests", *HEAVY)}


def test_unit_tests_do_not_import_mlx() -> None:
    files = sorted((ROOT / "tests" / "unit").glob("*.py"))
    assert len(files) >= 25
    used = set[str]().union(*(modules_imported(path.read_text("utf-8")) for path in files))
    done = run_python(BARE_IMPORTS, *sorted(used | {"tests.conftest"}))
    assert done.returncode == 0, done.stderr
