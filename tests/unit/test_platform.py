"""The machine: disk checked before work, memory and sizes in GB of 1e9 bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stages.core import platform
from stages.core.errors import StageError
from stages.core.platform import (
    available_memory_gb,
    existing_part,
    folder_size_gb,
    peak_memory_gb,
    require_disk,
    require_memory,
    same_disk,
)

ROOT = Path(__file__).resolve().parents[2]


def test_enough_disk_says_nothing(tmp_path: Path) -> None:
    require_disk(tmp_path, 0.0, "nothing")
    require_disk(tmp_path / "not" / "there" / "yet", 1e-9, "a byte")


def test_too_little_disk_says_how_much_is_needed_and_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free / 1e9
    with pytest.raises(StageError) as error:
        require_disk(tmp_path / "a" / "b", free + 1e6, "the fused model")
    text = str(error.value)
    assert text.startswith(f"the fused model needs about {free + 1e6:.2f} GB of disk in {tmp_path}, ")
    assert "--out" in text
    assert "\n" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_place_without_a_disk_is_said_to_be_one() -> None:
    with pytest.raises(StageError, match=r"^nothing can be written in /proc: choose another place"):
        require_disk(Path("/proc/out"), 0.01, "it")


def test_where_else_to_go_depends_on_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"free some space or move house$"):
        require_disk(tmp_path, 1e9, "it", "move house")


def test_folders_to_come_lie_on_the_disk_of_what_is_there(tmp_path: Path) -> None:
    assert existing_part(tmp_path / "a" / "b") == tmp_path
    assert same_disk(tmp_path / "a", tmp_path / "b" / "c")
    if Path("/proc").is_dir():
        assert not same_disk(tmp_path, Path("/proc"))


def limit_memory(folder: Path, limit: str, anon: int, file: int) -> None:
    """What the kernel shows of a container's memory."""
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"anon {anon}\nfile {file}\nkernel 4096\n")


def test_available_memory_is_the_machines_or_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    free = psutil.virtual_memory().available / 1e9
    assert available_memory_gb() == pytest.approx(free, rel=0.3), "without a container"
    limit_memory(tmp_path, "max", 1, 1)
    assert available_memory_gb() == pytest.approx(free, rel=0.3), "a container without a limit"
    limit_memory(tmp_path, "300000000", 100_000_000, 150_000_000)
    assert available_memory_gb() == 0.2, "what files take is given back"


def test_of_a_share_what_is_taken_already_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    limit_memory(tmp_path, "100000000000", 0, 0)
    own = psutil.Process().memory_info().rss / 1e9
    monkeypatch.setenv(platform.SHARE_VARIABLE, str(own + 0.5))
    assert available_memory_gb() == pytest.approx(0.5, abs=0.05)
    monkeypatch.setenv(platform.SHARE_VARIABLE, str(own / 2))
    assert available_memory_gb() == 0
    limit_memory(tmp_path, "300000000", 100_000_000, 0)
    monkeypatch.setenv(platform.SHARE_VARIABLE, str(own + 0.5))
    assert available_memory_gb() == 0.2, "a share is no promise"


def test_too_little_memory_says_how_much_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    limit_memory(tmp_path, "700000000", 0, 0)
    require_memory(0.6, "it")
    with pytest.raises(StageError) as error:
        require_memory(30.46, "the model")
    text = str(error.value)
    assert text.startswith("the model takes 30.5 GB of memory, 0.7 GB is available: close other programs")
    assert "\n" not in text
    require_memory(30.46, "the model", device_free_gb=80.0)
    with pytest.raises(StageError, match=r"takes 100\.0 GB of memory, 80\.0 GB is available"):
        require_memory(100.0, "the model", device_free_gb=80.0)


def test_relative_places_are_measured_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=str(tmp_path)):
        require_disk(Path("x/y"), 1e9, "it")


def test_the_peak_rises_with_what_is_held() -> None:
    code = """
from stages.core.platform import peak_memory_gb
before = peak_memory_gb()
block = b"x" * 300_000_000
after = peak_memory_gb()
del block
print(before, after, peak_memory_gb())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after, later = map(float, done.stdout.split())
    assert 0.005 < before < 0.3 < after < before + 0.33
    assert later >= after - 0.005  # the kernel counts pages a processor at a time
    assert peak_memory_gb() > 0


def test_folder_sizes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    (tmp_path / "deep" / "b").write_bytes(bytes(500_000))
    assert folder_size_gb(tmp_path) == 0.0015
    assert folder_size_gb(tmp_path / "none") == 0
