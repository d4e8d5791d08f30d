"""One model in this process and behind a real mlx_lm.server: the same decisions, whoever reads the calls."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.core.records import EvalSummary, RawReply, Score, read_lines, read_record
from stages.eval.__main__ import main
from tests.models import BuiltOnce
from tests.parrot import write_parrot
from tests.small_suite import SUITE

CALL = '<tool_call>{"name":"f" ,"arguments":{} }</tool_call>'


@contextmanager
def serving(model: Path, place: Path) -> Iterator[str]:
    """mlx_lm.server with a model folder; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "hub").mkdir(parents=True)  # it lists the cache of the hub, which has to be there
    with (place / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)],
            env=os.environ | {"HF_HOME": str(place), "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, place / "server.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(20)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"no server after two minutes:\n{log.read_text()}")


@pytest.mark.parametrize("says", ["a call", "anything"])
def test_the_same_model_decides_the_same_behind_a_server(
    says: str, built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    model = built.model("qwen2", quantize=False)
    if says == "a call":
        model = write_parrot(model, tmp_path / "parrot", CALL, "<|endoftext|>")
    suite = tmp_path / "three.json"
    suite.write_text(json.dumps(SUITE), "utf-8")
    words = ["--model", str(model), "--suites", str(suite), "--max-tokens", "14"]
    assert main([*words, "--data", str(model), "--out", str(tmp_path / "here")]) == 0
    with serving(model, tmp_path / "home") as address:
        assert main([*words, "--endpoint", address, "--out", str(tmp_path / "there")]) == 0
    here, there = (tmp_path / side / "three" for side in ("here", "there"))
    mine, theirs = (read_lines(side / "replies.jsonl", RawReply) for side in (here, there))
    assert [reply.prompt_tokens for reply in mine] == [reply.prompt_tokens for reply in theirs]
    assert [reply.finish for reply in mine] == [reply.finish for reply in theirs]
    assert [reply.tokens for reply in mine] == [reply.tokens for reply in theirs]
    decided = [
        [(score.strict.calls, score.strict.decision) for score in read_lines(side / "scores.jsonl", Score)]
        for side in (here, there)
    ]
    assert decided[0] == decided[1]
    if says == "a call":
        assert {reply.text for reply in mine} == {CALL}
        assert {reply.calls_by for reply in theirs} == {"server"}
        assert decided[0][0][0] == [{"name": "f", "arguments": {}}]
    else:
        assert [reply.text for reply in mine] == [reply.text for reply in theirs]
        assert {reply.finish for reply in theirs} == {"length"}
    assert read_record(there / "summary.json", EvalSummary).engine == "endpoint"
    capsys.readouterr()
    assert main(["--compare", str(here), str(there)]) == 0
    differing = "dialect 3" if says == "a call" else "dialect 0"
    assert f"queries that differ in: decision 0, {differing}, stop 0, prompt 0" in capsys.readouterr().out
