"""Outputs of an evaluation that lie there already: up to date, damaged, or scored by other rules."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.evaluation import FILES
from stages.core.records import EvalSummary, RawReply, read_lines, read_record, write_lines
from stages.eval.__main__ import main
from stages.eval.request import Request
from stages.eval.score import SCORER_VERSION
from stages.eval.stage import evaluate, find_current
from tests.chat_server import ChatServer, serving
from tests.served import main_words
from tests.small_suite import SUITE


def drop_a_reply(folder: Path) -> None:
    replies = folder / "replies.jsonl"
    write_lines(replies, read_lines(replies, RawReply)[:2])


def edit(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        *((lambda folder, name=name: (folder / name).unlink(), f"lacks {name}")
          for name in ("summary.json", "scores.jsonl", "replies.jsonl", "codes.jsonl")),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json is not valid: "),
        (drop_a_reply, "scores.jsonl and replies.jsonl are about other queries"),
        (edit("summary.json", b'"k": 1', b'"k": 3'), "the summary says 3 of 3, the scores say 1 of 3"),
        (edit("summary.json", f'"scorer_version": {SCORER_VERSION}'.encode(), b'"scorer_version": 6'),
         f"the summary says scorer version 6, the manifest {SCORER_VERSION}"),
        (edit("summary.json", b'"suite_version": 1', b'"suite_version": 2'),
         "the summary says suite version 2, the manifest 1"),
        (edit("replies.jsonl", b"Hello.", b"Hello!"), "its files are not as eval wrote them"),
    ],
)  # fmt: skip
def test_an_output_that_someone_has_damaged_is_not_up_to_date(
    damage: Callable[[Path], None], told: str, server: ChatServer, options: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main_words(options, server) == 0
    folder = (options.out or Path()) / "three"
    (folder / "notes.txt").write_text("Mine.")
    assert main_words(options, server, "--check") == 0, "a file of the user's own is no damage"
    damage(folder)
    for more in ([], ["--check"]):
        capsys.readouterr()
        assert main_words(options, server, *more) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "--force" in error
        assert error.count("\n") == 1
    assert main_words(options, server, "--force") == 0
    assert len(server.asked) == 3


def test_kept_replies_are_scored_again_without_the_server(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
    assert main_words(options, server) == 0, "it was up to date"
    (suite,) = options.preset.eval.suites
    changed = json.loads(json.dumps(SUITE))
    changed["queries"][1] |= {"kind": "direct", "accept": []}
    Path(suite).write_text(json.dumps(changed), "utf-8")
    assert main_words(options, server) == 0
    summary = read_record((options.out or Path()) / "three" / "summary.json", EvalSummary)
    assert (summary.tool_or_direct.k, summary.engine) == (2, "endpoint")
    assert f"{server.url} does not answer: taken for tiny, as kept" in capsys.readouterr().out
    changed["queries"][1]["query"] = "Run them all."
    Path(suite).write_text(json.dumps(changed), "utf-8")
    assert main_words(replace(options, out=options.out and options.out / "more"), server) == 2
    assert f"{server.url} does not answer (" in capsys.readouterr().err, "a reply is missing"


def test_an_output_that_needs_force_is_said_before_anything_is_asked(
    server: ChatServer, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second.json"
    second.write_text(json.dumps({**SUITE, "name": "second"}), "utf-8")
    words = ["--endpoint", server.url, "--out", str(options.out)]
    assert main([*words, "--suites", str(second), "--max-tokens", "7"]) == 0
    asked, (first,) = len(server.asked), options.preset.eval.suites
    capsys.readouterr()
    assert main([*words, "--suites", f"{first},{second}", "--max-tokens", "5"]) == 2
    assert "--force" in capsys.readouterr().err
    assert len(server.asked) == asked
    assert not ((options.out or Path()) / "three").exists()


def test_what_is_up_to_date_is_hashed_once(
    server: ChatServer, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suite,) = options.preset.eval.suites
    second = tmp_path / "second.json"
    second.write_text(json.dumps({**SUITE, "name": "second"}), "utf-8")
    setup = options.preset.eval.model_copy(update={"suites": (suite, str(second))})
    options = replace(options, preset=options.preset.model_copy(update={"eval": setup}))
    request = Request(endpoint=server.url)
    assert find_current(options, request) is None
    assert not evaluate(options, request).up_to_date
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def note(file: BufferedReader, name: str) -> Any:
        hashed[str(Path(file.name).relative_to(options.out or ""))] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    once = dict.fromkeys([f"{folder}/{name}" for folder in ("three", "second") for name in FILES], 1)
    assert evaluate(options, request).up_to_date
    assert hashed == once
    hashed.clear()
    assert evaluate(options, request, find_current(options, request)).up_to_date, "as of a model here"
    assert hashed == once
