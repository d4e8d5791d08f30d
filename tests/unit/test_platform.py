"""The machine: disk checked before work, memory and sizes in GB of 1e9 bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.errors import StageError
from stages.core.platform import folder_size_gb, peak_memory_gb, require_disk

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
    assert later >= after
    assert peak_memory_gb() > 0


def test_folder_sizes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(bytes(1_000_000))
    (tmp_path / "deep" / "b").write_bytes(bytes(500_000))
    assert folder_size_gb(tmp_path) == 0.0015
    assert folder_size_gb(tmp_path / "none") == 0
