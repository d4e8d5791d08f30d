"""A preset's model as a folder: a path, a cached hub model, or one line that says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.core.errors import StageError
from stages.core.models import FILES, find_model
from stages.core.preset import Preset, load_preset

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"
COMMIT = "0123456789012345678901234567890123456789"
FIND = """
import sys
from pathlib import Path
from stages.core.errors import StageError
from stages.core.models import find_model
from stages.core.preset import load_preset
code = 0
for source in sys.argv[1:]:
    try:
        print(find_model(load_preset("7b", {"source": source}), Path("unused")))
    except StageError as error:
        print(error)
        code = 2
sys.exit(code)
"""


def preset(source: str) -> Preset:
    return load_preset("7b", {"source": source})


def complaint(source: str) -> str:
    with pytest.raises(StageError) as error:
        find_model(preset(source), Path("unused"))
    assert "\n" not in str(error.value)
    return str(error.value)


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def find_with_hub(
    sources: list[str], cache: Path, endpoint: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Look for models in a process of its own: the hub's settings are read when it is imported."""
    pytest.importorskip("huggingface_hub", reason="the hub's client comes with mlx-lm")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        more.setdefault(name, "")
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", FIND, *sources],
        cwd=ROOT,
        env=environment
        | {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
        | {k: v for k, v in more.items() if v},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    """A server on loopback that knows no model."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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
    place = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = make_model(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    done = find_with_hub([REPOSITORY, "./missing"], tmp_path, "http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (2, "")
    found, missing = done.stdout.splitlines()
    assert found == str(snapshot)
    assert missing.startswith("no model folder ./missing")


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_without_a_network_one_line_says_how_to_supply_the_model(
    more: dict[str, str], tmp_path: Path
) -> None:
    done = find_with_hub([REPOSITORY], tmp_path, "http://127.0.0.1:9", **more)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"model 7b needs {REPOSITORY}, which is not in the Hugging Face cache")
    assert "--source FOLDER" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_hub_that_refuses(refusing_hub: str, tmp_path: Path) -> None:
    done = find_with_hub([REPOSITORY], tmp_path, refusing_hub)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"model 7b needs {REPOSITORY}")
    assert done.stdout.count("\n") == 1
