"""The conversion on a Ray cluster of two workers: the same output as on one machine without Ray.

Ray is large and has an environment of its own: `nox -s ray`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.convert_data.stage import CORPUS
from stages.core.artifact import MANIFEST

pytest.importorskip("ray", reason="Ray has an environment of its own: nox -s ray")

ROOT = Path(__file__).resolve().parents[2]


def convert(engine: str, data: Path, out: Path, artifacts: Path) -> str:
    """What the command says; it runs in a process of its own, as a cluster's driver must."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.run_conversion", engine, str(data), str(out)],
        cwd=ROOT, env=os.environ | {"FAIR_RETEST_ARTIFACTS": str(artifacts)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != MANIFEST}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_two_workers_give_the_output_of_one_process(kind: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, shards in (("train", 4), ("valid", 1)):
        rows = [json.loads(line) for line in (CORPUS / f"{split}.jsonl").read_bytes().splitlines()]
        rows += [{"text": "broken"}]
        for index in range(shards):
            path = data / f"{split}-{index:05d}-of-{shards:05d}.{kind}"
            part = rows[index::shards]
            if kind == "parquet":
                pq.write_table(pa.Table.from_pylist(part), path, row_group_size=50)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    said = convert("ray", data, tmp_path / "ray", tmp_path / "artifacts")
    found = re.search(r"done on (\d+) nodes: (\d+) pieces", said)
    assert found is not None, said
    assert int(found[1]) == 2
    assert int(found[2]) >= 4
    convert("local", data, tmp_path / "local", tmp_path / "artifacts")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    rejected = contents(tmp_path / "ray")["rejected.jsonl"].splitlines()
    assert [json.loads(line)["split"] for line in rejected] == ["train", "valid"]
