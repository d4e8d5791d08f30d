"""Kept replies: used again for their own query and model alone, and forgotten when that is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import EvalSummary, RawReply, read_lines, read_record
from stages.core.suite import load_suites
from stages.eval.engines import Costs, Question
from stages.eval.engines.completions import describe_model
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import Transport
from stages.eval.score import SCORER_VERSION
from stages.eval.stage import evaluate_engine
from stages.eval.store import ReplyStore, join_costs
from tests.chat_server import Answer, ChatServer, complete, serving
from tests.small_suite import DIRECT, SUITE, TESTS, TYPES


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(lambda *_: (200, complete("Old.")))) as running:
        yield running


def run(
    options: Options,
    server: ChatServer,
    *,
    name: str = "tiny",
    force: bool = False,
    ask_again: bool = False,
) -> list[str]:
    """Evaluate, one question at a time, and return the texts of the replies in the output."""
    endpoint = Endpoint(Transport(server.url, attempts=2, first_wait=0.005), "hermes", name, 1)
    given = Options(options.preset, options.fixes, out=options.out, force=force)
    suites = load_suites(options.preset.eval.suites)
    folder = evaluate_engine(given, endpoint, suites, ask_again=ask_again).folder / "three"
    return [reply.text for reply in read_lines(folder / "replies.jsonl", RawReply)]


def serve(**facts: Any) -> Answer:
    """The list of models of a server that has one."""
    return 200, {"data": [{"id": "tiny", **facts}]}


# Asking again


def test_force_makes_an_output_of_kept_replies(
    options: Options, server: ChatServer, suite: Path, tmp_path: Path
) -> None:
    assert run(options, server) == ["Old."] * 3
    server.reply = lambda *_: (200, complete("New."))
    assert run(options, server, force=True) == ["Old."] * 3
    changed = json.loads(json.dumps(SUITE))
    changed["queries"][2]["query"] = "What is a set?"
    suite.write_text(json.dumps(changed), "utf-8")
    with pytest.raises(StageError, match="--force replaces it"):
        run(options, server)
    assert run(options, server, force=True) == ["Old.", "Old.", "New."], "one query is another one"
    assert server.times() == {TYPES: 1, TESTS: 1, DIRECT: 1, "What is a set?": 1}


@pytest.mark.parametrize("repeated", [False, True])
def test_what_was_stopped_while_it_asked_again_mixes_no_replies(
    repeated: bool, options: Options, server: ChatServer
) -> None:
    run(options, server)
    server.reply, server.dies_after = lambda *_: (200, complete("New.")), 4
    with pytest.raises(StageError, match="the same command asks what is left"):
        run(options, server, ask_again=True)
    server.dies_after = None
    assert run(options, server, ask_again=repeated) == ["New."] * 3
    assert server.times() == {TYPES: 2, TESTS: 2, DIRECT: 2}
    assert run(options, server) == ["New."] * 3
    assert server.times() == {TYPES: 2, TESTS: 2, DIRECT: 2}, "it was up to date"
    assert run(options, server, ask_again=True) == ["New."] * 3
    assert server.times() == {TYPES: 3, TESTS: 3, DIRECT: 3}


def test_nothing_is_forgotten_where_nobody_can_be_asked(options: Options, server: ChatServer) -> None:
    run(options, server)
    server.models = (200, {"data": [{"id": "other"}]})
    with pytest.raises(StageError, match="serves other, not tiny"):
        run(options, server, ask_again=True)
    assert run(options, server, force=True) == ["Old."] * 3
    assert len(server.asked) == 3


# Another model under the same name


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"root": "/v1"}, {"root": "/v2"}, "root='/v2', before '/v1'"),
        ({"meta": {"size": 5, "n_ctx": 1}}, {"meta": {"size": 6, "n_ctx": 1}}, "size=6, before 5"),
        ({"parent": None}, {"parent": "base"}, ""),
        ({"root": "/v1"}, {}, ""),
        ({"meta": {"size": 5, "n_ctx": 1}}, {"meta": {"size": 5, "n_ctx": 2}}, ""),
    ],
)
def test_another_model_under_the_same_name_is_told_by_what_the_server_says_of_it(
    before: dict[str, Any], now: dict[str, Any], told: str, options: Options, server: ChatServer
) -> None:
    server.models = serve(**before)
    run(options, server)
    server.models, server.reply = serve(**now), lambda *_: (200, complete("New."))
    if not told:
        assert run(options, server) == ["Old."] * 3
        return
    for force in (False, True):
        with pytest.raises(StageError, match=r"another model under this name \(.*--ask-again asks") as error:
            run(options, server, force=force)
        assert told in str(error.value)
    assert run(options, server, ask_again=True) == ["New."] * 3
    assert run(options, server) == ["New."] * 3
    assert server.times() == {TYPES: 2, TESTS: 2, DIRECT: 2}


def test_the_time_of_the_question_is_no_sign_of_another_model(
    options: Options, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.eval.engines.endpoint.MOMENT", 0.0)
    clock = count(1_700_000_000)
    server.tell_models = lambda: serve(created=next(clock))
    run(options, server)
    assert run(options, server) == ["Old."] * 3
    server.tell_models, server.models = None, serve(created=1_600_000_000)  # the day on which it was made
    assert run(options, server, ask_again=True) == ["Old."] * 3
    server.models = serve(created=1_600_000_001)
    with pytest.raises(StageError, match="created=1600000001, before 1600000000"):
        run(options, server)


def test_a_model_that_is_changed_meanwhile_leaves_no_reply(options: Options, server: ChatServer) -> None:
    server.models = serve(root="/v1")

    def reply(question: str, number: int) -> Answer:
        if question == TESTS and number == 1:
            server.models = serve(root="/v2")
        return 200, complete("New." if server.models == serve(root="/v2") else "Old.")

    server.reply = reply
    with pytest.raises(
        StageError, match=r"changed its model while it was asked \(root='/v2', before '/v1'\)"
    ):
        run(options, server)
    assert run(options, server) == ["New."] * 3
    assert server.times() == {TYPES: 2, TESTS: 2, DIRECT: 2}


def test_a_half_that_another_model_answered_is_not_gone_on_with(options: Options, server: ChatServer) -> None:
    server.models, server.dies_after = serve(root="/v1"), 2
    with pytest.raises(StageError, match="the same command asks what is left"):
        run(options, server)
    server.models, server.dies_after = serve(root="/v2"), None
    with pytest.raises(StageError, match="another model under this name"):
        run(options, server)
    server.reply = lambda *_: (200, complete("New."))
    assert run(options, server, ask_again=True) == ["New."] * 3


def write_model(folder: Path, weights: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}", "utf-8")
    (folder / "model.safetensors").write_bytes(weights)


DOUBT = "nothing tells whether the server's model is still the one that gave the kept replies: --ask-again"


@pytest.mark.parametrize("named_by", ["id", "root"])
def test_other_weights_in_a_folder_of_this_machine_are_another_model(
    named_by: str, options: Options, server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served"
    write_model(folder, b"fair")
    name = str(folder) if named_by == "id" else "tiny"
    server.models = 200, {"data": [{"id": name, "root": str(folder)}]}
    server.reply = lambda *_: (200, complete("Old.", model=name))
    server.probe = lambda _: (200, complete("H", model=name))
    assert run(options, server, name=name) == ["Old."] * 3
    assert run(options, server, name=name, force=True) == ["Old."] * 3
    assert DOUBT not in capsys.readouterr().out, "the weights tell it"
    write_model(folder, b"flawed")
    server.reply = lambda *_: (200, complete("New.", model=name))
    for force in (False, True):
        with pytest.raises(StageError, match=r"another model under this name \(weights=.*--ask-again asks"):
            run(options, server, name=name, force=force)
    assert run(options, server, name=name, ask_again=True) == ["New."] * 3
    assert server.times() == {TYPES: 2, TESTS: 2, DIRECT: 2}
    shutil.rmtree(folder)
    assert run(options, server, name=name, force=True) == ["New."] * 3, "replies outlive their model"
    assert DOUBT in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "tiny", "a\0b", "x" * 5000, "org/model:latest", "."])
def test_a_name_that_is_no_model_folder_has_no_weights(name: str, server: ChatServer) -> None:
    assert Endpoint(Transport(server.url), "hermes", name).served_as() == {}


def test_where_a_server_knows_only_names_the_doubt_is_said_once(
    options: Options, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options, server)
    assert DOUBT not in capsys.readouterr().out, "nothing was used again"
    for force in (False, True):
        run(options, server, force=force)
        assert capsys.readouterr().out.count(DOUBT) == 1, f"force={force}"
    server.models = serve(created=1_600_000_000)
    run(options, server, ask_again=True)
    run(options, server)
    assert DOUBT not in capsys.readouterr().out, "the day on which it was made tells it"


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'{"data": [{"id": "other", "root": "/"}]}', b'{"data": [{}]}']
)
def test_a_list_without_the_model_tells_nothing(answer: bytes) -> None:
    assert describe_model(answer, "tiny") == {}


# The store


QUESTIONS = [Question(f"q{i}", {"messages": [{"role": "user", "content": str(i)}]}) for i in range(8)]


def test_several_processes_may_begin_a_store_together(tmp_path: Path) -> None:
    for attempt in range(20):
        root, ready = tmp_path / str(attempt), Barrier(len(QUESTIONS))

        def keep(question: Question, root: Path = root, ready: Barrier = ready) -> None:
            store = ReplyStore(root, {"model": "x"})
            ready.wait(60)
            store.keep(question, 0, RawReply(id=question.id, text="Hi.", finish="stop"))

        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            list(pool.map(keep, QUESTIONS))
        store = ReplyStore(root, {"model": "x"})
        assert all(store.find(question, 0) for question in QUESTIONS)
        assert sorted(path.name for path in store.folder.iterdir()) == ["key.json", "replies.jsonl"]


def test_costs_are_those_of_all_sessions_on_a_suite(tmp_path: Path) -> None:
    long = Costs(load_seconds=2.0, first_token_seconds=0.5, peak_memory_gb=4.0, disk_gb=1.0)
    short = Costs(load_seconds=9.0, first_token_seconds=0.1, peak_memory_gb=1.0)
    store = ReplyStore(tmp_path, {})
    store.keep(QUESTIONS[0], 0, RawReply(id="q0", text="Hi.", finish="stop"))
    store.add_costs("a", long)
    store.add_costs("a", short)
    store.add_costs("b", short)
    again = ReplyStore(tmp_path, {})
    assert again.read_costs("a") == long
    assert again.read_costs("b") == short
    assert again.read_costs("c") == long, "it used the replies to the others alone"
    again.forget_costs("a")
    assert ReplyStore(tmp_path, {}).read_costs("a") == short
    assert join_costs(Costs(), Costs()) == Costs()
    assert join_costs(short, long).peak_memory_gb == 4.0


def test_replies_that_are_kept_in_an_output_alone_are_scored_again(
    options: Options, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options, server)
    path = tmp_path / "out" / "three" / "summary.json"
    before = read_record(path, EvalSummary)
    shutil.rmtree(tmp_path / "artifacts")
    monkeypatch.setattr("stages.eval.recipe.SCORER_VERSION", SCORER_VERSION + 1)
    assert run(options, server) == ["Old."] * 3
    assert len(server.asked) == 3
    assert read_record(path, EvalSummary).timing == before.timing


@pytest.mark.parametrize("damaged", ["manifest.json", "replies.jsonl", "summary.json"])
def test_force_helps_where_what_is_scored_anew_is_damaged(
    damaged: str, options: Options, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options, server)
    path = tmp_path / "out" / "three" / damaged
    path.write_text('{"recipe": ')
    monkeypatch.setattr("stages.eval.recipe.SCORER_VERSION", SCORER_VERSION + 1)
    if damaged != "manifest.json":
        assert run(options, server) == ["Old."] * 3, "the store has all of them"
        path.write_text('{"recipe": ')
        shutil.rmtree(tmp_path / "artifacts")
        monkeypatch.setattr("stages.eval.recipe.SCORER_VERSION", SCORER_VERSION + 2)
    with pytest.raises(StageError, match=rf"{damaged}.* is not valid.*--force"):
        run(options, server)
    assert run(options, server, force=True) == ["Old."] * 3
