"""The five fixes and the arms: which work two arms share."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import StageError
from stages.core.fixes import (
    ARMS,
    FAIR,
    FIXES,
    FLAWED,
    PIPELINE,
    FixSet,
    arm_name,
    arm_slug,
    distinct_arms,
    fixes_until,
    parse_fixes,
)

SUBSETS: list[FixSet] = [subset for n in range(6) for subset in combinations(FAIR, n)]
# What decides the output of each stage, written down apart from the code.
DECIDES = {
    "convert_data": {"json", "tools"},
    "audit": {"json", "tools", "eos", "parser", "six_bit"},
    "train": {"json", "tools"},
    "fuse": {"json", "tools", "eos"},
    "quantize": {"json", "tools", "eos", "six_bit"},
    "eval": {"json", "tools", "eos", "parser", "six_bit"},
    "report": {"json", "tools", "eos", "parser", "six_bit"},
}


def test_the_five_fixes() -> None:
    assert FAIR == ("json", "tools", "eos", "parser", "six_bit")
    assert ARMS == {"flawed": (), "fair": FAIR}
    assert {stage for fix in FIXES.values() for stage in fix.stages} <= set(PIPELINE)
    assert len(SUBSETS) == 32


@pytest.mark.parametrize(
    ("text", "fixes"),
    [
        ("fair", FAIR),
        ("flawed", FLAWED),
        ("json", ("json",)),
        ("tools,json", ("json", "tools")),
        (" six_bit + json ,json,", ("json", "six_bit")),
        ("six_bit,parser,eos,tools,json", FAIR),
    ],
)
def test_reading_fixes(text: str, fixes: FixSet) -> None:
    assert parse_fixes(text) == fixes


@pytest.mark.parametrize("text", ["", ",", "jason", "json,fairy", "JSON", "fair,json", "json tools"])
def test_unknown_fixes_are_named_in_one_line(text: str) -> None:
    with pytest.raises(
        StageError, match=r"^(unknown fix|no fix is named).*: use fair, flawed, or any of json"
    ) as error:
        parse_fixes(text)
    assert "\n" not in str(error.value)


def test_each_arm_is_named_once() -> None:
    assert distinct_arms(["flawed", " fair", "json+tools"]) == (FLAWED, FAIR, ("json", "tools"))
    with pytest.raises(StageError, match="the arm fair is named twice"):
        distinct_arms(["fair", "flawed", "+".join(FAIR)])
    with pytest.raises(StageError, match="no fix is named"):
        distinct_arms([""])


@given(st.lists(st.sampled_from(FAIR), min_size=1), st.sampled_from(",+"))
def test_order_and_repeats_do_not_matter(names: list[str], joint: str) -> None:
    assert parse_fixes(joint.join(names)) == tuple(name for name in FAIR if name in names)


@pytest.mark.parametrize("fixes", SUBSETS)
def test_an_arm_is_read_back_from_its_name(fixes: FixSet) -> None:
    assert parse_fixes(arm_name(fixes)) == fixes
    assert len({arm_name(other) for other in SUBSETS}) == 32


@pytest.mark.parametrize("stage", PIPELINE)
def test_arms_share_work_exactly_where_they_do_not_differ(stage: str) -> None:
    assert set(DECIDES) == set(PIPELINE)
    for first, second in product(SUBSETS, SUBSETS):
        same = set(first) & DECIDES[stage] == set(second) & DECIDES[stage]
        assert (arm_slug(first, stage) == arm_slug(second, stage)) is same, (first, second)


def test_folder_names() -> None:
    assert arm_slug(FAIR, "train") == "json+tools"
    assert arm_slug(FAIR, "fuse") == "json+tools+eos"
    assert arm_slug(FLAWED, "eval") == "none"
    assert arm_slug(("eos", "six_bit"), "train") == "none"
    assert fixes_until(("json", "parser"), "quantize") == ("json",)
