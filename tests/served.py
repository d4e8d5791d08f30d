"""Evaluations of the small suite on a server of the tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.core.cli import Options
from stages.core.records import RawReply
from stages.core.suite import load_suites
from stages.core.tools import EXECUTE_CODE
from stages.eval.__main__ import main
from stages.eval.engines import Question, Sampling
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import Transport
from stages.eval.stage import evaluate_engine
from tests.chat_server import ChatServer
from tests.small_suite import TYPES


def make_endpoint(server: ChatServer, concurrency: int = 1, **transport: Any) -> Endpoint:
    """An endpoint that does not wait long before it tries again, but for an answer as on a busy machine."""
    settings = {"first_wait": 0.005, "timeout": 60.0, **transport}
    return Endpoint(Transport(server.url, **settings), "hermes", None, concurrency)


def run(options: Options, endpoint: Endpoint, **how: Any) -> Path:
    """Evaluate, and return the folder of the one suite."""
    suites = load_suites(options.preset.eval.suites)
    return evaluate_engine(options, endpoint, suites, **how).folder / "three"


def ask_server(options: Options, server: ChatServer, **how: Any) -> Path:
    """Evaluate what the server answers; the folder of all results."""
    return run(options, make_endpoint(server), **how).parent


def ask_one(server: ChatServer, **settings: Any) -> RawReply:
    """The reply to one question; failures are tried again as often as `settings` say."""
    endpoint = replace(make_endpoint(server, **settings), served_model="tiny")
    kept: list[RawReply] = []
    row = {"messages": [{"role": "user", "content": TYPES}], "tools": [EXECUTE_CODE.to_json()]}
    endpoint.answer([Question("q", row)], Sampling(16), lambda _, reply: kept.append(reply), "test")
    (reply,) = kept
    return reply


def main_words(options: Options, server: ChatServer, *more: str) -> int:
    """Evaluate as the command line does; its exit code."""
    suites = ",".join(options.preset.eval.suites)
    return main(["--endpoint", f"{server.url}/", "--suites", suites, "--out", str(options.out), *more])
