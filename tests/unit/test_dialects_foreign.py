"""Calls in formats that no dialect reads are seen, words about them are not taken for calls, and what can be
read in another spelling is."""

from __future__ import annotations

import json
import time

import pytest

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import DIALECTS, Recovered, Toolbox, parse_any, parse_reply
from stages.core.dialects.foreign import find_foreign

SEARCH = Tool(
    "search", "", {"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer"}}}
)
BOX = Toolbox((SEARCH,))
CALL = '{"name": "search", "arguments": {"q": "a"}}'

TOKENS = {
    "DeepSeek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n{}\n```",
    "Kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{}",
    "Harmony (gpt-oss)": "<|channel|>commentary to=functions.search <|constrain|>json<|message|>{}<|call|>",
    "Gemma": "<start_function_call>call:search{q:<escape>a<escape>}<end_function_call>",
    "GLM": "search\n<arg_key>q</arg_key>\n<arg_value>a</arg_value>",
    "MiniMax": '<minimax:tool_call>\n<invoke name="search">\n</invoke>\n</minimax:tool_call>',
    "Cohere": "<|START_ACTION|>[]<|END_ACTION|>",
    "InternLM": "<|action_start|><|plugin|>{}<|action_end|>",
    "Functionary": "<|from|>assistant\n<|recipient|>search\n<|content|>{}",
    "Apertus": '<|tools_prefix|>[{"search": {}}]<|tools_suffix|>',
    "a model unknown here": "<|new_tool_call:begin|>search",
    "Mistral": "[TOOL_CALLS]search",
    "Qwen-Agent (✿FUNCTION✿)": '✿FUNCTION✿: search\n✿ARGS✿: {"q": "a"}',
}
NAMED = {
    "Anthropic (XML)": '<invoke name="search">\n<parameter name="q">a</parameter>\n</invoke>',
    "tags that are nearly <tool_call>": "<TOOL_CALL>search(q='a')</TOOL_CALL>",
    "escaped tags": f"&lt;tool_call&gt;{CALL}&lt;/tool_call&gt;",
    "Harmony (gpt-oss)": 'commentary to=functions.search json{"q": "a"}',
    "ReAct (Action: …)": 'Thought: I look.\nAction: search\nAction Input: {"q": "a"}',
    "Gemma (```tool_code)": "```tool_code\nprint(search(q='a'))\n```",
}
ONLY_NAMED = {
    "XML": '<function>search</function><args>{"q": "a"}</args>',
    "Cline (tags of the name of a tool)": "I look.\n<search>\n<q>a</q>\n</search>",
    "Functionary": '>>>search\n{"q": "a"}',
    "GLM-4 (a name above JSON)": 'search\n{"q": "a"}',
    "ReAct (Action: …)": "Action: search[Paris]",
    "Python without brackets": "search(q='a')",
}


@pytest.mark.parametrize(("family", "text"), TOKENS.items())
def test_a_token_of_another_model_is_a_call_whatever_is_offered(family: str, text: str) -> None:
    for box in (BOX, Toolbox()):
        assert not parse_any(text, box).calls
        seen = find_foreign(f"Words.\n{text}", box)
        assert seen is not None
        assert (seen.family, seen.certain, seen.start > 0) == (family, True, True)


@pytest.mark.parametrize(("family", "text"), [*NAMED.items(), *ONLY_NAMED.items()])
def test_a_mark_with_an_offered_tool_behind_it_is_a_call(family: str, text: str) -> None:
    assert not parse_any(text, BOX).calls
    seen = find_foreign(text, BOX)
    assert seen is not None
    assert (seen.family, seen.certain) == (family, True)


@pytest.mark.parametrize("text", NAMED.values())
def test_a_mark_without_an_offered_tool_is_counted_and_no_more(text: str) -> None:
    seen = find_foreign(text, Toolbox((Tool("other", "", {}),)))
    assert seen is not None
    assert not seen.certain


@pytest.mark.parametrize("text", ONLY_NAMED.values())
def test_what_is_a_mark_by_the_tool_alone_is_none_without_it(text: str) -> None:
    assert find_foreign(text, Toolbox((Tool("other", "", {}),))) is None


