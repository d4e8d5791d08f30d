"""The shared command line: options, places, and a line with an exit code for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data.__main__ import main as convert
from stages.core import progress
from stages.core.artifact import build_artifact, read_manifest, require_artifact
from stages.core.cli import (
    Options,
    Outcome,
    artifacts_root,
    build_parser,
    finished,
    guard,
    read_options,
    run_stage,
)
from stages.core.dialects import DIALECTS
from stages.core.errors import INTERRUPTED, StageError
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.interrupts import catch_interrupts, deferred_interrupts
from stages.core.preset import PRESETS, SECTIONS, load_preset, option_type
from stages.core.records import Given, Recipe
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
ROW = {"messages": [{"role": "user", "content": "What is 1?"}, {"role": "assistant", "content": "A number."}]}
STAGES = ("convert_data", "audit", "train", "fuse", "quantize", "eval", "retest_fair", "report")
SMOL = load_preset("smol")


def read(*arguments: str) -> Options:
    return read_options(build_parser("train", "", tuple(SECTIONS)[1:]).parse_args(arguments))


def run(work: Any, *arguments: str) -> int:
    return run_stage("train", "Train.", work, arguments, sections=("train",))


def refuse_work(_: Options) -> Outcome:
    pytest.fail("the work was begun")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Logs stay in the test's folder, and what a command does to signals stays in the test."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv(progress.LOG_VARIABLE, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def test_defaults() -> None:
    assert read() == Options(SMOL, FAIR, model="smol")


def test_all_options() -> None:
    options = read(
        *(
            "--model",
            "7b",
            "--fixes",
            "flawed",
            "--seed",
            "3",
            "--data",
            "d",
            "--out",
            "o",
            "--force",
            "--json",
        ),
        *(
            "--iters",
            "5",
            "--learning-rate",
            "2e-5",
            "--grad-checkpoint",
            "--lora-keys",
            "q, v,",
            "--bits",
            "4",
        ),
        *("--suites", "core20", "--system", "Be brief."),
    )
    assert (options.preset.name, options.fixes, options.seed) == ("7b", FLAWED, 3)
    assert (options.data, options.out, options.force, options.json) == (Path("d"), Path("o"), True, True)
    train = options.preset.train
    assert (train.iters, train.learning_rate, train.grad_checkpoint) == (5, 2e-5, True)
    assert train.lora_keys == ("q", "v")
    assert options.preset.quantize.bits == 4
    assert options.preset.eval.suites == ("core20",)
    assert options.preset.model.system == "Be brief."
    assert set(options.overrides) == {
        "iters", "learning_rate", "grad_checkpoint", "lora_keys", "bits", "suites", "system",
    }  # fmt: skip


def test_switches_have_both_directions() -> None:
    assert read("--model", "14b").preset.train.grad_checkpoint is True
    assert read("--model", "14b", "--no-grad-checkpoint").preset.train.grad_checkpoint is False


@pytest.mark.parametrize("option", [key for setup in SECTIONS.values() for key in setup.model_fields])
def test_every_option_of_a_preset_has_a_flag(option: str) -> None:
    section = next(name for name, setup in SECTIONS.items() if option in setup.model_fields)
    value = getattr(getattr(SMOL, section), option)
    flag = f"--{option.replace('_', '-')}"
    kind = option_type(SECTIONS[section].model_fields[option].annotation)
    if kind is bool:
        words = [flag if value else f"--no-{flag[2:]}"]
    else:
        words = [flag, ",".join(map(str, value)) if kind is tuple else str(value)]
    options = read(*words)
    assert options.overrides == {option: value}
    assert options.preset == SMOL


@given(rate=st.floats(1e-12, 1e6), seed=st.integers(0, 2**63 - 1))
def test_numbers_are_read_back_exactly(rate: float, seed: int) -> None:
    options = read("--learning-rate", str(rate), "--seed", str(seed))
    assert (options.preset.train.learning_rate, options.seed) == (rate, seed)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "9b"], "unknown model '9b'"),
        (["--fixes", "jason"], "unknown fix jason"),
        (["--seed", "-1"], "--seed -1: use 0 or a positive number"),
        (["--seed", str(2**63)], f"--seed {2**63}: use 0 or a positive number below 2**63"),
        (["--seed", "many"], "argument --seed: 'many' is not a whole number; --help lists the options"),
        (["--iters", "0"], "--iters 0: use 1 or more"),
        (["--iters", "1.5"], "argument --iters: '1.5' is not a whole number"),
        (["--scale", "big"], "argument --scale: 'big' is not a number"),
        (["--learning-rate", "nan"], "--learning-rate nan: use a finite number"),
        (["--dropout", "1"], "--dropout 1.0: use a number below 1"),
        (["--billions", "-2"], "--billions -2.0: use a number above 0"),
        (["--source", ""], "--source '': it must not be empty"),
        (["--model", ""], "unknown model ''"),
        (["--fixes", ""], "no fix is named: use fair, flawed, or any of json, tools"),
        (["--data", ""], "argument --data: name a folder"),
        (["--out", ""], "argument --out: name a folder"),
        (["--iter", "5"], "unrecognized arguments: --iter 5"),
        (["--speed"], "unrecognized arguments: --speed"),
        (["--bits", "6"], "unrecognized arguments: --bits 6"),
        (["--iters"], "argument --iters: expected one argument"),
        (["extra"], "unrecognized arguments: extra"),
        (["--dialect", "klingon"], "--dialect klingon: use one of hermes, qwen3_coder"),
        (["--schedule", "wavy", "--json"], "argument --schedule: invalid choice: 'wavy' (choose from "),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str], reason: str, own_place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(refuse_work, *arguments) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("train: ")
    assert reason in error
    assert error.count("\n") == 1
    assert not list(own_place.iterdir())


def read_help(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(lambda _: Outcome(Path()), *arguments, "--help")
    assert stop.value.code == 0
    return " ".join(capfd.readouterr().out.split())


def test_help_shows_the_summary_and_every_flag(capfd: pytest.CaptureFixture[str]) -> None:
    out = read_help(capfd)
    assert out.startswith("usage: python -m stages.train")
    assert "Train." in out
    for option in (*SECTIONS["model"].model_fields, *SECTIONS["train"].model_fields):
        assert f"--{option.replace('_', '-')}" in out


@pytest.mark.parametrize("model", ["smol", "7b"])
def test_help_shows_what_can_be_chosen_and_the_models_own_values(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = read_help(capfd, "--model", model)
    setup = load_preset(model).train
    assert "--schedule {constant,cosine,linear}" in out
    assert f"learning rate after the warm-up ({setup.schedule})" in out
    assert f"optimizer steps ({setup.iters})" in out
    assert "trade compute for memory in the backward pass (no)" in out
    assert "every linear one (empty)" in out
    assert ", ".join(DIALECTS) in out
    assert "None" not in out


@pytest.mark.parametrize("stage", STAGES)
def test_help_makes_nothing(stage: str, own_place: Path) -> None:
    done = run_command(stage, own_place, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m stages.{stage}")
    assert not list(own_place.iterdir())
    if stage != "train":  # whose entry imports the stage first
        assert "mlx.core" not in done.stderr, "importing MLX takes seconds"
    else:  # flags that its entry takes out before the others are read
        assert all(f"\n  {flag} " in done.stdout for flag in ("--seeds", "--hosts", "--backend"))


@pytest.mark.parametrize("stage", ["fuse", "quantize", "eval"])
def test_a_mistake_makes_nothing_either(stage: str, own_place: Path) -> None:
    done = run_command(stage, own_place, "--billions", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{stage}: --billions 0.0: use a number above 0\n"
    assert not list(own_place.iterdir())


@pytest.mark.parametrize("stage", ["train", "retest_fair"])
def test_contradictions_of_a_training_stop_what_trains_alone(
    stage: str, own_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made; the other stages take a preset that has them."""
    preset = own_place / "mine.toml"
    text = (PRESETS / "smol.toml").read_text("utf-8")
    preset.write_text(re.sub(r"(?m)^ranks = 1$", "ranks = 99", text), "utf-8")
    assert read("--model", str(preset)).preset.train.ranks == 99
    assert import_module(f"stages.{stage}.__main__").main(["--model", str(preset)]) == 2
    assert capsys.readouterr().err.startswith(f"{stage}: --ranks 99: a batch of ")
    assert list(own_place.iterdir()) == [preset]


