"""Data sets of the hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.convert_data.hub import find_hub_source
from stages.core.errors import StageError
from tests.hub import serve_hub
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]


def test_a_hub_data_set_is_fetched_and_then_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    rows = [json.dumps({"text": f"row {index}"}) for index in range(6)]
    (repository / "data").mkdir(parents=True)
    (repository / "README.md").write_text("# Rows\n", "utf-8")
    for index in range(2):
        shard = repository / "data" / f"train-{index:05d}-of-00002.jsonl.gz"
        shard.write_bytes(gzip.compress("\n".join(rows[index * 2 : index * 2 + 2]).encode()))
    (repository / "data" / "validation-00000-of-00001.jsonl.gz").write_bytes(gzip.compress(rows[4].encode()))
    (repository / "data" / "train_sft-00000-of-00001.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    script = (
        "import sys; from pathlib import Path; from stages.convert_data.sources import find_source\n"
        "source = find_source(Path(sys.argv[1]))\n"
        "for split, files in source.splits.items():\n"
        "    print(split, *(f'{file.name} {file.packing} {file.path.stat().st_size}' for file in files))\n"
        "print('left out', *source.left_out)\n"
    )

    def find(name: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: the client reads its settings when it is imported."""
        return subprocess.run(
            [sys.executable, "-c", script, name], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
        )

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    with serve_hub("org/rows", repository) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        first = find("org/rows")
        missing = find("org/none")
    assert first.returncode == 0, first.stderr
    names = re.findall(r"(\S+) gz (\d+)", first.stdout)
    assert [name for name, _ in names] == [
        "train-00000-of-00002.jsonl.gz", "train-00001-of-00002.jsonl.gz", "validation-00000-of-00001.jsonl.gz"
    ]  # fmt: skip
    assert [int(size) for _, size in names] == [
        path.stat().st_size for path in sorted((repository / "data").iterdir()) if "sft" not in path.name
    ]
    assert "left out train_sft" in first.stdout
    assert "StageError: org/none is neither a file here nor to be had from the hub" in missing.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = find("org/rows")
    assert again.returncode == 0, again.stderr
    *splits, _ = first.stdout.splitlines()  # what was not fetched is not in the cache
    assert again.stdout.splitlines()[1:-1] == splits
    assert "taken from its cache" in again.stdout.splitlines()[0]


def test_a_hub_data_set_in_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "rows").mkdir(parents=True)
    (tmp_path / "org" / "rows" / "train.csv").write_text("text\nrow\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match="holds csv files: JSON lines and Parquet are read"):
        find_hub_source("org/rows", None, None)


CONFIGURED = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: rows.jsonl}
  - {split: dev, path: dev.jsonl}
  - {split: validation, path: valid.jsonl}
- config_name: large
  data_files: rows.jsonl
---
"""


def test_a_hub_data_set_in_several_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "rows").mkdir(parents=True)
    (tmp_path / "org" / "rows" / "README.md").write_text(CONFIGURED, "utf-8")
    for name in ("rows", "dev", "valid"):
        (tmp_path / "org" / "rows" / f"{name}.jsonl").write_text('{"text": "row"}\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"^org/rows has several configurations, \['small', 'large'\]: give"):
        find_hub_source("org/rows", None, None)
    source = find_hub_source("org/rows", "small", None)
    assert {split: [file.name for file in files] for split, files in source.splits.items()} == {
        "train": ["rows.jsonl"], "valid": ["valid.jsonl"]
    }  # fmt: skip
    assert source.left_out == ("dev",), "one split does not take another's place"


def test_a_hub_data_set_that_a_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "rows").mkdir(parents=True)
    (tmp_path / "org" / "rows" / "rows.py").write_text("", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StageError, match="nor to be had from the hub: Dataset scripts are no longer supported"
    ):
        find_hub_source("org/rows", None, None)


def test_the_folder_datasets_here_does_not_hide_the_package() -> None:
    code = "import datasets; print(datasets.__file__); datasets.load_dataset_builder"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "datasets")
    assert not list((ROOT / "datasets").glob("__init__.py*"))
