"""Several seeds in one command: each has its own adapter, one is trained after the other."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import mlx.core as mx
import pytest

from stages.core.artifact import read_manifest
from stages.core.compute import load_arrays
from stages.core.errors import StageError
from stages.train.seeds import Seeds, read_seeds
from tests.pipeline import Pipeline, start_stage
from tests.training import stop_after, train_arguments
from tests.waiting import finish, wait_for_line, wait_until

SHORT = {"iters": 2, "save_every": 1, "eval_every": 2, "num_layers": 1}


def test_every_seed_trains_its_own_adapter(llama_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    command = [*train_arguments(llama_run, tmp_path / "set", **SHORT), "--seeds", "3,1"]
    process = start_stage("train", command, artifacts)
    code, out, error = finish(process)
    assert (code, error) == (0, "")
    assert out.index("arm json+eos+parser+six_bit, seed 3") < out.index("seed 1")
    third, first = (load_arrays(tmp_path / "set" / f"seed{n}" / "adapters.safetensors") for n in (3, 1))
    assert any(not mx.array_equal(first[key], third[key]) for key in first)
    seeds = [read_manifest(tmp_path / "set" / f"seed{n}") for n in (3, 1)]
    assert [made.recipe.settings["seed"] for made in seeds if made] == [3, 1]

    def say(*words: str) -> tuple[int, str]:
        return finish(start_stage("train", [*command[:-2], *words], artifacts))[::2]

    assert say("--seeds", "3,1", "--check") == (0, "")
    assert say("--seeds", "0,1,2", "--check") == (3, ""), "two are yet to be made"
    code, error = say("--seeds", "0,1,3", "--check", "--rank", "5")
    assert (code, error.count("was made with rank=4 (now 5)")) == (2, 2), "every seed is judged"
    shutil.rmtree(tmp_path / "set" / "seed1")
    (tmp_path / "set" / "seed1").touch()  # where no output can be put
    code, error = say("--seeds", "3,1", "--force")
    assert code == 2
    assert error.endswith("train: go on with --seeds 1: --force would train 3 again\n")


def test_a_stop_ends_all_seeds(llama_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    command = [*train_arguments(llama_run, tmp_path / "set", **SHORT | {"iters": 200}), "--seeds", "0,1"]
    process = start_stage("train", command, artifacts)
    begun = tmp_path / "set" / ".seed0.partial" / "checkpoints" / "0000001"
    code, _, error = stop_after(process, begun, signal.SIGTERM)
    assert (code, error.count("train: interrupted")) == (130, 1)
    assert not list((tmp_path / "set").glob("*seed1*"))


def test_a_seed_ends_with_the_process_that_started_it(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    """Which was killed, and could tell it nothing; the work is saved."""
    options = SHORT | {"iters": 500, "save_every": 100, "eval_every": 3}
    command = [*train_arguments(llama_run, tmp_path / "set", **options), "--seeds", "0,1"]
    process = start_stage("train", command, artifacts)
    wait_for_line(process, "step 3: validation loss")
    process.kill()
    finish(process)
    wait_until(lambda: not (tmp_path / "set" / ".seed0.lock").exists(), "the seed goes on")
    assert len(list((tmp_path / "set" / ".seed0.partial" / "checkpoints").glob("[0-9]*"))) == 1


def test_options() -> None:
    assert read_seeds(["--seed", "1"]) == (None, ["--seed", "1"])
    assert read_seeds(["--seeds", "2,0", "--help"])[0] is None, "the help is shown once"
    assert read_seeds(["--seeds", "2,0", "--ranks", "2"]) == (Seeds((2, 0), None), ["--ranks", "2"])
    assert read_seeds(["--out", "x", "--seeds", "2"]) == (Seeds((2,), Path("x")), [])
    for arguments, reason in (
        (["--seeds", "1", "--seed", "0"], "give one of the two"),
        (["--seeds", "1,1"], "name each seed once"),
        (["--seeds", "a"], "'a' is not a whole number"),
    ):
        with pytest.raises(StageError, match=reason):
            read_seeds(arguments)
