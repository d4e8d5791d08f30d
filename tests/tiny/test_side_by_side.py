"""Stages that a retest runs side by side: the same outputs as one after the other, and one end for all."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from stages.core import platform
from stages.core.artifact import read_manifest
from stages.core.errors import StageError, StageFailed
from stages.retest_fair.processes import Call, run_stages
from tests.pipeline import Pipeline, start_stage
from tests.training import train_arguments
from tests.waiting import finish, wait_until

SHORT = {"iters": 4, "save_every": 2, "eval_every": 4, "num_layers": 1}


@pytest.fixture(autouse=True)
def own_place(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(artifacts))


def test_company_changes_no_adapter(
    llama_run: Pipeline,
    artifacts: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = {
        name: [*train_arguments(llama_run, tmp_path / name, **SHORT), "--seed", seed]
        for name, seed in (("one", "1"), ("two", "2"))
    }
    # What is free here goes up and down with other programs: so much of it is the stages' own.
    (tmp_path / "memory.max").write_text("6000000000")
    (tmp_path / "memory.stat").write_text("anon 0\n")
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    run_stages([Call("train", command, label=name) for name, command in commands.items()])
    out = capfd.readouterr().out
    shares = [float(share) for share in re.findall(r"; ([0-9.]+) GB is free for it", out)]
    assert len(shares) == 2
    assert all(0 < share < 3 for share in shares), "neither counts what the other will take"
    lines = out.splitlines()
    assert {line.partition(" | ")[0] for line in lines} == {"one", "two"}, "each line says whose it is"
    alone = start_stage("train", [*commands["one"], "--out", str(tmp_path / "alone")], artifacts)
    assert finish(alone)[::2] == (0, "")
    one, two, lonely = ((tmp_path / name / "adapters.safetensors") for name in ("one", "two", "alone"))
    assert one.read_bytes() == lonely.read_bytes()
    assert one.read_bytes() != two.read_bytes()
    manifests = [read_manifest(tmp_path / name) for name in ("one", "two", "alone")]
    assert [made.facts["beside_another"] for made in manifests if made] == [True, True, False]


def test_a_stage_that_was_killed_is_no_riddle(llama_run: Pipeline, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    long = train_arguments(llama_run, tmp_path / "long", **SHORT | {"iters": 5000})
    begun = (tmp_path / ".long.partial").glob

    def kill_when_begun() -> None:
        wait_until(lambda: [*begun("checkpoints/[0-9]*")], "the training never began")
        (process,) = find_processes(long)
        os.kill(process, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill_when_begun)
        with pytest.raises(StageError, match=r"^train was killed, as .* out of memory; .* --jobs 1$"):
            run_stages([Call("train", long)])
        killer.result()


def find_processes(arguments: Sequence[str]) -> list[int]:
    """The processes with these arguments at the end of their command; one that ends meanwhile is none."""
    listed = psutil.process_iter(["cmdline"])
    return [one.pid for one in listed if (one.info["cmdline"] or [])[-len(arguments) :] == [*arguments]]


def test_when_one_fails_the_others_stop(
    llama_run: Pipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = train_arguments(llama_run, tmp_path / "long", **SHORT | {"iters": 5000})
    wrong = train_arguments(llama_run, tmp_path / "wrong", **SHORT | {"batch_size": 999})
    with pytest.raises(StageFailed):
        run_stages([Call("train", long, label="long"), Call("train", wrong, label="wrong")])
    out, error = capfd.readouterr()
    assert "wrong | train: batch size 999 is larger than the" in error
    assert out.endswith("retest_fair: stopped at train; what was finished before it is kept\n")
    assert not (tmp_path / "long").exists()
    assert "long | train: interrupted; " in error
