"""Tools inferred from the calls of a whole data set, and their review."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data import work
from stages.convert_data.converted import Converted
from stages.convert_data.counts import COMMON_TOOLS, OWN_TOOLS
from stages.convert_data.inference import (
    Census,
    infer_tools,
    load_census,
    save_census,
)
from stages.convert_data.offers import ConvertContext, ToolsUnclear
from stages.convert_data.request import Request
from stages.convert_data.review import list_doubts, write_review
from stages.convert_data.rows import convert_row
from stages.convert_data.stage import convert_data
from stages.convert_data.toolset import apply_census, write_tool_files, write_tools
from stages.core.chat import Tool, ToolCall
from stages.core.cli import Options
from stages.core.definitions import read_tools_file
from stages.core.dialects import render_calls
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.tools import EXECUTE_CODE
from tests.tool_rows import CALL, PLAIN, SEARCH, SETUP, TOOLS, called, chat, convert


def rows_of(calls: list[ToolCall], dialect: str = "hermes") -> list[dict[str, Any]]:
    tools = [Tool(c.name, "", {"properties": {k: _schema(v) for k, v in c.arguments.items()}}) for c in calls]
    return [chat(render_calls([call], dialect, [tool])) for call, tool in zip(calls, tools, strict=True)]


def _schema(value: Any) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return {"type": names.get(type(value), "null")}


SEEN = [
    ToolCall("search", {"query": "tea", "limit": 5, "where": {"city": "Oslo", "near": True}}),
    ToolCall("search", {"query": "milk", "limit": 2.5, "where": {"city": "Rome"}, "tags": ["a", "b"]}),
    ToolCall("search", {"query": "rice", "limit": None, "where": {"city": "Bonn"}, "tags": []}),
    ToolCall("get_time", {}),
]


def test_tools_are_inferred_with_types_and_what_is_required() -> None:
    census = infer_tools(rows_of(SEEN))
    search, clock = census.tools()
    assert search.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": ["number", "null"]},
            "where": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "near": {"type": "boolean"}},
                "required": ["city"],
            },
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["query", "limit", "where"],
    }
    assert clock == Tool("get_time", "", {"type": "object", "properties": {}})
    context = apply_census(PLAIN, census)
    row = convert(rows_of(SEEN)[0], context).row
    assert row["tools"] == [search.to_json(), clock.to_json()]
    assert row["messages"][0]["content"] == SETUP.system


def test_untyped_xml_is_text_unless_another_dialect_says_more() -> None:
    census = infer_tools(rows_of([ToolCall("f", {"n": 1, "zip": "02134"})] * 2, "qwen3_coder"))
    assert census.tools()[0].parameters["properties"] == {"n": {"type": "string"}, "zip": {"type": "string"}}
    assert census.untyped() == {"f.n", "f.zip"}
    (doubt,) = [d for d in list_doubts(census) if "f.n" in d]
    assert "always looks like integer" in doubt
    census.merge(infer_tools(rows_of([ToolCall("f", {"n": 3})])))
    assert census.untyped() == {"f.zip"}
    context = apply_census(PLAIN, census)
    converted = convert(rows_of([ToolCall("f", {"n": 1, "zip": "02134"})], "qwen3_coder")[0], context)
    assert called(converted)[0].arguments == {"n": 1, "zip": "02134"}
    assert converted.kind.untyped == ("f.zip",)


@given(
    st.lists(
        st.builds(
            ToolCall,
            st.sampled_from(["f", "g"]),
            st.dictionaries(st.sampled_from("abc"), st.recursive(
                st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.text(max_size=3),
                lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("xy"), v, max_size=2),
                max_leaves=4,
            )),
        ),
        max_size=12,
    ),
    st.integers(0, 12),
)  # fmt: skip
def test_a_census_does_not_depend_on_the_shards(calls: list[ToolCall], cut: int) -> None:
    rows = rows_of(calls)
    whole, parts = infer_tools(rows), Census()
    for part in (rows[:cut], rows[cut:]):
        parts.merge(pickle.loads(pickle.dumps(infer_tools(part))))
    assert parts.tools() == whole.tools()
    assert (parts.rows, parts.calling, parts.untyped()) == (whole.rows, whole.calling, whole.untyped())
    assert {n: c.count for n, c in parts.calls.items()} == {n: c.count for n, c in whole.calls.items()}


def test_a_census_is_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    census = infer_tools([*rows_of(SEEN), *rows_of(SEEN[:1], "qwen3_coder"), {**chat("So."), "tools": TOOLS}])
    save_census(census, tmp_path / "census.json")
    assert load_census(tmp_path / "census.json") == census
    assert load_census(tmp_path / "none.json") is None


def test_the_census_tells_the_kinds_of_data_apart() -> None:
    code = chat(render_calls([ToolCall("execute_code", {"code": "print(1)"})], "bare_python"))
    direct = chat(render_calls([ToolCall("typecheck", {"path": "."})], "fenced_json"))
    own = {**chat("So."), "tools": TOOLS}
    foreign = chat(render_calls([CALL], "hermes"))
    for rows, names, inferred in (
        ([], ["execute_code"], False),
        ([chat("So.")], ["execute_code"], False),
        ([code, direct], ["execute_code"], False),
        ([own, chat("So.")], [], False),
        ([own, code], ["execute_code"], False),
        ([own, foreign], ["search"], True),
        ([code, foreign, foreign, {"broken": 1}], ["search", "execute_code"], True),
    ):
        census = infer_tools(rows)
        assert ([tool.name for tool in census.tools()], census.inferred) == (names, inferred), rows
    assert infer_tools([code, foreign]).tools()[0] == EXECUTE_CODE


def test_a_stray_call_does_not_change_what_the_data_are() -> None:
    code = chat(render_calls([ToolCall("execute_code", {"code": "print(1)"})], "bare_python"))
    stray = chat(render_calls([CALL], "hermes"))
    census = infer_tools([*[code] * 98, stray, stray])
    context = apply_census(PLAIN, census)
    assert (context.tools, census.inferred) == ((EXECUTE_CODE,), False)
    converted = convert(stray, context)
    assert (called(converted), converted.kind.undefined) == ([CALL], ("search",))
    assert infer_tools([*[code] * 96, stray, stray]).inferred


def test_the_review_says_on_what_the_tools_rest(tmp_path: Path) -> None:
    calls = [*SEEN, ToolCall("Search", {"query": "x"}), ToolCall("get_time", {"zone": None})]
    census = infer_tools(rows_of(calls) + rows_of([ToolCall("get_time", {"n|m": "`a`"})], "fenced_json"))
    write_tools(census.tools(), tmp_path / "tools.json")
    assert read_tools_file(tmp_path / "tools.json") == census.tools()
    write_review(census, tmp_path / "review.md")
    text = (tmp_path / "review.md").read_text("utf-8")
    assert "7 calls of 3 tools, in 7 of 7 rows" in text
    assert "| limit | 3 of 3 | integer 1, number 1, null 1 | `5`, `2.5`, `null` |" in text
    assert "- `search` and `Search` differ only in spelling" in text
    assert "- `Search` is called once" in text
    assert "- `get_time.zone` is always null" in text
    assert "| n\\|m | 1 of 3 |" in text
    mixed = infer_tools(rows_of([ToolCall("f", {"a": 1}), ToolCall("f", {"a": "1"})]))
    assert list_doubts(mixed) == ["`f.a` has values of several types (integer 1, string 1)"]


def test_an_object_with_ever_other_keys_is_a_map() -> None:
    calls = [ToolCall("f", {"counts": {f"word{i}": i, f"term{i}": i}}) for i in range(30)]
    census = infer_tools(rows_of(calls))
    assert census.tools()[0].parameters["properties"] == {"counts": {"type": "object"}}
    assert "a map rather than a record" in list_doubts(census)[0]


def test_data_without_definitions_are_converted_with_inferred_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole stage: a row far down the file contradicts Code Mode, and all is begun anew."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    code = chat(render_calls([ToolCall("execute_code", {"code": "print(1)"})], "bare_python"))
    data = tmp_path / "data"
    data.mkdir()
    for name, rows in (("train", [code, {"bad": 1}, chat("So."), *rows_of(SEEN)]), ("valid", [chat("So.")])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = convert_data(Options(load_preset("smol"), FAIR, data=data, out=tmp_path / "out"))
    assert outcome.facts["train"] == {"rows": 7, "converted": 6, "rejected": 1}
    tools = json.loads((tmp_path / "out" / "tools.json").read_bytes())
    assert [tool["function"]["name"] for tool in tools] == ["search", "execute_code", "get_time"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert all(row["tools"] == tools for row in rows)
    assert all(row["messages"][0]["content"] == SETUP.system for row in rows)
    assert (tmp_path / "out" / "rejected.jsonl").read_text().count("\n") == 1
    assert "Inferred from the calls, see tools.json" in (tmp_path / "out" / "card.md").read_text()
    assert "`get_time` is called once" in (tmp_path / "out" / "tools_review.md").read_text()


@pytest.mark.parametrize(
    ("more", "passes", "tools"),
    [
        ([], 1, "Every row has its own."),
        ([chat("So.")], 2, "2 rows with tools of their own; the others: none."),
    ],
)
def test_rows_with_tools_of_their_own_are_read_once(
    more: list[Any], passes: int, tools: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where other rows have none does the whole data set decide what these are offered."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    own, read = {**chat(render_calls([CALL], "hermes")), "tools": TOOLS}, []

    def convert_counted(*given: Any, **more: Any) -> Converted:
        read.append(given)
        return convert_row(*given, **more)

    monkeypatch.setattr(work, "convert_row", convert_counted)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (own, *more)))
    (tmp_path / "valid.jsonl").write_text(json.dumps(own) + "\n")
    outcome = convert_data(Options(load_preset("smol"), FAIR, data=tmp_path, out=tmp_path / "out"))
    assert outcome.facts["train"] == {"rows": 1 + len(more), "converted": 1 + len(more), "rejected": 0}
    assert len(read) == passes * (1 + len(more)) + 1
    assert tools in (tmp_path / "out" / "card.md").read_text()
    first, *others = [json.loads(x) for x in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert first["tools"] == TOOLS
    assert all(row["tools"] == [] for row in others)


def test_the_tool_files_say_where_the_tools_come_from(tmp_path: Path) -> None:
    given = ConvertContext(SETUP, FAIR, (SEARCH,), given=True)
    assert write_tool_files(given, None, {}, tmp_path) == "Given for all rows, see tools.json: search."
    assert [path.name for path in tmp_path.iterdir()] == ["tools.json"]
    (tmp_path / "tools.json").unlink()
    assert write_tool_files(PLAIN, None, {COMMON_TOOLS: 1}, tmp_path) == "Code Mode's: execute_code."
    assert write_tool_files(PLAIN, None, {OWN_TOOLS: 2}, tmp_path) == "Every row has its own."
    own, rows = infer_tools([{**chat("So."), "tools": TOOLS}]), {OWN_TOOLS: 1, COMMON_TOOLS: 3}
    line = write_tool_files(apply_census(PLAIN, own), own, rows, tmp_path)
    assert line == "1 row with tools of their own; the others: none."
    assert list(tmp_path.iterdir()) == []
    census = infer_tools(rows_of(SEEN))
    line = write_tool_files(apply_census(PLAIN, census), census, {}, tmp_path)
    assert line == "Inferred from the calls, see tools.json and tools_review.md: search, get_time."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tools.json", "tools_review.md"]


def test_another_agents_function_of_the_same_name_is_not_code_modes() -> None:
    other = ToolCall("read_file", {"file_path": "a.py"})
    rows = [
        chat(render_calls([other], "hermes")),
        chat(render_calls([ToolCall("glob", {"pattern": "*"})], "hermes")),
    ]
    census = infer_tools(rows)
    assert not census.is_code_mode
    assert [tool.name for tool in census.tools()] == ["glob", "read_file"]
    for fixes in (FAIR, ("json",), ("tools",)):
        with pytest.raises(ToolsUnclear, match="read_file is called"):
            convert_row(rows[0], ConvertContext(SETUP, fixes))
    own = [chat(render_calls([ToolCall("read_file", {"path": "a"})], "hermes"))] * 99
    assert infer_tools([*own, rows[0]]).is_code_mode, "a stray among many is one"
    assert not infer_tools([*own, *rows * 2]).is_code_mode
    several = ToolCall("read_file", {"file_path": "a.py", "offset": 1, "limit": 9})
    assert infer_tools([*own, chat(render_calls([several], "hermes"))]).is_code_mode, "one call is one stray"


# Whose calls look like Code Mode's


def structured(name: str, system: str = "You are ShellBot.", **arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    turns = [("system", system), ("user", f"Do {name} {arguments}")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return {"messages": messages}


READ = structured("read_file", path="/etc/0")
OWN_READ = READ | {
    "tools": [{"name": "read_file", "parameters": {"properties": {"path": {"type": "string"}}}}]
}


def run(rows: list[dict[str, Any]], folder: Path, **request: Any) -> tuple[list[dict[str, Any]], str]:
    """The train rows of a conversion, and its last lines."""
    data = folder / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(load_preset("smol"), FAIR, data=data, out=folder / "out")
    outcome = convert_data(options, Request(valid_share=0, **request))
    lines = (folder / "out" / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], "\n".join(outcome.lines)


@pytest.fixture(autouse=True)
def _artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))


def test_what_is_rewritten_as_code_mode_is_said(tmp_path: Path) -> None:
    rows, said = run([READ, structured("run_command", command="ls")], tmp_path)
    assert [row["tools"] for row in rows] == [[EXECUTE_CODE.to_json()]] * 2
    assert (
        "taken for Code Mode's: 2 direct calls written as Code Mode's code, 2 system texts replaced by Code "
        "Mode's; where that is wrong, --tools FILE gives the tools, [] in it none"
    ) in said


def test_a_tool_that_a_row_defines_is_no_function_of_code_mode_in_the_others(tmp_path: Path) -> None:
    rows, said = run([READ, OWN_READ, structured("run_command", command="ls")], tmp_path)
    named = [{tool["function"]["name"] for tool in row["tools"]} for row in rows]
    assert named == [{"read_file", "run_command"}, {"read_file"}, {"read_file", "run_command"}]
    calls = [row["messages"][-1]["tool_calls"][0]["function"]["name"] for row in rows]
    assert calls == ["read_file", "read_file", "run_command"]
    assert {row["messages"][0]["content"] for row in rows} == {"You are ShellBot."}
    assert "Code Mode" not in said


def test_a_definition_speaks_against_code_mode_in_whichever_shard_it_is(tmp_path: Path) -> None:
    whole = Census()
    for part in (infer_tools([READ]), infer_tools([OWN_READ])):
        save_census(part, tmp_path / "census.json")
        loaded = load_census(tmp_path / "census.json")
        assert loaded == part
        assert loaded is not None
        whole.merge(loaded)
    assert not whole.is_code_mode
    assert whole == infer_tools([READ, OWN_READ])
    assert infer_tools([READ, {**chat("So."), "tools": TOOLS}]).is_code_mode, "another tool is no objection"


def test_rows_without_a_call_that_are_offered_code_mode_are_named(tmp_path: Path) -> None:
    rows, said = run([chat("So."), chat("Yes.")], tmp_path)
    assert rows[0]["tools"] == [EXECUTE_CODE.to_json()]
    assert "taken for Code Mode's: 2 rows without a call offered execute_code; where" in said


def test_an_empty_list_of_tools_means_none(tmp_path: Path) -> None:
    """A row's own tools stay: nobody asked to take them away."""
    (tmp_path / "tools.json").write_text(" [ ]\n")
    rows, said = run([chat("So."), READ, OWN_READ], tmp_path, tools=tmp_path / "tools.json")
    assert [len(row["tools"]) for row in rows] == [0, 0, 1]
    assert rows[1]["messages"][0]["content"] == "You are ShellBot."
    assert rows[1]["messages"][-1]["tool_calls"][0]["function"]["name"] == "read_file"
    assert "Code Mode" not in said
    assert "1 call of tools that no definition names: read_file" in said


