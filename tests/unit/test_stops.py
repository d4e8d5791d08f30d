"""Stop ids: what a base names, and what a fused model gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.stops import as_ids, choose_stop_ids, own_stop_ids

IDS = st.lists(st.integers(0, 9), max_size=4)
END_OF_TEXT, IM_END = 151643, 151645


@pytest.mark.parametrize(
    ("value", "ids"),
    [(2, [2]), (0, [0]), ([3, 4], [3, 4]), (None, []), ([], []), ("2", []), (2.5, []), ([None, 7], [7])],
)
def test_eos_entries_as_lists(value: Any, ids: list[int]) -> None:
    assert as_ids(value) == ids


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": END_OF_TEXT}, None, [END_OF_TEXT]),
        ({"eos_token_id": END_OF_TEXT}, {"eos_token_id": [IM_END, END_OF_TEXT]}, [IM_END, END_OF_TEXT]),
        ({"eos_token_id": IM_END}, {"do_sample": True}, [IM_END]),
        ({"eos_token_id": IM_END}, {"eos_token_id": None}, [IM_END]),
        ({}, {"eos_token_id": 0}, [0]),
        ({}, None, []),
    ],
)
def test_generation_config_goes_first(config: Any, generation: Any, ids: list[int]) -> None:
    assert own_stop_ids(config, generation) == ids


def test_the_published_flaw_and_its_repair() -> None:
    assert choose_stop_ids([END_OF_TEXT], [IM_END], fixed=False) == [END_OF_TEXT]
    assert choose_stop_ids([END_OF_TEXT], [IM_END], fixed=True) == [IM_END, END_OF_TEXT]


@given(IDS, IDS)
def test_fixed_stops_are_what_training_ends_with_and_then_the_bases_own(
    own: list[int], ends: list[int]
) -> None:
    fixed = choose_stop_ids(own, ends, fixed=True)
    assert set(fixed) == {*own, *ends}
    assert len(fixed) == len(set(fixed))
    assert fixed[: len(set(ends))] == list(dict.fromkeys(ends))
    assert choose_stop_ids(own, ends, fixed=False) == own[:1]
