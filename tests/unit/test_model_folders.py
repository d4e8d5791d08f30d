"""A preset's model as a folder: a path, a cached hub model, or one line that says what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stages.core.artifact import NOT_HERE, build_artifact
from stages.core.cli import build_parser, read_options
from stages.core.errors import StageError
from stages.core.models import FILES, INDEX, find_model, missing_files
from stages.core.preset import Preset, load_preset
from stages.core.records import Recipe
from stages.train.recipe import make_recipe
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import sys
from stages.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
REPOSITORY = "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"
COMMIT = "0123456789012345678901234567890123456789"
FIND = """
import os, sys
from pathlib import Path
from stages.core.errors import StageError
from stages.core.models import find_model
from stages.core.preset import load_preset
code = 0
beside = float(os.environ.get("BESIDE_GB", "0"))
for source in sys.argv[1:]:
    try:
        preset = load_preset("7b", {"source": source})
        print(find_model(preset, Path(os.environ["HF_HOME"]) / "artifacts", beside_gb=beside))
    except StageError as error:
        print(error)
        code = 2
sys.exit(code)
"""
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": bytes(3_000_000),
    "modeling.py": b"raise SystemExit",
}


def preset(source: str) -> Preset:
    return load_preset("7b", {"source": source})


def complaint(source: str) -> str:
    with pytest.raises(StageError) as error:
        find_model(preset(source), Path("unused"))
    assert "\n" not in str(error.value)
    return str(error.value)


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(MODEL[name])
    return folder


def make_cache(place: Path) -> Path:
    """A snapshot in the hub's cache as an older client, or a copy, leaves it."""
    place = place / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return make_model(place / "snapshots" / COMMIT)


