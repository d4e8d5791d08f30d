"""Which of its models a server is asked for, and where none can be."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.records import RawReply, read_lines
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import KEY_VARIABLE, Transport
from tests.chat_server import ChatServer, complete, serving
from tests.served import main_words, make_endpoint, run


def test_the_only_model_is_taken_and_another_refused(
    server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_words(options, server, "--served-model", "big") == 2
    error = capsys.readouterr().err
    assert error == f"eval: {server.url} serves tiny, not big: name one of its models with --served-model\n"
    assert server.asked == []
    assert main_words(options, server) == 0
    assert f"{server.url} serves tiny" in capsys.readouterr().out


def test_a_model_that_is_listed_twice_is_one_and_a_name_that_is_empty_is_none(
    server: ChatServer, options: Options
) -> None:
    server.models = (200, {"data": [{"id": "tiny"}, {"id": "tiny", "object": "model"}]})
    server.reply = lambda *_: (200, complete("Hi.", model=""))
    assert len(read_lines(run(options, make_endpoint(server)) / "replies.jsonl", RawReply)) == 3


def test_of_several_models_one_has_to_be_named(server: ChatServer, options: Options) -> None:
    server.models = (200, {"data": [{"id": "small"}, {"id": "tiny"}]})
    with pytest.raises(StageError, match="serves small, tiny: name one of its models with --served-model"):
        run(options, make_endpoint(server))
    run(options, replace(make_endpoint(server), served_model="tiny"))
    assert len(server.asked) == 3


@pytest.mark.parametrize("models", [(404, {"error": "no"}), (200, b""), (200, {"object": "list"})])
def test_a_server_without_a_list_is_asked_by_name(
    models: Any, server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models = models
    with pytest.raises(StageError, match="/models lists no models: name the one to ask with --served-model"):
        run(options, make_endpoint(server))
    run(options, replace(make_endpoint(server), served_model="tiny"))
    out = capsys.readouterr().out
    assert "only the answers tell which one answers" in out
    assert f"{server.url} is asked for tiny\n" in out
    assert f"{server.url} serves" not in out, "nobody has said so"


def test_a_wrong_name_on_a_server_without_a_list_is_found_out(
    server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with mlx_lm.server, which tries to fetch what it is asked for; asking again would never help."""
    server.models = (404, {"error": "no"})
    server.reply = lambda *_: (404, {"error": "Got: ConnectError " + "x" * 300})
    assert main_words(options, server, "--served-model", "other", "--concurrency", "1") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(
        f"eval: {server.url} answers 404 for model 'other': check --served-model (for mlx_lm.server the "
        "folder given to its --model) and the address; query types: status 404, "
    )
    assert shown.err.endswith("x…\n")
    assert "the same command" not in shown.err
    assert "  three 0/3 queries\n" in shown.out, "before the first answer"


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key_is_told_as_one(status: int, server: ChatServer, options: Options) -> None:
    locked = (status, {"error": "no key"})
    server.models, server.reply, server.probe = locked, lambda *_: locked, lambda _: locked
    words = rf"status {status}, .*no key.* \(the key for it goes into {KEY_VARIABLE}\)"
    with pytest.raises(StageError, match=rf"/models is not for everybody: {words}$"):
        run(options, make_endpoint(server))
    with pytest.raises(StageError, match=rf"query types: {words}; the same command asks what is left$"):
        run(options, replace(make_endpoint(server), served_model="tiny"))


def test_another_model_behind_the_same_address_is_not_taken_for_the_first(
    server: ChatServer, options: Options
) -> None:
    run(options, make_endpoint(server))
    server.models = (200, {"data": [{"id": "other"}]})
    with pytest.raises(StageError, match="made with another model: --force replaces it"):
        run(options, make_endpoint(server))


def test_no_server_there(options: Options) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(StageError, match=r"does not answer \(the connection failed.*: start the server"):
        run(options, Endpoint(Transport(address), "hermes"))


def test_which_of_two_models_a_silent_server_has_is_not_guessed(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
        server.models = (200, {"data": [{"id": "other"}]})
        server.reply = lambda *_: (200, complete(model="other"))
        server.probe = lambda _: (200, complete(model="other"))
        assert main_words(replace(options, out=options.out and options.out / "other"), server) == 0
    assert main_words(options, server) == 2
    assert "does not answer (" in capsys.readouterr().err
    assert main_words(options, server, "--served-model", "tiny") == 0


@pytest.mark.parametrize("key", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_key_of_a_store_is_none(
    key: bytes, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
    (path,) = artifacts_root().glob("*/replies/*/key.json")
    path.write_bytes(key)
    assert main_words(options, server) == 2
    assert "does not answer (" in capsys.readouterr().err
