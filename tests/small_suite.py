"""A suite of three queries, and replies to them."""

from __future__ import annotations

from typing import Any

TYPES, TESTS, DIRECT = "Check the types in src/app.py.", "Run the tests.", "What is a generator?"
SUITE: dict[str, Any] = {
    "name": "three",
    "version": 1,
    "description": "Three requests.",
    "queries": [
        {
            "id": "types", "category": "typecheck", "kind": "tool", "query": TYPES,
            "accept": [{"function": "typecheck", "arguments": {"path": {"path": "src/app.py"}}}],
        },
        {
            "id": "tests", "category": "pytest_run", "kind": "tool", "query": TESTS,
            "accept": [{"function": "pytest_run"}],
        },
        {"id": "direct", "category": "concept", "kind": "direct", "query": DIRECT},
    ],
}  # fmt: skip
CODE = {"code": 'print(typecheck(path="src/app.py"))'}
WRITTEN = (  # the call as the dialect hermes writes it
    '<tool_call>\n{"name": "execute_code", "arguments": '
    '{"code": "print(typecheck(path=\\"src/app.py\\"))"}}\n</tool_call>'
)
REPLIES = {"types": WRITTEN, "tests": "I cannot.", "direct": "A function that yields."}