@pytest.mark.parametrize("text", [*TOKENS.values(), *(t for f, t in NAMED.items() if "```" not in f)])
def test_what_stands_in_code_is_counted_and_no_more(text: str) -> None:
    quoted = text.replace("```", "'''")
    for shown in (f"It writes\n```\n{quoted}\n```\nas its call.", f"So `{quoted.splitlines()[0]} x` begins."):
        seen = find_foreign(shown, BOX)
        assert seen is None or not seen.certain, shown


@pytest.mark.parametrize(
    "text",
    [
        "Action: take the bus, and search (q) for a seat.",
        "The action to take is to search.",
        "a < b and {x: 1}",
        "<p>\n<b>search</b></p> #include <function>",
        'An answer: {"name": "search", "price": 3}',
        '{"name": "search", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}',
        "<|channel|>final<|message|>Hello (you)",
        "<|recipient|>all\n<|content|>Hello",
        "Use search(q) (a function)",
        "search(q) looks for a text (in all files)",
        "search(q='a') is shorter than other('a')",
        "search(q)",
        "search('a')\nother('b')",
        ">>> search(q='a')",
        "say to=functions",
        "",
    ],
)
def test_prose_is_no_mark(text: str) -> None:
    assert find_foreign(text, BOX) is None


@pytest.mark.parametrize(
    "text",
    ["search(q='a')\n", "  search(q='a', n=2) ", "search(\n    q='(a)',\n)", "search('a')\nsearch('b')"],
)
def test_calls_that_are_the_whole_text_are_seen_over_lines_and_with_blanks_beside_them(text: str) -> None:
    seen = find_foreign(text, BOX)
    assert seen is not None
    assert (seen.family, seen.certain) == ("Python without brackets", True)


@pytest.mark.parametrize(
    "text",
    [
        "It writes\n~~~xml\n{}\n~~~\nas its call.",
        "It writes\n  ~~~~\n{}\n  ~~~~\nas its call.",
        "It writes:\n\n    {}\n\n    and no more\n\nas its call.",
        "It writes:\r\n\r\n\t{}\r\n\r\nas its call.",
    ],
)
@pytest.mark.parametrize("mark", ["<|tool_calls_section_begin|>", "<tool_use> search", '{"tool": "search"}'])
def test_code_is_shown_in_other_fences_and_indented_too(text: str, mark: str) -> None:
    seen = find_foreign(text.format(mark), BOX)
    assert seen is not None
    assert not seen.certain


@pytest.mark.parametrize("text", ["    {}", "I look.\n    {}", "\n\n\t{}\n"])
def test_what_is_indented_with_no_words_above_is_a_call(text: str) -> None:
    seen = find_foreign(text.format("<|tool_calls_section_begin|>functions.search"), BOX)
    assert seen is not None
    assert seen.certain


FLAT, LOGGED = '{"action": "search", "q": "a"}', '{"ts": 1, "function": "search", "args": {"q": "a"}}'
SPOKEN = [
    f"The log has 12:00 INFO {LOGGED} and then an error.",
    f"The log has 12:00 INFO {LOGGED}",
    f"[12:00] INFO {LOGGED}\n[12:01] INFO done",
    f"It answers {FLAT} where it can.",
    f"Such a line, {FLAT}",
    'It was {"tool": "search", "args": {"q": "a"}} that failed.',
    'Its entry {"id": 7, "name": "search", "arguments": {"q": "a"}} is new.',
]
MEANT = [
    FLAT,
    f"I look.\n\n{FLAT}\n\nOne moment.",
    f"[{FLAT}, {FLAT}]",
    json.dumps(json.loads(LOGGED), indent=2),
    f"I look.\n{json.dumps(json.loads(LOGGED), indent=2)}\n",
    'I look: {"tool": "search", "args": {"q": "a"}}',
    'I look: {"calls": [{"tool": "search", "args": {"q": "a"}}]}',
    '{"call": {"id": 7, "name": "search", "arguments": {"q": "a"}}}',
]


@pytest.mark.parametrize(("text", "certain"), [*((t, False) for t in SPOKEN), *((t, True) for t in MEANT)])
def test_json_with_the_name_of_a_tool_is_a_call_where_it_stands_alone(text: str, certain: bool) -> None:
    assert not parse_any(text, BOX).calls
    seen = find_foreign(text, BOX)
    assert seen is not None
    assert (seen.family, seen.certain) == ("JSON with other keys, or among words", certain)


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ("Action: search (the old way)", False),
        ("**Action:** search (q), as before", False),
        ("Action: search(Paris)", True),
        ("Action: search [Paris]", True),
        ("Action: search ('Paris')", True),
        ("Action: search (q='Paris')", True),
        ("Action: search ()", True),
    ],
)
def test_a_remark_in_brackets_behind_an_action_is_no_certain_call(text: str, certain: bool) -> None:
    seen = find_foreign(text, BOX)
    assert seen is not None
    assert (seen.family, seen.certain) == ("ReAct (Action: …)", certain)
    assert find_foreign(text, Toolbox((Tool("other", "", {}),))) is None


