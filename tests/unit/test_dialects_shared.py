"""Real cases: those of independent parsers' own test suites, and a real training set.

They are not part of this project. FAIR_RETEST_SHARED names the folder that holds them, else `shared`
beside the project's folder does; without it these tests are skipped. Its data/README.md says what a
case asserts.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stages.core.chat import ToolCall
from stages.core.dialects import DIALECTS, Reply, parse_any, parse_reply, render_calls
from stages.core.tools import EXECUTE_CODE

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FAIR_RETEST_SHARED") or ROOT.parent / "shared")
CASES = SHARED / "data" / "parser_cases" / "cases.jsonl"
PUNIE = SHARED / "data" / "punie" / "phase24_merged"
TURN = re.compile(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", re.DOTALL)

needs_cases = pytest.mark.skipif(not CASES.is_file(), reason="the shared parser cases are not here")
CONFIGS = SHARED / "data" / "configs"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="the shared tokenizer configs are not here")
needs_punie = pytest.mark.skipif(not PUNIE.is_dir(), reason="the shared training set is not here")


def load_cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def dialect_of(case: dict[str, Any]) -> str:
    if case["dialect"] in ("xml", "pythonic"):
        return {"xml": "qwen3_coder", "pythonic": "pythonic"}[case["dialect"]]
    if case["dialect"] == "python":
        return "bare_python" if case["wrapper"] == "tool_call" else "pythonic"
    return "hermes" if case["wrapper"] in ("tool_call", "close-only") else "fenced_json"


def is_undisputed(case: dict[str, Any]) -> bool:
    disputed = case["malformed"] or case["themes"] or case.get("conflicts_with")
    return case["assert_calls"] == "exact" and not disputed


def agrees(case: dict[str, Any], reply: Reply) -> bool:
    return calls_agree(case, [(c.name, c.arguments) for c in reply.calls]) and content_agrees(
        case, reply.content
    )


def calls_agree(case: dict[str, Any], got: list[tuple[str, dict[str, Any]]]) -> bool:
    wanted = [(c["name"], c["arguments"]) for c in case["expected_calls"] or ()]
    names = [name for name, _ in got] == [name for name, _ in wanted]
    match case["assert_calls"]:
        case "exact":
            return got == wanted
        case "names":
            return names
        case "subset":
            pairs = zip(got, wanted, strict=names)
            return names and all(g[1].get(k) == v for g, w in pairs for k, v in w[1].items())
        case "count":
            return len(got) == len(wanted)
        case "contains":
            return all(call in got for call in wanted)
        case "last":
            return got[-1:] == wanted[-1:]
        case "none" | "error":
            return True
    raise AssertionError(f"unknown assertion {case['assert_calls']}")


def content_agrees(case: dict[str, Any], content: str) -> bool:
    if not case["content_asserted"]:
        return True
    wanted = case["expected_content"] or ""
    match case["content_match"]:
        case "exact":
            return content == wanted
        case "strip":
            return content.strip() == wanted.strip()
        case "contains":
            return wanted in content
        case "no-markup":
            return not any(tag in content for tag in ("<tool_call>", "<function=", "<parameter="))
    raise AssertionError(f"unknown match {case['content_match']}")


@needs_cases
def test_the_undisputed_cases_all_agree() -> None:
    core = [case for case in load_cases() if is_undisputed(case)]
    assert len(core) >= 190
    for case in core:
        assert agrees(case, parse_reply(case["output"], dialect_of(case), case["tools"])), case["id"]
        assert agrees(case, parse_any(case["output"], case["tools"])), case["id"]


@needs_cases
def test_every_disagreement_has_a_documented_theme() -> None:
    table = (ROOT / "docs" / "DIALECTS.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| (T\d\d) ", table, re.MULTILINE))
    assert len(documented) == 20
    apart = [c for c in load_cases() if not agrees(c, parse_any(c["output"], c["tools"]))]
    assert len(apart) < 45
    for case in apart:
        assert case["malformed"] or any(theme[:3] in documented for theme in case["themes"]), case["id"]


@needs_cases
def test_no_malformed_case_vanishes() -> None:
    for case in load_cases():
        reply = parse_any(case["output"], case["tools"])
        if case["malformed"] and not reply.calls:
            assert reply.content == case["output"], case["id"]
            assert reply.problems, case["id"]


@needs_punie
@pytest.mark.parametrize(("split", "xml", "python"), [("train", 420, 62), ("valid", 51, 9), ("test", 58, 9)])
def test_a_real_training_set_is_read_to_the_byte(split: str, xml: int, python: int) -> None:
    found = dict.fromkeys(DIALECTS, 0)
    for line in (PUNIE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        for turn in TURN.findall(json.loads(line)["text"]):
            reply = parse_any(turn)
            if reply.dialect is not None:
                found[reply.dialect] += len(reply.calls)
            if reply.dialect in ("qwen3_coder", "bare_python"):
                check_code(turn, reply)
            elif not reply.calls:
                assert reply == Reply(turn, [], None, [])
                assert "<tool_call>" not in turn
    assert (found["qwen3_coder"], found["bare_python"], found["hermes"], found["pythonic"]) == (
        xml,
        python,
        0,
        0,
    )


def check_code(turn: str, reply: Reply) -> None:
    """The code is what stands between the tags, and each dialect that can say it keeps it so."""
    assert len(reply.calls) == 1
    assert reply.problems == []
    tag = "<parameter=code>" if reply.dialect == "qwen3_coder" else "<tool_call>"
    close = "</parameter>" if reply.dialect == "qwen3_coder" else "</tool_call>"
    between = turn.split(tag, 1)[1].rsplit(close, 1)[0]
    code = reply.calls[0].arguments["code"]
    assert between in (code, f"\n{code}\n", f"\n{code}", f"{code}\n")
    for dialect in DIALECTS:
        text = render_calls(reply.calls, dialect, [EXECUTE_CODE])
        assert parse_reply(text, dialect, [EXECUTE_CODE]).calls == reply.calls
        assert parse_any(text, [EXECUTE_CODE]).calls == reply.calls


@needs_configs
@pytest.mark.parametrize(
    ("model", "dialect"),
    [
        ("Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen3-30B-A3B", "hermes"),
        ("Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder"),
    ],
)
@pytest.mark.parametrize("content", ["", "I look at it: <b>é</b>."])
def test_calls_are_written_and_read_as_the_target_template_writes_them(
    model: str, dialect: str, content: str
) -> None:
    jinja2 = pytest.importorskip("jinja2.sandbox", reason="jinja2 renders the chat templates")
    config = json.loads((CONFIGS / model / "tokenizer_config.json").read_text(encoding="utf-8"))
    environment = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    calls = [ToolCall("execute_code", {"code": 'print("<é>")\n\n'}), ToolCall("f", {"a": "x"}), ToolCall("g")]
    turn = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": c.name, "arguments": c.arguments}} for c in calls],
    }
    user = {"role": "user", "content": "Hi"}
    text = environment.from_string(config["chat_template"]).render(messages=[user, turn])
    written = text.split("<|im_start|>assistant\n", 1)[1].split("<|im_end|>", 1)[0]
    assert render_calls(calls, dialect) in written
    for reply in (parse_reply(written, dialect), parse_any(written)):
        assert reply == Reply(content, calls, dialect, [])