def run_command(
    stage: str, place: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=ROOT,
        env=os.environ | {"FAIR_RETEST_ARTIFACTS": str(place / "artifacts")} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without any package."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    return place / "bin" / "python"


@pytest.mark.parametrize("stage", STAGES)
def test_an_environment_of_something_else_is_one_line(stage: str, bare_python: Path, own_place: Path) -> None:
    done = subprocess.run(
        [bare_python, "-m", f"stages.{stage}"],
        cwd=ROOT,
        env={"FAIR_RETEST_ARTIFACTS": str(own_place / "artifacts")},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert (done.returncode, done.stdout) == (2, "")
    where = rf" is not installed for {re.escape(str(bare_python))}: run nox -s {stage}, or install the group "
    assert re.match(rf"{stage}: the package \w+{where}{stage} ", done.stderr)
    assert done.stderr.count("\n") == 1
    assert not list(own_place.iterdir())


def test_the_outcome_is_told_in_lines(own_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            lambda options: Outcome(own_place, lines=(f"{options.preset.train.iters} steps",)), "--iters", "3"
        )
        == 0
    )
    out, error = capfd.readouterr()
    first, middle, last = out.splitlines()
    assert (first, middle) == ("train: smol, arm fair, seed 0", "  3 steps")
    assert last.startswith("train: done in ")
    assert last.endswith(str(own_place))
    assert error == ""
    assert len(list((own_place / "artifacts" / "logs").iterdir())) == 1


def test_the_outcome_as_json(own_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: Outcome(own_place, up_to_date=True, lines=("a",), facts={"n": 1}), "--json") == 0
    out, error = capfd.readouterr()
    answer = json.loads(out)
    assert answer.pop("seconds") >= 0
    assert answer == {"stage": "train", "folder": str(own_place), "up_to_date": True, "n": 1}
    assert "train: up to date in " in error


def recipe(options: Options) -> Recipe:
    return Recipe(stage="train", settings={"iters": options.preset.train.iters}, inputs={})


def test_a_check_makes_nothing(own_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ask(*arguments: str) -> tuple[int, str, str]:
        argv = [*arguments, "--check"]
        code = run_stage("train", "Train.", refuse_work, argv, sections=("train",), make_recipe=recipe)
        return (code, *capfd.readouterr())

    place = read().place("train")
    assert ask() == (3, f"train: yet to be made: {place}\n", "")
    code, out, error = ask("--json")
    assert json.loads(out) == {"stage": "train", "folder": str(place), "up_to_date": False}
    assert (code, error) == (3, f"train: yet to be made: {place}\n")
    assert not list(own_place.iterdir())
    with build_artifact(place, recipe(read("--iters", "5"))):
        pass
    code, out, _ = ask("--iters", "5")
    assert code == 0
    assert "train: up to date in " in out
    code, _, error = ask("--iters", "6")
    assert code == 2
    assert error.startswith(f"train: {place} was made with iters=5 (now 6): --force replaces it, ")
    assert ask("--iters", "6", "--force")[0] == 3


def test_what_decides_an_output_is_found_out_once(own_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """For all rows are read for it; and what was made otherwise is said before any work is begun."""
    asked = []

    def count(options: Options) -> Recipe:
        asked.append(options)
        return recipe(options)

    with build_artifact(read().place("train"), recipe(read("--iters", "5"))):
        pass
    for iters, code in ((5, 0), (6, 2)):
        for more in ([], ["--check"]):
            argv = ["--iters", str(iters), *more]
            assert run_stage("train", "", refuse_work, argv, sections=("train",), make_recipe=count) == code
            assert len(asked) == 1
            asked.clear()
    assert capfd.readouterr().err.count("was made with iters=5 (now 6): --force replaces it, ") == 2


def test_a_check_finds_what_is_unfinished_or_in_work(
    own_place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []

    def ask(*arguments: str, begun: str = "half done") -> tuple[int, str]:
        argv = [*arguments, "--check"]
        asked: dict[str, Any] = {"make_recipe": recipe, "begun": lambda _: begun}
        code = run_stage("train", "Train.", refuse_work, argv, sections=("train",), **asked)
        out, error = capfd.readouterr()
        said.append(out)
        return code, error

    with (
        pytest.raises(KeyboardInterrupt),
        build_artifact(read().place("train"), recipe(read("--iters", "5")), resume=True),
    ):
        raise KeyboardInterrupt
    code, error = ask("--iters", "6")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("train: an unfinished run with iters=5 (now 6) is in ")
    assert ask("--iters", "5")[0] == 3
    assert said[-1] == f"train: half done: {read().place('train')}\n"
    assert ask("--iters", "6", begun="")[0] == 3, "such a stage begins anew"
    assert said[-1] == f"train: yet to be made: {read().place('train')}\n"
    with build_artifact(read().place("train"), recipe(read("--iters", "5")), resume=True):
        code, error = ask("--iters", "5")
    assert code == 2
    assert error.startswith("train: another process is writing ")


def raise_it(error: BaseException) -> int:
    raise error


def send(number: signal.Signals) -> int:
    os.kill(os.getpid(), number)
    return 0


def fill_the_disk() -> int:
    with Path("/dev/full").open("wb") as file:
        file.write(b"x")
    return 0


def make_folder_below_a_file(place: Path) -> int:
    (place / "file").write_text("x")
    (place / "file" / "folder").mkdir(parents=True)
    return 0


def test_errors_become_exit_codes(own_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert guard("train", lambda: 0) == 0
    assert capfd.readouterr() == ("", "")
    assert guard("train", lambda: raise_it(StageError("no data: run x"))) == 2
    assert capfd.readouterr() == ("", "train: no data: run x\n")
    lacking = ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
    assert guard("train", lambda: raise_it(lacking)) == 2
    assert "install NVIDIA's driver, or run without --cuda" in capfd.readouterr().err
    with pytest.raises(ImportError):
        guard("train", lambda: raise_it(ImportError("No module named 'mlx'")))
    assert guard("train", lambda: raise_it(KeyboardInterrupt())) == 130
    out, error = capfd.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "interrupted" in error
    assert guard("train", lambda: make_folder_below_a_file(own_place)) == 2
    assert f"cannot use {own_place / 'file' / 'folder'}: Not a directory" in capfd.readouterr().err


def test_a_copy_that_finds_the_disk_full_names_its_target(capfd: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "source", None, "target")  # as shutil raises it
    assert guard("train", lambda: raise_it(full)) == 2
    assert capfd.readouterr().err.startswith("train: cannot use target: No space left on device; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert guard("train", fill_the_disk) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("train: cannot use the disk of the output: No space left on device; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.ENOENT, "gone"), ZeroDivisionError()])
def test_our_own_mistakes_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        guard("train", lambda: raise_it(error))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt_even_where_they_were_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    catch_interrupts()
    assert guard("train", lambda: send(number)) == 130
    assert guard("train", lambda: send(number)) == 0, "a second one does not break the cleaning up"


# Stands for a package that takes long to load. A signal that comes just before one long sleep would wait.
SLOW_PACKAGE = """
import time
print("loading", flush=True)
for _ in range(6000):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_packages_load(stage: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "orjson.py").write_text(SLOW_PACKAGE)
    with subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        out, error = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, "")
    assert error == f"{stage}: interrupted; finished work is kept, the same command goes on\n"


def test_a_signal_that_came_before_the_start_is_answered(tmp_path: Path) -> None:
    """As when a stage starts itself again with a fast BLAS: signals are kept back until it can answer."""
    with subprocess.Popen(
        [sys.executable, "-m", "stages.convert_data", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) and None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, "")
    assert error.startswith("convert_data: interrupted; ")
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_interrupts_but_for_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    catch_interrupts()
    assert guard("train", lambda: send(signal.SIGHUP)) == 130
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    catch_interrupts()
    assert guard("train", lambda: send(signal.SIGHUP)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_can_wait_for_the_end_of_a_block(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    catch_interrupts()
    with deferred_interrupts("stops soon") as wanted:
        assert not wanted.is_set()
        send(number)
        assert wanted.is_set()
        send(number)
    assert capfd.readouterr().out == "  stops soon\n", "said once"
    assert guard("train", lambda: send(number)) == 130


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "a")
    fair = Options(SMOL, FAIR, seed=2)
    assert fair.place("convert_data") == Path("a/smol/convert_data/json+tools")
    assert fair.place("audit") == Path("a/smol/audit/json+tools+eos+parser+six_bit")
    assert fair.place("train") == Path("a/smol/train/json+tools/seed2")
    assert Options(SMOL, FLAWED).place("eval") == Path("a/smol/eval/none/seed0")
    given_places = Options(SMOL, FAIR, data=Path("d"), out=Path("o"))
    assert (given_places.input("train"), given_places.output("fuse")) == (Path("d"), Path("o"))
    assert (fair.input("train"), fair.output("train")) == (fair.place("train"), fair.place("train"))


def test_the_root_of_all_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "elsewhere")
    assert artifacts_root() == Path("elsewhere")
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "")
    assert artifacts_root() == Path("artifacts")
    monkeypatch.delenv("FAIR_RETEST_ARTIFACTS")
    assert artifacts_root() == Path("artifacts")


@pytest.fixture
def usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs go where commands need not say it."""
    monkeypatch.delenv("FAIR_RETEST_ARTIFACTS")


def test_a_command_says_where_the_outputs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "my place")
    assert (
        read().command("fuse") == "FAIR_RETEST_ARTIFACTS='my place' nox -s fuse -- --model smol --fixes fair"
    )


@pytest.mark.parametrize("seed", [0, 4])
def test_the_command_that_is_named_can_be_typed(seed: int, tmp_path: Path, usual_place: None) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for model in ("7b", str(folder)):
        given_options = ("--system", "Be brief; it's $HOME.", "--lora-keys", "", "--no-grad-checkpoint")
        options = read("--model", model, "--fixes", "json+tools", "--seed", str(seed), *given_options)
        words = shlex.split(options.command("train"))
        assert words[:4] == ["nox", "-s", "train", "--"]
        again = read(*words[4:])
        assert again == options
        assert again.place("train") == options.place("train")
    assert "--seed" not in options.command("convert_data")


def test_the_command_says_the_options_that_its_stage_takes(usual_place: None) -> None:
    options = read("--iters", "5", "--system", "Be brief.", "--suites", "core20,my suite.json", "--bits", "4")
    for stage, names in (
        ("convert_data", {"system"}),
        ("train", {"system", "iters"}),
        ("eval", {"system", "suites"}),
        ("audit", set(options.overrides)),
        ("retest_fair", set(options.overrides)),
    ):
        again = read(*shlex.split(options.command(stage))[4:])
        assert again.overrides == {name: options.overrides[name] for name in names}
    other = read(
        "--fixes", "flawed", "--bits", "4", "--legacy-bits", "8"
    )  # as the arms of one retest have them
    assert shlex.split(other.command("quantize"))[-1] == "--legacy-bits=8"
    assert "--bits=4" not in other.command("quantize") + other.command("retest_fair")
    assert "--bits=4" in other.command("audit")


def test_what_was_given_is_kept_as_it_was_typed(tmp_path: Path) -> None:
    options = read("--model", "7b", "--data", "my rows", "--lora-keys", "q,v", "--no-grad-checkpoint")
    assert options.given == Given(
        model="7b", data="my rows", options={"lora_keys": ("q", "v"), "grad_checkpoint": False}
    )
    assert read().given == Given(model="smol", data=None, options={})
    recipe = Recipe(stage="train", settings={}, inputs={})
    with build_artifact(tmp_path / "out", recipe, given=options.given):
        pass
    kept = require_artifact(tmp_path / "out", "train", "").given
    assert kept is not None
    assert (kept.model, kept.data) == ("7b", "my rows")
    assert kept.options == {"lora_keys": ["q", "v"], "grad_checkpoint": False}


def test_a_command_names_the_options_that_its_stage_takes(usual_place: None) -> None:
    options = read("--iters", "5", "--bits", "8", "--dialect", "pythonic")
    command = "nox -s {} -- --model smol --fixes fair"
    assert options.command("quantize") == f"{command.format('quantize')} --dialect=pythonic --bits=8"
    assert options.command("fuse") == f"{command.format('fuse')} --dialect=pythonic"
    assert shlex.split(options.command("retest_fair"))[8:] == ["--dialect=pythonic", "--iters=5", "--bits=8"]


def test_advice_on_a_missing_input(tmp_path: Path, usual_place: None) -> None:
    preset = tmp_path / "my preset.toml"
    preset.write_bytes((PRESETS / "smol.toml").read_bytes())
    named = f"--model '{preset}' --fixes flawed"
    assert read("--model", str(preset), "--fixes", "flawed").advice("train") == (
        f"nox -s train -- {named} (or nox -s retest_fair -- {named} for all stages)"
    )
    elsewhere = read("--data", "my adapter").advice("train")
    assert elsewhere == "nox -s train -- --model smol --fixes fair --out 'my adapter'"


def test_a_damaged_input_is_made_again_as_it_was_made(tmp_path: Path, usual_place: None) -> None:
    """Without its `--data` the command would put the shipped corpus in the place of the user's own rows."""
    rows = tmp_path / "my rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW).replace("1?", "2?") + "\n")
    words = ["--data", str(rows), "--fixes", "json", "--valid-share", "0.5", "--seed", "3", "--dedup"]
    words += ["--system", "Be brief.", "--shard-mb", "9"]
    out = tmp_path / "cc"
    assert convert([*words, "--out", str(out)]) == 0
    (out / "train.jsonl").unlink()
    options = read("--data", str(out), "--dialect", "pythonic", "--seed", "1")
    with pytest.raises(StageError) as error:
        require_artifact(out, "convert_data", options.advice("convert_data"))
    command = str(error.value).partition(f"{out} lacks train.jsonl: make it again with ")[2]
    assert command.startswith("nox -s convert_data -- --model smol --fixes json ")
    assert convert(shlex.split(command)[4:]) == 0, "it can be typed"
    assert (out / "train.jsonl").is_file()
    again = read_manifest(out)
    assert again is not None
    assert again.recipe.settings["dedup"] is True
    assert (again.recipe.settings["seed"], again.recipe.settings["shard_mb"]) == (3, 9)
    assert again.recipe.settings["model"]["system"] == "Be brief."
    assert again.given is not None
    assert again.given.data == str(rows)


def test_an_input_without_a_word_of_its_making_gets_the_usual_advice(
    tmp_path: Path, usual_place: None
) -> None:
    out = tmp_path / "out"
    with build_artifact(out, Recipe(stage="fuse", settings={}, inputs={})) as build:
        (build.folder / "a.txt").write_text("a")
    (out / "a.txt").unlink()
    options = read("--data", str(out))
    assert options.advice("fuse") == f"nox -s fuse -- --model smol --fixes fair --out {out}"
    assert options.advice("train") == "nox -s train -- --model smol --fixes fair", "its place is taken"
    (out / "manifest.json").write_text('{"recipe": ')
    with pytest.raises(StageError, match=r"make .* anew with the command that made it and --force$"):
        require_artifact(out, "fuse", options.advice("fuse"))


@pytest.mark.parametrize("fixes", [FAIR, FLAWED, ("parser",), ("six_bit",)])
def test_the_parser_and_the_bits_of_an_arm(fixes: FixSet) -> None:
    preset = load_preset("smol", {"bits": 8, "legacy_bits": 4, "dialect": "pythonic"})
    options = Options(preset, fixes)
    assert options.parser == ("pythonic" if "parser" in fixes else "qwen3_coder")
    assert options.bits == (8 if "six_bit" in fixes else 4)


def test_what_is_up_to_date_answers_with_its_facts(tmp_path: Path) -> None:
    with build_artifact(tmp_path / "out", Recipe(stage="s", settings={}, inputs={})) as build:
        build.facts["rows"], build.stop_ids = 7, [2]
    facts = {"rows": 7, "stop_ids": [2]}
    assert finished(tmp_path / "out") == Outcome(tmp_path / "out", up_to_date=True, facts=facts)


def test_two_signals_at_once_are_one_line() -> None:
    """The second is on its way when the first is handled; no library has a word to say about that."""
    code = (
        "import os, signal\n"
        "from stages.core.cli import guard\n"
        "from stages.core.interrupts import catch_interrupts\n"
        "catch_interrupts()\n"
        "def body():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})\n"
        "    return 0\n"
        "raise SystemExit(guard('train', body))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, f"train: {INTERRUPTED}\n")
