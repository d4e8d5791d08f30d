"""ChatML text: its turns, and that no text is lost without a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ROLES
from stages.core.chatml import Turn, join_chatml, split_chatml

PIECES = st.sampled_from(["\n", " ", "<|im_", "start|>", "end|>", "<tool_call>", "a", "é", "|"])
TEXTS = (
    st.lists(PIECES, max_size=8)
    .map("".join)
    .filter(lambda t: "<|im_start|>" not in t and "<|im_end|>" not in t)
)
TURNS = st.lists(st.builds(Turn, st.sampled_from(ROLES), TEXTS), min_size=1, max_size=5)


@given(TURNS)
def test_turns_are_read_back(turns: list[Turn]) -> None:
    assert split_chatml(join_chatml(turns)) == turns
    assert split_chatml(join_chatml(turns) + "\n") == turns


@given(
    TURNS, st.integers(0), st.sampled_from(["x", "\n", "<|im_end|>", "<|im_start|>", "<|im_start|>user\n"])
)
def test_whatever_is_added_is_kept_or_refused(turns: list[Turn], place: int, added: str) -> None:
    text = join_chatml(turns)
    at = place % (len(text) + 1)
    changed = text[:at] + added + text[at:]
    try:
        read = split_chatml(changed)
    except ValueError:
        return
    assert join_chatml(read).replace("\n", "") == changed.replace("\n", "")


@given(TURNS)
def test_other_line_breaks_give_the_same_turns(turns: list[Turn]) -> None:
    crlf = join_chatml(turns).replace("\n", "\r\n")
    assert split_chatml(crlf) == [Turn(t.role, t.text.replace("\n", "\r\n")) for t in turns]
    assert split_chatml(join_chatml(turns).replace("<|im_end|>\n", "<|im_end|>")) == turns
    assert split_chatml(join_chatml(turns) + "<|endoftext|>\n") == turns


def test_a_known_text() -> None:
    text = "<|im_start|>user\nWhat?\n\nNow!<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    assert split_chatml(text) == [Turn("user", "What?\n\nNow!"), Turn("assistant", "")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no turns"),
        ("hello", "not a ChatML turn at character 0: 'hello'"),
        ("<|im_start|>user\nhi", "not a ChatML turn at character 0"),
        ("<|im_start|>user\nhi<|im_end|>\nbye", "not a ChatML turn at character 30: 'bye'"),
        ("<|im_start|>robot\nhi<|im_end|>", "unknown role 'robot'"),
        ("<|im_start|>user<|im_end|>", "not a ChatML turn at character 0"),
        (
            "<|im_start|>user\nhi<|im_start|>assistant\nyo<|im_end|>",
            "starts at character 0 has no <|im_end|>",
        ),
        (" <|im_start|>user\nhi<|im_end|>", "not a ChatML turn at character 0"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        split_chatml(text)
    assert reason in str(error.value)
