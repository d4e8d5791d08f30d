"""What a user sees: lines on the right stream, a bar on a terminal, one log file per run."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core import progress
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def restore_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(progress.LOG_VARIABLE, raising=False)
    progress.talk_on_stderr(False)
    yield
    progress.talk_on_stderr(False)


class Clock:
    """Stands for the module `time` in `progress`: it moves when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_lines_go_where_they_are_told_to(capfd: pytest.CaptureFixture[str]) -> None:
    progress.say("to stdout")
    progress.talk_on_stderr(True)
    progress.say("to stderr")
    progress.talk_on_stderr(False)
    progress.say("back")
    assert capfd.readouterr() == ("to stdout\nback\n", "to stderr\n")


def test_a_line_does_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    progress.say("a name\x1b[2J\x1b]0;title\x07 of a server")
    assert capfd.readouterr().out == "a name\\x1b[2J\\x1b]0;title\\x07 of a server\n"


def test_without_a_terminal_there_is_a_line_now_and_then(
    capfd: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with progress.bar("train", 10, "steps", done=4) as bar:
        clock.now += 14
        bar.advance(2)
        clock.now += 1
        bar.advance(1, note="loss 0.5")
        clock.now += 14
        bar.advance(1)
        clock.now += 1
        bar.advance(2)
    out, error = capfd.readouterr()
    assert out == "  train 7/10 steps, 15 s left loss 0.5\n"
    assert error == "", "and none at the end, where the stage says itself that it is done"


def test_a_line_without_any_progress_does_not_divide_by_it(
    capfd: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with progress.bar("wait", 5, "rows") as bar:
        clock.now += 15
        bar.advance(0)
        bar.advance()
    assert [line.split(",")[0] for line in capfd.readouterr().out.splitlines()] == ["  wait 1/5 rows"]


def test_a_pause_is_no_part_of_the_estimate(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress.bar("wait", 3, "rows") as bar:
        with bar.paused():
            clock.now += 12
        clock.now += 4
        bar.advance()
    assert capfd.readouterr().out == "  wait 1/3 rows, 8 s left\n"


def test_pauses_to_come_are_part_of_the_estimate(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    """As long as the last one each."""
    with progress.bar("train", 3, "steps") as bar:
        for seconds in (60, 12):
            with bar.paused():
                clock.now += seconds
        clock.now += 3
        bar.advance(pauses=5)
    assert capfd.readouterr().out == "  train 1/3 steps, 66 s left\n"


def test_on_a_terminal_there_is_a_bar() -> None:
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    code = """
import time
from stages.core import progress
with progress.bar("convert", 3, "rows") as bar:
    for _ in range(3):
        time.sleep(0.12)
        bar.advance(note="loss 0.5")
        progress.say("a line above")
print("end")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                shown += os.read(reader, 4096)
            except OSError:  # the other end is closed
                break
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(reader)
    text = shown.decode()
    assert "convert" in text
    assert "2/3" in text
    assert " s left loss 0.5" in text
    assert text.count("a line above\r\n") == 3
    assert text.rstrip().rsplit("\r", 1)[-1].endswith("end"), "the bar is taken away"


def test_a_run_logs_its_start_its_memory_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MEMORY_EVERY", 0.02)
    with progress.run_log("train", tmp_path / "logs", model="smol", arm="fair") as log:
        (path,) = (tmp_path / "logs").iterdir()
        wait_until(lambda: path.read_bytes().count(b"\n") > 2, "two samples were never taken")
        log["steps"] = 5
    assert path.name.endswith("-train.jsonl")
    start, *samples, end = read_log(path)
    assert (start["event"], start["stage"], start["model"], start["arm"]) == (
        "start",
        "train",
        "smol",
        "fair",
    )
    assert len(samples) >= 2
    assert all(s["event"] == "memory" and 0.005 < s["rss_gb"] < 50 for s in samples)
    assert (end["event"], end["ok"], end["steps"]) == ("end", True, 5)
    assert 0.02 <= end["seconds"] < 3600, "the first sample, a pause, the second"
    assert [line["time"] for line in read_log(path)] == sorted(line["time"] for line in read_log(path))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_fails_is_logged_as_that(error: type[BaseException], tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(error), progress.run_log("train", tmp_path):
        raise error
    (path,) = tmp_path.iterdir()
    assert read_log(path)[-1]["event"] == "end"
    assert read_log(path)[-1]["ok"] is False
    assert threading.active_count() == threads, "the sampler has ended"


def test_stages_of_one_run_share_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.LOG_VARIABLE, str(tmp_path / "deep" / "run.jsonl"))
    for stage in ("fuse", "quantize"):
        with progress.run_log(stage, tmp_path / "logs"):
            pass
    lines = read_log(tmp_path / "deep" / "run.jsonl")
    assert [line["stage"] for line in lines if line["event"] == "end"] == ["fuse", "quantize"]
    assert not (tmp_path / "logs").exists()


def test_a_log_that_cannot_be_written_stops_the_samples_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread's error would be a traceback on the screen; pytest makes it an error here."""
    monkeypatch.setattr(progress, "MEMORY_EVERY", 0.01)
    path, threads = tmp_path / "run.jsonl", threading.active_count()
    monkeypatch.setenv(progress.LOG_VARIABLE, str(path))
    (tmp_path / "full").symlink_to("/dev/full")
    with progress.run_log("train", tmp_path):
        (tmp_path / "full").replace(path)  # at once: between two steps a sample could make the file anew
        wait_until(lambda: threading.active_count() == threads, "the sampler goes on")
        path.unlink()
    assert [line["event"] for line in read_log(path)] == ["end"]