# What rejected rows call


def answered(raw: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {"messages": [*raw["messages"], {"role": "tool", "tool_call_id": call_id, "content": "r"}]}


@pytest.mark.parametrize(
    "bad",
    [
        answered(structured("zeta", a="1"), "zzz"),
        structured("zeta", a="\ud800"),
        {"messages": [*structured("zeta", a="1")["messages"], {"role": "mystery", "content": ""}]},
        chat('<tool_call>\n{"name": "zeta", "arguments": {"a": 1}\n</tool_call>\n<tool_call>\n{"name": '),
    ],
    ids=["result of another id", "half of a surrogate pair", "unknown role", "broken call"],
)
def test_no_tool_is_inferred_from_a_row_that_is_rejected(bad: dict[str, Any], tmp_path: Path) -> None:
    good = answered(structured("search", query="tea"), "1")
    rows, said = run([good, bad, chat("So.")], tmp_path)
    assert "3 rows = 2 converted + 1 rejected" in said
    assert [[tool["function"]["name"] for tool in row["tools"]] for row in rows] == [["search"]] * 2
    review = (tmp_path / "out" / "tools_review.md").read_text()
    assert "1 call of 1 tool, in 1 of 2 rows, come" in review
    assert "Left out: 1 row that the conversion rejects." in review
    assert "zeta" not in review


def test_a_type_is_not_inferred_from_a_row_that_is_rejected(tmp_path: Path) -> None:
    nan = json.loads(json.dumps(structured("f")).replace('"{}"', '"{\\"a\\": NaN}"'))
    rows, _ = run([chat(render_calls([ToolCall("f", {"a": 1})], "hermes")), nan], tmp_path)
    (tool,) = rows[0]["tools"]
    assert tool["function"]["parameters"]["properties"] == {"a": {"type": "integer"}}


@pytest.mark.parametrize("fixes", [("tools",), ("json",), FLAWED])
def test_every_arm_rejects_what_the_fair_one_rejects(fixes: FixSet) -> None:
    """A text that is kept as it is has no results to go with calls, and yet the rows are to be the same."""
    bad = answered(structured("zeta", a="1"), "zzz")
    with pytest.raises(ValueError, match="answers 'zzz'"):
        convert_row(bad, ConvertContext(SETUP, fixes).try_rows())
