"""The system prompt and the tools that training and evaluation share."""

from __future__ import annotations

from itertools import combinations

import pytest

from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.prompts import offered_tools, query_row, system_message
from stages.core.tools import EXECUTE_CODE, FUNCTIONS

SETUP = load_preset("smol").model
ALL = [subset for n in range(6) for subset in combinations(FAIR, n)]


def test_without_the_fix_there_is_a_bare_system_prompt() -> None:
    assert query_row("Why?", SETUP, FLAWED) == {
        "messages": [
            {"role": "system", "content": "You are a coding assistant for Python projects."},
            {"role": "user", "content": "Why?"},
        ],
        "tools": [],
    }


def test_with_the_fix_there_are_instructions_and_the_one_tool() -> None:
    row = query_row("Why?", SETUP, FAIR)
    system = row["messages"][0]["content"]
    assert system.startswith("You are a coding assistant for Python projects.\n")
    assert all(function.signature in system for function in FUNCTIONS.values())
    assert row["tools"] == [EXECUTE_CODE.to_json()]
    assert row["messages"][1] == {"role": "user", "content": "Why?"}


@pytest.mark.parametrize("fixes", ALL)
def test_the_fix_tools_alone_decides(fixes: FixSet) -> None:
    like = FAIR if "tools" in fixes else FLAWED
    assert system_message(SETUP, fixes) == system_message(SETUP, like)
    assert offered_tools(fixes) == offered_tools(like)
    assert query_row("q", SETUP, fixes)["messages"][0]["content"] == system_message(SETUP, fixes).content


def test_the_presets_own_line_is_used() -> None:
    other = SETUP.model_copy(update={"system": "Be brief."})
    assert system_message(other, FLAWED).content == "Be brief."
    assert system_message(other, FAIR).content.startswith("Be brief.\n")


def test_an_empty_line_is_no_system_turn() -> None:
    nothing = SETUP.model_copy(update={"system": ""})
    assert system_message(nothing, FAIR).content.startswith("To look at the project or act on it")
    assert [turn["role"] for turn in query_row("q", nothing, FAIR)["messages"]] == ["system", "user"]
    assert [turn["role"] for turn in query_row("q", nothing, FAIR, ())["messages"]] == ["user"]
    assert query_row("q", nothing, FLAWED) == {"messages": [{"role": "user", "content": "q"}], "tools": []}
