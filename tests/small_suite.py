"""A suite of three queries, replies to them, and who gives them."""

from __future__ import annotations

import json
from pathlib import Path
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


def write_replies(path: Path, replies: dict[str, str], **more: Any) -> Path:
    """A file of recorded replies."""
    path.write_text("".join(json.dumps({"id": i, "text": t, **more}) + "\n" for i, t in replies.items()))
    return path
