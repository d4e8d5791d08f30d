"""Records: read back as written, and refused in one line when they are anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.errors import StageError
from stages.core.records import (
    AuditReport,
    Finding,
    LossPoint,
    Rate,
    RawReply,
    Recipe,
    read_lines,
    read_record,
    write_lines,
    write_record,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
REPLIES = st.lists(
    st.builds(
        RawReply,
        id=TEXT,
        text=TEXT,
        tokens=st.integers(0, 2**40),
        finish=st.sampled_from(["stop", "length"]),
        seconds=st.floats(0, 1e9),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def complaint(path: Path, kind: Any, read: Any = read_record) -> str:
    with pytest.raises(StageError) as error:
        read(path, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


@given(replies=REPLIES)
def test_lines_are_read_back_whatever_the_text(folder: Path, replies: list[RawReply]) -> None:
    write_lines(folder / "replies.jsonl", replies)
    assert read_lines(folder / "replies.jsonl", RawReply) == replies


@given(settings=st.dictionaries(TEXT, st.lists(TEXT | st.integers(-(2**53), 2**53) | st.none())))
def test_records_are_read_back_whatever_the_text(folder: Path, settings: dict[str, Any]) -> None:
    recipe = Recipe(stage="s", settings=settings, inputs={})
    write_record(folder / "recipe.json", recipe)
    assert read_record(folder / "recipe.json", Recipe) == recipe


def test_nothing_is_left_beside_a_record(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", Rate(k=1, n=2))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert (tmp_path / "r.json").read_bytes() == b'{\n  "k": 1,\n  "n": 2\n}\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"k": 1}', "at n: "),
        (b'{"k": 1, "n": 2, "p": 0.5}', "at p: no such key, use one of k, n"),
        (b'{"k": "one", "n": 2}', "at k: "),
        (b'{"k": 3, "n": 2}', "3 out of 2"),
        (b'{"k": -1, "n": 2}', "at k: "),
        (b'{"k": 0, "n": 0}', "at n: "),
        (b'{"k": 1, "n"', "valid: "),
        (b'{"k": 1 "n": 2}', "valid: Invalid JSON: expected `,` or `}`"),
        (b"\xff\xfe", "valid: "),
        (b"", "valid: "),
    ],
)
def test_a_wrong_record_is_explained(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rate.json"
    path.write_bytes(content)
    text = complaint(path, Rate)
    assert "rate.json is not valid" in text
    assert reason in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.json", Rate) == f"no file {tmp_path / 'none.json'}"
    assert complaint(tmp_path / "none.jsonl", Rate, read_lines) == f"no file {tmp_path / 'none.jsonl'}"


def test_the_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rates.jsonl"
    path.write_text('{"k": 1, "n": 2}\n{"k": 1, "n": 0}\n')
    assert "rates.jsonl:2 is not valid at n: use 1 or more" in complaint(path, Rate, read_lines)


def test_rates() -> None:
    assert Rate(k=7, n=20).value == pytest.approx(0.35)
    assert Rate(k=0, n=1).value == 0
    with pytest.raises(ValidationError):
        Rate(k=1, n=0)


def test_critical_findings() -> None:
    findings = [
        Finding(check=kind, severity=kind, place="data", flaw=None, message="", count=1, total=1, fix="")
        for kind in ("critical", "warning", "info", "critical")
    ]
    report = AuditReport(model="m", arm="fair", checks=[], findings=findings)
    assert [f.check for f in report.critical] == ["critical", "critical"]


def test_optional_fields_need_not_be_given() -> None:
    point = LossPoint(step=1, kind="train", loss=0.5, seconds=1.0)
    assert point.learning_rate is None
    assert point.tokens_per_second is None
