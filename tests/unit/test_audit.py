"""The audit's small parts: reading rows and files, counting, citing, registering, reporting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.audit.data import has_string_arguments, names_tool
from stages.audit.plan import longest_turn
from stages.audit.registry import CHECKS, Issue, check
from stages.audit.report import describe_audit, write_markdown
from stages.audit.rows import EXAMPLES, Row, cite, excerpt, list_lines, stored_turns, tally
from stages.audit.subject import JINJA, Subject, read_base
from stages.core.errors import StageError
from stages.core.records import AuditReport, Finding
from stages.core.render import Encoded


def make_row(
    split: str, line: int, data: dict[str, Any] | None = None, text: str = "", marks: str = ""
) -> Row:
    """A row; `marks` has a character per token, `x` for a supervised one."""
    encoded = Encoded(list(range(100, 100 + len(marks))), [mark == "x" for mark in marks], [-1] * len(marks))
    data = data or {"text": text}
    return Row(split, line, data, stored_turns(data), text, (), encoded)


def chatml(*turns: tuple[str, str]) -> str:
    return "\n".join(f"<|im_start|>{role}\n{text}<|im_end|>" for role, text in turns)


def test_tally_counts_train_first_and_names_the_other_splits() -> None:
    rows = [
        make_row(split, line) for split, n in (("train", 4), ("valid", 3), ("test", 2)) for line in range(n)
    ]
    hits = [rows[0], rows[1], rows[4], rows[8]]
    found = tally(hits, rows)
    assert (found.count, found.total) == (2, 4)
    assert found.words == "2 of 4 rows in train (valid 1 of 3, test 1 of 2)"


def test_tally_of_rows_outside_of_train_counts_their_split() -> None:
    rows = [make_row("train", 1), make_row("valid", 1), make_row("valid", 2)]
    found = tally(rows[1:2], rows)
    assert (found.count, found.total, found.words) == (1, 2, "1 of 2 rows in valid")


@given(st.lists(st.tuples(st.sampled_from(["train", "valid", "test"]), st.booleans()), min_size=1))
def test_tally_never_counts_more_than_there_is(spec: list[tuple[str, bool]]) -> None:
    rows = [make_row(split, line) for line, (split, _) in enumerate(spec, 1)]
    hits = [row for row, (_, hit) in zip(rows, spec, strict=True) if hit]
    found = tally(hits, rows)
    assert 0 <= found.count <= found.total <= len(rows)
    assert (found.count == 0) == (not hits)


def test_examples_name_file_and_line_and_show_the_place() -> None:
    text = chatml(("user", "What is wrong?"), ("user", "<tool_response>\nnothing\n</tool_response>"))
    rows = [make_row("valid", line, text=text) for line in (7, 8, 9, 10)]
    cited = cite(rows, "<tool_response>")
    assert len(cited) == EXAMPLES
    assert cited[0].startswith("valid.jsonl:7: <tool_response>⏎nothing⏎</tool_response>")
    assert excerpt(rows[0]) == "What is wrong?"
    assert excerpt(rows[0], "not in it") == "What is wrong?"


def test_list_lines_says_how_many_there_are() -> None:
    rows = [make_row("train", line) for line in range(1, 15)]
    assert list_lines(rows, 3) == "train.jsonl:1, 2, 3, … (14 in all)"
    assert list_lines(rows[:2], 3) == "train.jsonl:1, 2"


def test_stored_turns_of_both_row_forms() -> None:
    from_text = stored_turns({"text": chatml(("system", "s"), ("user", "q"))})
    assert [(t.role, t.text) for t in from_text] == [("system", "s"), ("user", "q")]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}, {"role": "tool"}]
    assert [(t.role, t.text) for t in stored_turns({"messages": messages})] == [
        ("user", "q"),
        ("assistant", ""),
        ("tool", ""),
    ]
    cut = chatml(("user", "q"), ("assistant", "a")).removesuffix("<|im_end|>")
    assert [turn.role for turn in stored_turns({"text": cut})] == ["user", "assistant"]
    assert stored_turns({"text": "[INST] not ChatML [/INST]"}) == ()


def test_last_trained_and_longest_turn() -> None:
    row = make_row("train", 1, marks="..xx.xxx.")
    assert row.last_trained == 107
    assert longest_turn(row) == 3
    assert make_row("train", 1, marks="...").last_trained is None
    assert longest_turn(make_row("train", 1)) == 0


@pytest.mark.parametrize(
    ("arguments", "text", "found"),
    [
        ({"code": "print(1)"}, '{"arguments": {"code": "print(1)"}}', False),
        ('{"code": "print(1)"}', "", True),
        ({"code": "x"}, r'{"name": "f", "arguments": "{\"code\": 1}"}', True),
        # JSON about JSON: the inner quotes are escaped, so it is data and no second encoding.
        ({"code": "x"}, r'{"arguments": {"code": "d = {\"arguments\": \"{}\"}"}}', False),
    ],
)
def test_string_arguments_are_found_in_rows_and_in_text(arguments: Any, text: str, found: bool) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    data = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert has_string_arguments(make_row("train", 1, data, text)) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("You are good at running and at prefixes.", False),
        ("Tools: run, fs.read", True),
        ("Call `run(command)`.", True),
        ('{"name": "fs.read"}', True),
        ("The tool fs_read, and rerun.", False),
        ("run", True),
        ("", False),
    ],
)
def test_a_tool_is_named_by_a_whole_word(text: str, found: bool) -> None:
    assert names_tool(text, ("run", "fs.read", "fix")) is found


def write_base(folder: Path, **files: Any) -> Path:
    for name, content in ({"config": {"eos_token_id": 5}} | files).items():
        (folder / f"{name}.json").write_text(
            content if isinstance(content, str) else json.dumps(content), "utf-8"
        )
    return folder


def test_base_takes_generation_config_before_config(tmp_path: Path) -> None:
    assert read_base(write_base(tmp_path)).stops == [5]
    assert read_base(write_base(tmp_path, generation_config={"do_sample": True})).stops == [5]
    assert read_base(write_base(tmp_path, generation_config={"eos_token_id": [7, 5]})).stops == [7, 5]


def test_base_reads_the_template_of_both_files(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    assert read_base(write_base(tmp_path, tokenizer_config={})).own_template is None
    assert read_base(write_base(tmp_path, tokenizer_config={"chat_template": named})).own_template == "D"
    (tmp_path / JINJA).write_text("J", "utf-8")
    assert read_base(tmp_path).own_template == "J"
    assert len(read_base(tmp_path).templates) == 2


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(StageError, match=r"config\.json is not"):
        read_base(write_base(tmp_path, config=content))


def test_a_check_name_is_taken_once() -> None:
    def mixed_dialects(subject: Subject) -> Issue | None:
        raise AssertionError(subject)

    before = CHECKS["mixed_dialects"]
    with pytest.raises(ValueError, match="mixed_dialects"):
        check("data")(mixed_dialects)
    assert CHECKS["mixed_dialects"] is before


def test_the_report_tells_every_finding() -> None:
    findings = [
        Finding(
            check="foreign_dialect", severity="critical", place="data", flaw=2, message="419 rows", count=419,
            total=685, fix="convert", examples=["train.jsonl:1: `code`"],
        ),
        Finding(
            check="tags_split", severity="info", place="tokenizer", flaw=None, message="tags", count=1,
            total=4, fix="-",
        ),
    ]  # fmt: skip
    report = AuditReport(model="m", arm="flawed", checks=["a", "b", "c"], findings=findings)
    first, second, summary = describe_audit(report)
    assert first == "critical data.foreign_dialect (flaw 2): 419 rows. To do: convert"
    assert second == "info tokenizer.tags_split: tags", "nothing is wrong there"
    assert summary == "3 checks: 1 critical, 0 warning, 1 info; a verdict would be inconclusive"
    text = write_markdown(report)
    for piece in (
        "419 of 685",
        "data.foreign_dialect",
        "To do: convert.",
        "`train.jsonl:1: 'code'`",
        "a, b, c.",
    ):
        assert piece in text
    clean = AuditReport(model="m", arm="fair", checks=["a"], findings=[])
    assert describe_audit(clean) == (
        "1 checks: 0 critical, 0 warning, 0 info; nothing in the set-up forbids a verdict",
    )
