"""Numbers on the command line that no computer can use: one line, and nothing is made."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import StageError
from stages.core.preset import SECTIONS, flag_of, load_preset, option_choices, option_type

STAGES = ("convert_data", "audit", "train", "fuse", "quantize", "eval", "retest_fair", "report")
TAKES_A_NUMBER = re.compile(
    r"^  (--[a-z-]+) (N|MB|NUMBER|SECONDS|SHARE|SEED|N,N,…|A,B,…)(?= |$)", re.MULTILINE
)
LISTS_OF_WORDS = {"--lora-keys", "--report-to", "--suites", "--prompts", "--hosts"}
HUGE = (str(10**300), str(-(10**300)), "1e999")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a command makes would be in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path


def list_number_flags(stage: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        import_module(f"stages.{stage}.__main__").main(["--help"])
    found = {flag for flag, _ in TAKES_A_NUMBER.findall(capfd.readouterr().out)} | {"--seed"}
    return sorted(found - LISTS_OF_WORDS)


def is_a_number(annotation: Any) -> bool:
    return option_type(annotation) in (int, float) and option_choices(annotation) is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_number_that_is_too_large_is_one_line(
    stage: str, own_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no flag's description begins on a line of its own
    main = import_module(f"stages.{stage}.__main__").main
    flags = list_number_flags(stage, capfd)
    setup = SECTIONS.get(stage, SECTIONS["model"])
    own = {flag_of(name) for name, info in setup.model_fields.items() if is_a_number(info.annotation)}
    assert own <= {*flags} or stage == "report", "the help is read as it is written"
    for flag in flags:
        for value in HUGE:
            code = main([f"{flag}={value}"])
            error = capfd.readouterr().err
            assert code == 2, (flag, value, error)
            assert re.fullmatch(rf"{stage}: [^\n]*{flag}[^\n]*\n", error), (flag, value)
    assert not list(own_place.iterdir())


@pytest.mark.parametrize(
    ("option", "largest", "reason"),
    [
        ("iters", 2**31 - 1, "use a number below 2147483648"),
        ("max_tokens", 2**31 - 1, "use a number below 2147483648"),
        ("weight_decay", 1e37, r"use a number below 1e\+38"),
        ("scale", 1e6, "use 1000000 or less"),
        ("call_weight", 1e6, "use 1000000 or less"),
    ],
)
def test_the_largest_number_of_a_preset(option: str, largest: float, reason: str) -> None:
    load_preset("smol", {option: largest})
    with pytest.raises(StageError, match=f"^{flag_of(option)} .*: {reason}$"):
        load_preset("smol", {option: largest * 20})
