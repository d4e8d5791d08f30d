"""The card: bounded counts that merge, and every section of what a reader must know."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data.card import Card, write_card
from stages.convert_data.converted import HAD_LINE, HAD_NONE, HAD_OTHER, Converted, Kind
from stages.convert_data.counts import OTHERS, SAMPLES, SplitCard, Tally
from stages.convert_data.duplicates import find, pack
from stages.convert_data.offers import ConvertContext
from stages.convert_data.rows import convert_row
from stages.convert_data.tokens import TokenStats
from stages.core.chat import Tool, ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.dialects import render_calls
from stages.core.fixes import FAIR, FixSet
from stages.core.preset import load_preset
from stages.core.prompts import system_message
from stages.core.tools import EXECUTE_CODE

SETUP = load_preset("smol").model
CONTEXT = ConvertContext(SETUP, FAIR, ())


def row(answer: str, question: str = "Why?") -> dict[str, Any]:
    return {"text": join_chatml([Turn("user", question), Turn("assistant", answer)])}


def convert(raw: Any) -> Converted:
    return convert_row(raw, CONTEXT)


XML = render_calls([ToolCall("f", {"a|b": "1"})], "qwen3_coder")
HERMES = render_calls([ToolCall("f", {"a": 1})], "hermes")
ROWS = [row("So."), row(XML), row(HERMES), row(f"{HERMES}\n{HERMES}"), row("``` </end>"), row("x" * 5000)]


def count(rows: list[Any], first: int = 1) -> SplitCard:
    card = SplitCard()
    for number, raw in enumerate(rows, first):
        try:
            card.accept(convert(raw), number)
        except ValueError as error:
            card.reject(number, str(error))
    return card


def test_counts() -> None:
    card = count([*ROWS, 3, {"text": "hello 12"}, {"text": "hello 345"}])
    data = card.to_json()
    assert (data["rows"], data["converted"], data["rejected"]) == (9, 6, 3)
    assert data["rows_by_shape"] == {"text": 6}
    assert data["rows_by_dialect"] == {"no call": 3, "hermes": 2, "qwen3_coder": 1}
    assert data["turns_by_dialect"] == {"hermes": 2, "qwen3_coder": 1}
    assert (data["rows_by_tool"], data["calls_by_tool"]) == ({"f": 3}, {"f": 4})
    assert data["rows_by_whose_tools"] == {"the tools for rows without their own": 6}
    assert data["role_patterns"] == {"user-assistant": 6}
    assert data["untyped_xml_values"] == {"f.a|b": 1}
    assert data["calls_of_undefined_tools"] == {"f": 4}
    assert data["calls_without_a_result"] == {"at the end of a row": 4}
    assert [(r["count"], r["lines"]) for r in data["rejected_by_reason"]] == [(2, [8, 9]), (1, [7])]
    assert "hello 12" in data["rejected_by_reason"][0]["example"]
    assert "hello" in card.commonest_reason()
    assert SplitCard().commonest_reason() == "it has none"


@given(
    st.lists(st.sampled_from([*ROWS, 3, {"text": "a 1"}, {"text": "a 22"}, {"b": 1}]), max_size=20),
    st.integers(0, 20),
)
def test_cards_of_shards_merge_into_the_card_of_the_whole(rows: list[Any], cut: int) -> None:
    whole, merged = count(rows), SplitCard()
    merged.merge(pickle.loads(pickle.dumps(count(rows[:cut]))))
    merged.merge(count(rows[cut:], cut + 1))
    assert merged.to_json() == whole.to_json()
    assert (merged.samples, merged.first_rows) == (whole.samples, whole.first_rows)
    written = {SETUP.system: {HAD_NONE: whole.converted}} if whole.converted else {}
    assert merged.systems == whole.systems == written
    backwards = count(rows[cut:], cut + 1)
    backwards.merge(count(rows[:cut]))
    assert backwards.reasons == whole.reasons, "the first lines do not depend on the order of the shards"


@pytest.mark.parametrize("kinds", [1, 2, 100])
def test_rows_counted_together_make_the_same_card(kinds: int) -> None:
    converted = [convert(raw) for raw in ROWS]
    chance = random.Random(kinds)
    for _ in range(20):
        rows = chance.choices(converted, k=chance.randrange(20))
        whole, card = SplitCard(), SplitCard()
        tally = Tally(card, kinds)
        for number, one in enumerate(rows, 1):
            whole.accept(one, number)
            tally.accept(one, number)
        tally.settle()
        assert card == whole
        assert json.dumps(card.to_json()) == json.dumps(whole.to_json()), "the order too"


@pytest.mark.parametrize("depth", [300, 1000])
def test_a_row_that_can_hardly_be_shown_is_counted_all_the_same(depth: int) -> None:
    more = "[" * depth + "]" * depth
    raw = {**ROWS[0], "more": orjson.loads(more)}
    card = count([raw, {**ROWS[0], "more": {1: "a", "b": "\ud800"}}])
    assert (card.converted, len(card.first_rows)) == (2, 2)
    assert "[[[" in card.first_rows[0].before or "too deeply" in card.first_rows[0].before
    assert "1: 'a'" in card.first_rows[1].before


def test_memory_is_bounded_whatever_the_data() -> None:
    card = SplitCard()
    for number in range(30_000):
        card.reject(number, f"message {number}: unknown role 'r{number}'")
        card.reject(
            number, f"column c{chr(97 + number % 26)}x{chr(97 + number // 26 % 26)} {'y' * (number % 50)}"
        )
        converted = convert(ROWS[0])
        kind = converted.kind._replace(tools=(f"tool{number}",), changes=(f"column {number} not kept",))
        converted = converted._replace(kind=kind)
        card.accept(converted, 1)
    assert len(card.reasons) <= 201
    assert card.reasons["message …: unknown role …"].count == 30_000
    assert card.reasons["message …: unknown role …"].lines == [0, 1, 2, 3, 4]
    assert len(card.calls_by_tool) <= 10_001
    assert card.calls_by_tool[OTHERS] == 20_000
    assert sum(card.calls_by_tool.values()) == sum(card.changes.values()) == 30_000
    assert sum(reason.count for reason in card.reasons.values()) == 60_000
    assert len(pickle.dumps(card)) < 2_000_000


def test_samples_are_of_many_kinds_and_cut() -> None:
    card = Card("fair", {"train": count([row("So.")] * 50 + ROWS[1:])})
    kinds = [sample.kind for sample in card.samples()]
    assert len(kinds) == SAMPLES
    assert kinds[:3] == ["text, no call", "text, qwen3_coder", "text, hermes"]
    long = count([ROWS[-1]]).first_rows + list(count([ROWS[-1]]).samples.values())
    assert long[0].before.endswith("more characters)")
    assert len(long[0].before) < 2000


def full_card() -> Card:
    digests = pack(convert(raw).digests for raw in ROWS)
    return Card(
        source="data",
        arm="fair",
        splits={"train": count([*ROWS, {"text": "a | b"}]), "valid": count(ROWS[:1])},
        target="A model",
        tool_response="user",
        tools="Inferred: f.",
        duplicates=find(
            {"train": digests, "valid": digests[:1]},
            {"train": np.arange(1, 7, dtype=np.uint64), "valid": np.array([40], np.uint64)},
        ),
        dropped={"train": 6, "valid": 0},
        valid_share=0.1,
        tokens={"train": TokenStats(6, 5, 1, 20.5, 19, 40, 41, 30, 2)},
    )


def test_the_page_has_all_a_reader_must_know(tmp_path: Path) -> None:
    write_card(full_card(), tmp_path)
    text = (tmp_path / "card.md").read_text("utf-8")
    for line in (
        "# Conversion of data for A model, arm fair",
        "| read               |       7 |       1 |",
        "| f.a\\|b |       1 |       0 |",
        "Inferred: f.",
        "| at the end of a row |       4 |       0 |",
        "Written as a user turn that begins with 'Tool result:\\n': the preset or --tool-response asks",
        "| written            |       0 |       1 |",
        "Valid was cut out of train: 1 of 7 rows (14.3%), asked for 10.0%; rows with the same question "
        "stay together; rows of both are numbered as in the source's train.",
        "| train   |      1 | 7             | text without marks of turns ('a \\| b')",
        "- 1 row of train also in valid",
        "- 5 more rows of train with a question of valid",
        "Removed: 6 rows of train. Some of them",
        "- train 1 = valid 40",
        "| train   |      6 |          5 |     20 |       19 |    40 |        41 | 2 (40.0%) |",
        "The chat template refuses 1 of the measured rows.",
        "### 5. ",
        "````text\n",
    ):
        assert line in text, line
    assert all(text.count(f"\n{mark}text\n") <= text.count(f"\n{mark}\n") for mark in ("```", "````"))
    data = json.loads((tmp_path / "card.json").read_bytes())
    assert data["tool_response"]["setting"] == "user"
    assert data["duplicates"]["leaks"][0]["questions"] == 5
    assert len(data["samples"]) == SAMPLES
    assert data["tokens"]["train"]["longest"] == 41
    assert full_card().summary()["train"] == {"rows": 7, "converted": 6, "rejected": 1, "dropped": 6}
    train, _, leaks, share, undefined = full_card().lines()
    assert train.startswith("train: 7 rows = 6 converted + 1 rejected; 6 removed, 0 written; ")
    assert "duplicates and leaks (removed): 1 row of train also in valid" in leaks
    assert share.startswith("valid was cut out of train: 1 of 7 rows (14.3%), asked for 10.0%")
    assert undefined == "4 calls of tools that no definition names: f"


def test_turns_that_look_like_a_call_are_shown_with_their_rows(tmp_path: Path) -> None:
    train, valid = SplitCard(), SplitCard()
    for number in (900, *range(3, 12)):
        families = ("ReAct", "ReAct", "XML") if number == 5 else ("ReAct",)
        train.note(Kind("messages", "user", lookalikes=families), number)
    later = SplitCard()
    later.note(Kind("messages", "user", lookalikes=("ReAct",)), 2)
    train.merge(later)
    card = Card("fair", {"train": train, "valid": valid})
    assert card.lines()[-1] == (
        "turns without a call that look like one: ReAct 12 (train 2, 3, 4, 5, 6), XML 1 (train 5)"
    )
    write_card(card, tmp_path)
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "## Turns without a call that look like one\n" in text
    assert "| train   | ReAct    |      12 | 2, 3, 4, 5, 6 |" in text
    data = json.loads((tmp_path / "card.json").read_bytes())["splits"]
    assert data["train"]["turns_that_look_like_a_call"]["XML"] == {"count": 1, "lines": [5]}
    assert data["valid"]["turns_that_look_like_a_call"] == {}
    write_card(Card("fair", {"train": valid}), tmp_path)
    assert "look like one" not in (tmp_path / "card.md").read_text("utf-8")


def chat(*systems: str, **columns: Any) -> dict[str, Any]:
    """A row with these system turns."""
    turns = [*(("system", text) for text in systems), ("user", "Why?"), ("assistant", "So.")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]} | columns


@pytest.mark.parametrize("fixes", [FAIR, ("tools",)])
def test_the_page_shows_the_system_texts_that_were_written(fixes: FixSet, tmp_path: Path) -> None:
    own = [Tool("f").to_json()]
    evaluation = system_message(SETUP, fixes).content
    rows = {
        "train": [chat(), chat(), chat("Be kind."), chat(tools=own), chat("Be kind.", tools=own)],
        "valid": [chat(SETUP.system), chat(evaluation), chat("Be kind.", "Be brief.")],
    }
    splits = {name: SplitCard() for name in rows}
    for name, raw in ((name, raw) for name, each in rows.items() for raw in each):
        converted = convert_row(raw, ConvertContext(SETUP, fixes, (EXECUTE_CODE,)))
        first = converted.row["messages"][0]
        assert converted.kind.system[:1] in ((), (first["content"],))
        assert (converted.kind.system == ()) == (first in raw["messages"]), "told where it is new"
        splits[name].accept(converted, 1)
    write_card(Card("an arm", splits), tmp_path)
    assert json.loads((tmp_path / "card.json").read_bytes())["system_texts"] == [
        {
            "text": evaluation,
            "rows_that_had": {
                "train": {HAD_NONE: 2, HAD_OTHER: 1},
                "valid": {HAD_LINE: 1, HAD_OTHER: 1},
            },
        },
        {"text": SETUP.system, "rows_that_had": {"train": {HAD_NONE: 1}, "valid": {}}},
    ]
    page = (tmp_path / "card.md").read_text("utf-8")
    section = page.partition("## System texts that were written\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["", "train", "valid"],
        ["rows that had no system turn", "2", "0"],
        ["rows that had the preset's line alone", "0", "1"],
        ["rows that had another text", "1", "1"],
        ["", "train", "valid"],
        ["rows that had no system turn", "1", "0"],
        ["rows that had the preset's line alone", "0", "0"],
        ["rows that had another text", "0", "0"],
    ]
    assert section.count("```text\n") == 2
    assert section.index(f"```text\n{evaluation}\n```") < section.index(f"```text\n{SETUP.system}\n```")


@pytest.mark.parametrize("tokens", ["", "the model is not on this machine"])
def test_what_is_not_there_is_said(tokens: str, tmp_path: Path) -> None:
    write_card(Card("flawed", {"train": SplitCard()}, tokens=tokens), tmp_path)
    text = (tmp_path / "card.md").read_text("utf-8")
    assert f"Not available: {tokens or 'not counted'}." in text
    assert "Not looked for." in text
    assert "None: every row keeps what it had." in text
    assert "as a turn of the role tool, which the target's own chat template writes" in text


def test_rounds_of_calls_are_one_pattern() -> None:
    def pattern(rounds: int) -> str:
        turns = [
            Turn("user", "Go."),
            *[Turn("assistant", HERMES), Turn("tool", "1")] * rounds,
            Turn("assistant", "Done."),
        ]
        return convert({"text": join_chatml(turns)}).kind.pattern

    assert pattern(2) == "user-assistant-tool-assistant-tool-assistant"
    assert pattern(3) == pattern(30) == "user-(assistant-tool)+-assistant"


def test_control_tokens_are_shown_with_their_rows(tmp_path: Path) -> None:
    train = SplitCard()
    for number in (7, 3):
        train.note(Kind("messages", "user", controls=("<|im_end|>",)), number)
    card = Card("fair", {"train": train})
    assert card.lines()[-1] == (
        "WARNING: rows with control tokens in their texts, which a tokenizer obeys: <|im_end|> 2 (train 3, 7)"
    )
    write_card(card, tmp_path)
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "## Control tokens within texts\n" in text
    assert "| train   | <\\|im_end\\|> |      2 | 3, 7         |" in text
    split = json.loads((tmp_path / "card.json").read_bytes())["splits"]["train"]
    assert split["rows_by_control_token_in_their_texts"] == {"<|im_end|>": {"count": 2, "lines": [3, 7]}}
