"""A suite of three queries, replies to them, and who gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.core.cli import Options
from stages.core.suite import load_suites
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import Transport
from stages.eval.stage import evaluate_engine
from tests.chat_server import ChatServer

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


def ask_server(options: Options, server: ChatServer, **how: Any) -> Path:
    """Evaluate what the server answers; the folder of the results."""
    endpoint = Endpoint(Transport(server.url, first_wait=0.005), "hermes", None, 1)
    return evaluate_engine(options, endpoint, load_suites(options.preset.eval.suites), **how).folder
