"""JSON of which nothing is lost: a key that an object has twice is a reason."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data.lines import load_once

KEYS = st.text(max_size=3) | st.sampled_from(["text", 'a"', "a\\", '":', "\\u0022"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=9,
)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"text": "a", "text": "b"}', "text"),
        ('{"text":"a","text":"a"}', "text"),
        ('  {"text" : "", "text" : "a"}', "text"),
        ('{"a": 1, "a": 1}', "a"),
        ('{"a": 1, "\\u0061": "\\u0022"}', "a"),
        ('{"a": 1, "a": "\\u0022\\u0022"}', "a"),
        ('{"messages": [{"role": "user", "content": "x", "content": "y"}]}', "content"),
        ('{"messages": [{"tool_calls": [{"arguments": {"query": "x", "query": "y"}}]}]}', "query"),
        ('{"a": 123456789012345678901234567890, "b": {"c": [], "c": {}}}', "c"),
        ('{"a":"\\\\","a":"\\\\"}', "a"),
    ],
)
def test_a_key_twice_is_a_reason(text: str, key: str) -> None:
    for each in (text, text.encode()):
        with pytest.raises(ValueError, match="an object with the key") as error:
            load_once(each)
        assert f"the key {key!r} twice" in str(error.value)


@given(value=VALUES, data=st.data())
def test_any_other_value_is_read_to_the_letter(value: Any, data: st.DataObject) -> None:
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()), separators=separators)
    for escaped in (text, *([] if "\\\\" in text else [text.replace('\\"', "\\u0022")])):
        try:
            expected = json.loads(escaped)
            read = load_once(escaped)
        except UnicodeEncodeError:  # half of a surrogate pair is in no file
            return
        except orjson.JSONDecodeError:
            assert "\\ud" in escaped
            return
        assert repr(read) == repr(expected)


@given(value=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), again=VALUES, data=st.data())
def test_any_key_twice_is_found(value: dict[str, Any], again: Any, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False)
    key = data.draw(st.sampled_from(sorted(value)))
    doubled = f"{text[:-1]}, {json.dumps(key, ensure_ascii=False)}: {json.dumps(again, ensure_ascii=False)}}}"
    wrapped = data.draw(st.sampled_from([doubled, f'{{"messages": [{doubled}]}}']))
    with pytest.raises(ValueError, match="twice"):
        load_once(wrapped)