def find_with_hub(
    sources: list[str], cache: Path, endpoint: str, *, code: str = FIND, **more: str
) -> subprocess.CompletedProcess[str]:
    """Look for models in a process of its own: the hub's settings are read when it is imported."""
    pytest.importorskip("huggingface_hub", reason="the hub's client comes with mlx-lm")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        more.setdefault(name, "")
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", code, *sources],
        cwd=ROOT,
        env=environment
        | {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
        | {k: v for k, v in more.items() if v},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


class Answer(BaseHTTPRequestHandler):
    """The few addresses of the hub that fetching a model asks for; every other one is refused."""

    files: ClassVar[dict[str, bytes]] = MODEL

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = f"/api/models/{REPOSITORY}"
        if path == f"{api}/revision/main":
            self.answer_json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        elif path == f"{api}/tree/{COMMIT}":
            self.answer_json([
                {"type": "file", "path": name, "size": len(data), "oid": name_blob(name)}
                for name, data in self.files.items()
            ])  # fmt: skip
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.answer(self.files[name], {"ETag": f'"{name_blob(name)}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(b"", {}, status=401)

    do_HEAD = do_GET  # noqa: N815

    def answer_json(self, data: Any) -> None:
        self.answer(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def answer(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Refuse(Answer):
    """A hub that gives nothing out."""

    def do_GET(self) -> None:
        self.answer(b"", {}, status=401)

    do_HEAD = do_GET  # noqa: N815


def name_blob(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    with serve(Refuse) as address:
        yield address


@pytest.fixture
def hub() -> Iterator[str]:
    with serve(Answer) as address:
        yield address


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "a" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model(preset(str(folder)), Path("unused")) == folder
    assert find_model(preset("a/model"), Path("unused")) == Path("a/model"), "a folder goes before the hub"
    assert find_model(preset("~/a/model"), Path("unused")) == folder


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert f"no model folder {tmp_path}" in complaint(str(tmp_path))
    assert "no model folder nowhere" in complaint("nowhere")
    assert "no model folder a/b/c" in complaint("a/b/c")
    assert "no embedded model 'gpt': there is smollm2-135m" in complaint("bundled:gpt")


def test_no_code_is_ever_fetched() -> None:
    assert not [pattern for pattern in FILES if "py" in pattern or pattern == "*"]


def test_a_cached_model_needs_no_network_and_a_missing_folder_is_no_hub_model(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    done = find_with_hub([REPOSITORY, "./missing"], tmp_path, "http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (2, "")
    found, missing = done.stdout.splitlines()
    assert found == str(snapshot)
    assert missing.startswith("no model folder ./missing")


ADVICE = (
    "run this once with a network, copy the cache from where there is one, "
    "or give a folder that holds the model with --model FOLDER\n"
)


@pytest.mark.parametrize(
    ("cached", "more", "reason"),
    [
        ("not", {}, "the hub cannot be reached"),
        ("not", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to fetch it"),
        ("not", {"HTTP_PROXY": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        ("only in part", {}, "the hub cannot be reached"),
    ],
    ids=["no network", "offline", "no proxy", "begun cache"],
)
def test_without_a_network_one_line_says_how_to_supply_the_model(
    cached: str, more: dict[str, str], reason: str, tmp_path: Path
) -> None:
    if cached != "not":
        (make_cache(tmp_path) / "model.safetensors").unlink()
    done = find_with_hub([REPOSITORY], tmp_path, "http://127.0.0.1:9", **more)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == (
        f"model 7b is {REPOSITORY}, which is {cached} in the Hugging Face cache {tmp_path / 'hub'}, "
        f"and {reason}: {ADVICE}"
    )


def test_a_hub_that_refuses(refusing_hub: str, tmp_path: Path) -> None:
    done = find_with_hub([REPOSITORY], tmp_path, refusing_hub)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"model 7b is {REPOSITORY}, which is not in the Hugging Face cache")
    assert done.stdout.endswith(f", and the hub does not give it out (status 401): {ADVICE}")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("begun", [False, True], ids=["empty cache", "begun cache"])
def test_a_model_is_fetched_whole_and_without_code(begun: bool, hub: str, tmp_path: Path) -> None:
    if begun:
        (make_cache(tmp_path) / "model.safetensors").unlink()
    done = find_with_hub([REPOSITORY], tmp_path, hub)
    assert done.returncode == 0, done.stdout + done.stderr
    line, found = done.stdout.splitlines()
    assert line == f"  fetching {REPOSITORY}: 0.00 GB"
    assert {path.name for path in Path(found).iterdir()} == MODEL.keys() - {"modeling.py"}
    assert (Path(found) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    again = find_with_hub([REPOSITORY], tmp_path, "http://127.0.0.1:9")
    assert (again.returncode, again.stdout) == (0, f"{found}\n")


def test_a_check_fetches_no_model(hub: str, tmp_path: Path) -> None:
    """One that is not here decides nothing; one that is counts as ever."""
    rows, out = tmp_path / "rows", tmp_path / "out"
    with build_artifact(rows, Recipe(stage="convert_data", settings={}, inputs={})):
        pass
    words = ["--model", "7b", "--source", REPOSITORY, "--data", str(rows), "--out", str(out), "--check"]

    def ask(*more: str) -> tuple[int, str]:
        place = {"FAIR_RETEST_ARTIFACTS": str(tmp_path / "artifacts")}
        done = find_with_hub([*words, *more], tmp_path / "cache", hub, code=CHECK, **place)
        return done.returncode, done.stdout + done.stderr

    assert ask() == (3, f"train: yet to be made: {out}\n")
    options = read_options(build_parser("train", "", ("train",)).parse_args(words))
    made = make_recipe(options)
    assert made.inputs["model"] == NOT_HERE
    with build_artifact(out, made.model_copy(update={"inputs": made.inputs | {"model": "0" * 64}})):
        pass
    code, said = ask()
    assert (code, said.count("train: up to date")) == (0, 1), said
    code, said = ask("--rank", "5")
    assert code == 2
    assert "was made with rank=" in said
    assert not list(tmp_path.rglob("*.safetensors"))
    code, said = ask("--source", "./missing")
    assert (code, said.count("no model folder ./missing")) == (2, 1), said
    make_cache(tmp_path / "cache")
    code, said = ask()
    assert (code, said.count("was made with another model: ")) == (2, 1), said


def test_no_room_for_a_model_and_the_work_with_it(hub: str, tmp_path: Path) -> None:
    done = find_with_hub([REPOSITORY], tmp_path, hub, BESIDE_GB="1000000000")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"fetching {REPOSITORY} and the work with it needs about 1000000000.00 GB")
    assert done.stdout.endswith("or name another place for the Hugging Face cache with HF_HOME\n")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("files", "lost"),
    [
        ({"config.json": "{}", "model.safetensors": ""}, ""),
        ({"config.json": "{}", "weights-1.safetensors": ""}, ""),
        ({"config.json": "{}"}, "its weights (.safetensors)"),
        ({"model.safetensors": ""}, "config.json"),
        ({"config.json": "{}", INDEX: '{"weight_map": {"x": "a", "y": "b"}}', "a": ""}, "b"),
        ({"config.json": "{}", INDEX: '{"weight_map": {"x": "a", "y": "b"}}'}, "a and 1 more"),
        ({"config.json": "{}", INDEX: '{"weight_map": {"x": "a"}}', "a": ""}, ""),
        ({"config.json": "{}", INDEX: "{}"}, f"a readable {INDEX}"),
        ({"config.json": "{}", INDEX: "[]"}, f"a readable {INDEX}"),
        ({"config.json": "{}", INDEX: "{"}, f"a readable {INDEX}"),
    ],
)
def test_what_a_folder_lacks(files: dict[str, str], lost: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert missing_files(tmp_path) == lost