def test_a_certain_mark_goes_before_an_uncertain_one() -> None:
    seen = find_foreign("`<tool_use>` is a tag.\nAction: search\nAction Input: x", BOX)
    assert seen is not None
    assert (seen.family, seen.certain) == ("ReAct (Action: …)", True)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<TOOL_CALL>\n{CALL}\n</TOOL_CALL>", ""),
        (f"<tool_call >\n{CALL}\n</tool_call >", ""),
        (f"<tool-call>{CALL}</tool-call>", ""),
        (f"I look.\n<toolcall>\n{CALL}\n</toolcall> So.", "I look. So."),
        (f"<tool_use>{CALL}</tool_use>", ""),
        ('<tool_use>{"tool": "search", "input": {"q": "a"}}</tool_use>', ""),
        ('{"function": "search", "arguments": {"q": "a"}}', ""),
        ('I look.\n```json\n{"tool": "search", "args": {"q": "a"}}\n```', "I look."),
        ('{"tool_name": "search", "parameters": "{\\"q\\": \\"a\\"}"}', ""),
        ('[{"action": "search", "action_input": {"q": "a"}}]\n', ""),
        ('{"tool": "search", "args": {"q": "a"}}<|eot_id|>', "<|eot_id|>"),
        (f'{{"tool_calls": [{CALL}]}}', ""),
        (f'I look.\n```json\n{{"tool_call": {CALL}}}\n```', "I look."),
        ('{"tool_calls": {"tool": "search", "args": {"q": "a"}}}', ""),
    ],
)
def test_other_spellings_are_read_leniently_alone(text: str, content: str) -> None:
    reply = parse_any(text, BOX)
    assert reply.calls == [ToolCall("search", {"q": "a"})]
    assert reply.content.strip().replace("\n", "") == content
    assert {type(problem) for problem in reply.problems} == {Recovered}
    if CALL not in text:
        assert all(not parse_reply(text, dialect, BOX).calls for dialect in DIALECTS)
    if "tool_call" in text and "<" not in text:
        assert not parse_any(text).calls
        assert not parse_any(text, []).calls


@pytest.mark.parametrize(
    "text",
    [
        '{"tool": "other", "args": {}}',
        '{"tool": "search", "args": {}, "why": "x"}',
        '{"tool": "search", "args": [1]}',
        '{"tool": "search", "args": {}, "args": {}}',
        'Such as {"tool": "search", "args": {}} here.',
        '<tool_response>\n{"tool": "search", "args": {}}\n</tool_response>',
        '{"tool": "search", "args": {"q": ',
    ],
)
def test_other_keys_are_no_call_where_anything_is_unclear(text: str) -> None:
    assert not parse_any(text, BOX).calls
    assert not parse_any('{"tool": "search", "args": {}}').calls


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "<tool_use>",
            "<invoke>",
            "`\n<tool_use>",
            "<",
            "`",
            "Action: x\n",
            "&lt;tool_call&gt;",
            "<|tool_call",
        ),
        *(
            '<TOOL_CALL>{"name"',
            '\n{"tool": "g", "args": {}}',
            '\n[{"tool":"',
            '\n{"tool_calls": [',
            '\n{"tool_calls": [{"name": "g", "arguments": {}}]}',
            '{"name":"search","x":',
            "\nf\n{",
            '\n\n    {"action": "search"}',
            '{"tool": "search", "args": {}} ',
            '{"tool": "search", "args": {"a": ',
            "a\n\n\t",
            "\n~~~\n<tool_use>",
        ),
    ],
)
def test_a_text_made_to_be_slow_takes_linear_time(unit: str) -> None:
    text = unit * (100_000 // len(unit)) + ")"
    start = time.process_time()
    find_foreign(text, BOX)
    parse_any(text, BOX)
    assert time.process_time() - start < 1
