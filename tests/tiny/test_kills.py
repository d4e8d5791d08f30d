"""A training that is killed again and again ends with the adapter of one that never was."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from stages.core.records import LossPoint, read_lines
from tests.pipeline import Pipeline, start_stage
from tests.training import train_arguments
from tests.waiting import finish

KILLS = 10
RUN = {"iters": 80, "batch_size": 2, "save_every": 1, "eval_every": 10, "num_layers": 1, "dropout": 0.1}


def last_step(checkpoints: Path) -> int:
    return max((int(path.name) for path in checkpoints.glob("[0-9]*")), default=0)


def test_ten_kills_at_random_moments(llama_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    whole = start_stage("train", train_arguments(llama_run, tmp_path / "whole", **RUN), artifacts)
    assert finish(whole)[::2] == (0, "")

    moments, command = random.Random(7), train_arguments(llama_run, tmp_path / "killed", **RUN)
    partial, killed = tmp_path / ".killed.partial" / "checkpoints", 0
    for pause in (0.3, 2.0):  # while packages, the model or rows are loaded, with nothing saved yet
        run = start_stage("train", command, artifacts)
        time.sleep(pause)
        run.kill()
        finish(run)
    while killed < KILLS:
        run = start_stage("train", command, artifacts)
        goes_on = 3 * killed  # so that each start gets further than the last, and none to the end
        while run.poll() is None and last_step(partial) <= goes_on:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.05))
        run.send_signal(signal.SIGKILL)
        assert finish(run)[0] == -signal.SIGKILL
        killed += 1
    last = start_stage("train", command, artifacts)
    assert finish(last)[::2] == (0, "")

    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(names) == 3  # the adapter and two checkpoints
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    losses = [
        [(point.step, point.kind, point.loss, point.call_loss) for point in read_lines(log, LossPoint)]
        for log in (tmp_path / "killed" / "log.jsonl", tmp_path / "whole" / "log.jsonl")
    ]
    assert losses[0] == losses[1]
