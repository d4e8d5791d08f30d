"""Random and mutated texts for the parsers: `python -m tests.fuzz 200000` reads so many and times them.

Texts are made of the dialects' own pieces, of good calls that are cut, doubled, mixed and dirtied, and
of noise. The same seed makes the same texts.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import DIALECTS, parse_any, parse_reply, render_calls

PIECES = [
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "</parameter>",
    "<function=", '<function name="f">', "<parameter=", "<think>", "</think>", "<tools>", "</tools>", "```",
    "```json\n", "```python\n", "<|python_tag|>", "<|python_start|>", "<|tool_call_start|>",
    "<|tool_call_end|>", "<function_calls>", "[TOOL_CALLS]", "[ARGS]", "<functioncall>", "<|tool_call|>",
    "<json>", "<response>", "<tool>", "\n", "\r\n", " ", "\t", "{", "}", "[", "]", "(", ")", '"', "'",
    '"""', "'''", "\\", "#", ",", ":", "=", ";", '"name": ', '"arguments": ', '"parameters": ', "'name': ",
    '"f"', "f", "a", "null", "None", "true", "True", "-1.5", "1e999", "NaN", "9" * 400,
    '{"name": "f", "arguments": {"a": 1}}', "[f(a=1)]", "f(a='x')", "x = f()", "print(1)", "\\u", "\\ud83e",
    "\u0000", "\ud800", "\u2028", "\ufeff", "\U0001f980", "\u00e9",
]  # fmt: skip
TOOLS: list[Any] = [
    Tool("f", "", {"properties": {"a": {"anyOf": [{"type": "object"}, {"type": ["integer", "null"]}]}}}),
    {"function": {"name": "execute_code", "parameters": {"properties": {"code": {"type": "string"}}}}},
    {"type": "web_search"},
    {"function": {"name": "g", "parameters": {"properties": []}}},
]
CALLS = [
    ToolCall("f", {"a": 1}),
    ToolCall("f", {"a": {"b": ["x", None, {"c": "</tool_call>"}]}}),
    ToolCall("execute_code", {"code": "for x in y:\n    print(f'{x}')  # done\n"}),
    ToolCall("g", {}),
]
LINES = [
    "Look at {0}.",
    "x = {0}",
    "",
    "  ",
    "```",
    "```",
    "```python",
    "```json",
    "```xml",
    "`{0}`",
    "```{0}```",
]


def make_texts(seed: int, count: int) -> Iterator[str]:
    """`count` texts, the same for the same seed."""
    chance = random.Random(seed)
    good = _render_good()
    for _ in range(count):
        kind = chance.random()
        if kind < 0.35:
            yield "".join(chance.choice(PIECES) for _ in range(chance.randrange(30)))
        elif kind < 0.9:
            yield _mutate(chance, "".join(chance.choice(good) for _ in range(chance.randrange(1, 4))), good)
        else:
            yield "".join(chr(_any_code(chance)) for _ in range(chance.randrange(60)))


def make_told(seed: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """`count` texts of well written calls between lines of prose and marks of fences, each with its prose."""
    chance = random.Random(seed)
    blocks = [render_calls(CALLS[:1], dialect, TOOLS) for dialect in ("hermes", "qwen3_coder")]
    for _ in range(count):
        lines = [chance.choice(LINES).format(f"w{number}") for number in range(chance.randrange(1, 12))]
        told = [line for line in lines if re.search(r"w\d", line)]
        for _ in range(chance.randrange(1, 4)):
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(blocks))
        yield "\n".join(lines), told


def _render_good() -> list[str]:
    texts = ["I look.\n\n", "Done.", "<think>\nHm.\n</think>\n\n"]
    for dialect in DIALECTS:
        for call in CALLS:
            try:
                texts.append(render_calls([call, call], dialect, TOOLS))
            except ValueError:  # not every dialect can say every call
                continue
    return texts


def _mutate(chance: random.Random, text: str, good: list[str]) -> str:
    for _ in range(chance.randrange(5)):
        at = chance.randrange(len(text) + 1)
        to = min(len(text), at + chance.randrange(12))
        text = chance.choice(
            (
                text[:at],  # cut off
                text[at:],  # begun late
                text[:at] + text[to:],  # a hole
                text[:at] + chance.choice(PIECES) + text[at:],
                text[:at] + chance.choice(good) + text[to:],
                text[:to] + text[at:],  # doubled
                text.replace("\n", "\r\n")
                if chance.random() < 0.3
                else text[:at] + chr(_any_code(chance)) + text[to:],
            )
        )
    return text


def _any_code(chance: random.Random) -> int:
    return chance.choice((chance.randrange(128), chance.randrange(0x3000), chance.randrange(0x110000)))


def read_all(text: str) -> int:
    """Read a text in every way and check what must hold; the number of calls that `parse_any` found."""
    for tools in (None, TOOLS):
        replies = [parse_any(text, tools), *(parse_reply(text, dialect, tools) for dialect in DIALECTS)]
        for reply in replies:
            assert (reply.dialect in DIALECTS) if reply.calls else (reply.dialect is None)
            assert all(
                isinstance(call.name, str) and isinstance(call.arguments, dict) for call in reply.calls
            )
            if not reply.calls and "think>" not in text:
                assert reply.content == text
                assert reply.problems or not re.search("(?<!`)<tool_call>|<tool_call>(?!`)", text)
    return len(replies[0].calls)


def require_told(text: str, told: list[str]) -> None:
    """Check that a text's calls are read and that its prose comes back, line by line."""
    for tools in (None, TOOLS):
        reply = parse_any(text, tools)
        assert reply.calls, text
        assert [line for line in reply.content.split("\n") if re.search(r"w\d", line)] == told, text


def main(count: int) -> None:
    """Read so many texts, and print what came of it."""
    started = time.perf_counter()
    characters = calls = 0
    slowest = (0.0, "")
    for text in make_texts(2026, count):
        began = time.perf_counter()
        calls += read_all(text)
        slowest = max(slowest, (time.perf_counter() - began, text))
        characters += len(text)
    for text, told in make_told(2026, count // 10):
        require_told(text, told)
    seconds = time.perf_counter() - started
    print(f"{count} texts, {characters} characters, {calls} calls, no exception, {seconds:.0f} s")
    print(f"slowest {slowest[0] * 1000:.1f} ms for {len(slowest[1])} characters: {slowest[1][:100]!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
