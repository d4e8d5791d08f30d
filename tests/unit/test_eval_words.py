"""Mistakes on the command line of eval, and in its environment, are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.cli import Options
from stages.eval.__main__ import main
from stages.eval.engines.transport import KEY_VARIABLE


@pytest.mark.parametrize(
    ("variable", "proxy"), [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTP_PROXY", "foo://127.0.0.1:9")]
)
def test_a_proxy_that_cannot_be_used_is_one_line(
    variable: str,
    proxy: str,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, proxy)
    words = ["--suites", *options.preset.eval.suites, "--out", str(options.out)]
    assert main(["--endpoint", "http://192.0.2.1:9/v1", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eval: a proxy that the environment names cannot be used (")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--endpoint", "127.0.0.1:8080"], "--endpoint 127.0.0.1:8080: use an address such as http://"),
        (["--endpoint", "ftp://a/v1"], "--endpoint ftp://a/v1: use an address such as http://"),
        (["--endpoint", "http://127.0.0.1:99999/v1"], "9999/v1: use an address such as http://"),
        (["--endpoint", f"http://{'a' * 64}.local/v1"], "no host has a name with more than 63 characters"),
        (["--endpoint", "http://me:pw@a/v1"], f"and a key in the variable {KEY_VARIABLE}"),
        (["--endpoint", "http://a/v1", "--replies", "b"], "--endpoint and --replies exclude each other"),
        (["--endpoint", "http://a/v1", "--data", "b"], "--endpoint asks no model folder: leave --data out"),
        (["--served-model", "x"], "--served-model is for a server: give its address with --endpoint"),
        (["--concurrency", "4"], "--concurrency is for a server: give its address with --endpoint"),
        (["--replies", "a", "--timeout", "9"], "--timeout is for a server: give its address with --endpoint"),
        (["--endpoint", "http://a/v1", "--concurrency", "0"], "--concurrency 0: use 1 or more"),
        (["--endpoint", "http://a/v1", "--timeout", "0"], "--timeout 0: use a number above 0"),
        (["--endpoint", "http://a/v1", "--stop-at-call"], "--stop-at-call works on a model in this process"),
        (["--replies", "a", "--suites", "core20", "--ask-again"], "--ask-again asks a model, and --replies"),
        (["--compare", "a", "b", "--ask-again"], "--ask-again asks a model, and --compare has none"),
        (["--compare", "a"], "--compare lays two or more outputs beside each other: name another one"),
        (["--replies", "a.jsonl"], "--replies a.jsonl answers one suite: name it with --suites"),
        (["--replies", "a", "--suites", "core20", "--samples", "2"], "leave --temperature, --samples, --pro"),
        (["--replies", "no.jsonl", "--suites", "core20"], "no file no.jsonl: --replies takes JSON lines"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("eval: ")
    assert complaint in error
    assert error.count("\n") == 1
