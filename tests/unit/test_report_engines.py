"""What a report says of results that a server or a file gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.core.cli import Options
from stages.core.records import (
    EvalSummary,
    Manifest,
    RawReply,
    Score,
    read_lines,
    read_record,
)
from stages.eval.request import Request
from stages.eval.stage import evaluate
from stages.report.comparison import write_results
from stages.report.failures import write_failures
from stages.report.results import Arm, SuiteResult
from tests.chat_server import ChatServer, complete
from tests.report_world import table_rows
from tests.served import ask_server
from tests.small_suite import REPLIES, TYPES, write_replies


def read_result(folder: Path) -> SuiteResult:
    return SuiteResult(
        read_record(folder / "summary.json", EvalSummary),
        read_lines(folder / "scores.jsonl", Score),
        read_lines(folder / "replies.jsonl", RawReply),
        read_record(folder / "manifest.json", Manifest),
    )


def test_a_report_tells_a_servers_results_from_those_of_this_machine(
    options: Options, server: ChatServer, tmp_path: Path
) -> None:
    server.reply = lambda *_: (200, complete("Hello.", "length"))
    served = read_result(ask_server(options, server) / "three")
    file = write_replies(tmp_path / "a.jsonl", REPLIES)
    recorded = read_result(
        evaluate(replace(options, out=tmp_path / "recorded"), Request(replies=file)).folder / "three"
    )
    assert served.machine == server.url
    assert recorded.machine != served.machine, "times of different places do not compare"
    page = write_results({"a server": served.summary, "a file": recorded.summary}, None, "")
    rows = {row[0]: row[1:3] for row in table_rows(page)}
    assert rows["strict parser"] == ["the server's, then hermes", "hermes"]
    assert rows["… by runaway replies"] == ["100 %, 100 % of the time", "–"]
    assert rows["time per query"][1] == "–"
    assert "time to load" not in rows, "nobody measured it"


def test_a_report_shows_what_a_server_said_of_a_reply_that_it_could_not_read(
    options: Options, server: ChatServer
) -> None:
    said = "error parsing tool call: raw='print(1', err=unexpected end"
    server.reply = lambda question, _: (500, {"error": said}) if question == TYPES else (200, complete())
    result = read_result(ask_server(options, server) / "three")
    page = write_failures(Arm(options, {"three": result}, None, []), "three")
    assert "### types (typecheck): malformed" in page
    assert "The server could not read the reply:" in page
    assert said in page
