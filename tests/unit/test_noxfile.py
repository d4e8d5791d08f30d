"""The sessions: the two builds of MLX never share an environment, and any Python will do."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nox
import pytest

from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("installed", "for_cpu", "for_cuda"),
    [
        ([], False, False),
        (["mlx", "mlx_lm", "numpy"], False, False),
        (["mlx", "mlx_cpu"], False, True),
        (["mlx", "mlx_cuda_12"], True, False),
        (["mlx_cpu", "mlx_cuda_12"], True, True),
    ],
)
def test_another_build_is_noticed(
    noxfile: ModuleType, installed: list[str], for_cpu: bool, for_cuda: bool, tmp_path: Path
) -> None:
    for package in installed:
        (tmp_path / "lib/python3.12/site-packages" / f"{package}-0.32.4.dist-info").mkdir(parents=True)
    assert noxfile.has_other_build(tmp_path, "cpu") is for_cpu
    assert noxfile.has_other_build(tmp_path, "cuda") is for_cuda


def test_options_of_the_tests_are_not_for_ruff(noxfile: ModuleType) -> None:
    assert noxfile.part_options(["-k", "x"]) == ([], ["-k", "x"])
    assert noxfile.part_options(["--fix", "-x"]) == (["--fix"], ["-x"])


def test_every_session_stands_in_the_readme_with_an_example() -> None:
    readme, source = ((ROOT / name).read_text("utf-8") for name in ("README.md", "noxfile.py"))
    sessions = re.findall(r'^@nox\.session(?:\((?:name="(\w+)")?.*\))?\ndef (\w+)', source, re.M)
    names = [given or name for given, name in sessions]
    assert len(names) == 15
    for name in names:
        assert re.search(rf"^\| `{name}` \| .+ \| `nox -s {name}\b.*` \|$", readme, re.M), name


def test_what_the_examples_write_is_ignored_by_git() -> None:
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "noxfile.py")]
    written = {name for text in texts for name in re.findall(r"--out ([\w-]+)", text)} - {"FOLDER"}
    assert written >= {"my_converted", "my_8bit", "my_retest", "my_served"}
    assert all(name.startswith("my_") for name in written)
    assert "/my_*" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_the_builds_are_the_packages_that_are_installed(noxfile: ModuleType) -> None:
    """A new name, such as mlx-cuda-13, has to be named in the noxfile too."""
    locked = re.findall(r"^(mlx-(?:cpu|cuda)[\w-]*)==", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert sorted(locked) == sorted(noxfile.MLX_BUILDS.values())
    groups = nox.project.load_toml(ROOT / "pyproject.toml")["dependency-groups"]
    assert {f"mlx-{build}" for build in noxfile.MLX_BUILDS} <= groups.keys()


def test_a_session_of_a_chosen_python_is_the_same_stage() -> None:
    """`nox -P 3.12 -s report` calls its session `report-3.12`, for which there is no group and no package."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nox", "--no-venv", "--no-install", "--force-python", version),
            *("-s", "report", "--", "--help"),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",  # as containers have it
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert f"report-{version}" in done.stderr
    assert done.returncode == 0, done.stderr
    assert "usage: python -m stages.report" in done.stdout + done.stderr
