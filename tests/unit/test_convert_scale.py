"""Large data: in pieces, by several processes, stopped and gone on - and always the same output."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.convert_data import pieces
from stages.convert_data.request import Request
from stages.convert_data.stage import CORPUS, convert_data
from stages.core import progress
from stages.core.artifact import MANIFEST, require_artifact
from stages.core.chatml import Turn, join_chatml
from stages.core.cli import Options, Outcome
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.splits import split_files
from tests.waiting import finish, wait_for, wait_until

ROOT = Path(__file__).resolve().parents[2]
GOOD = json.dumps({"text": join_chatml([Turn("user", "Why?"), Turn("assistant", "So.")])}).encode()
ASKED = r"<|im_start|>user\n"  # as it stands in JSON
# The command with pieces of argv[1] bytes: the real size would take long to fill.
SMALL_PIECES = """
import sys
from stages.convert_data import pieces
pieces.SMALLEST = int(sys.argv[1])
from stages.convert_data.__main__ import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logs stay in the test's folder, and what a command does to signals stays in the test."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv(progress.LOG_VARIABLE, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def convert(
    data: Path, out: Path, request: Request | None = None, fixes: FixSet = FAIR, **more: Any
) -> Outcome:
    return convert_data(Options(load_preset("smol"), fixes, data=data, out=out, **more), request)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an output, the manifest's times aside."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != MANIFEST}


def require_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """The same files with the same bytes; pytest would compare megabytes for minutes."""
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    assert differing == set()


def write_corpus(folder: Path, copies: int) -> Path:
    """The shipped corpus several times over, each copy with its own questions."""
    folder.mkdir()
    for split in ("train", "valid"):
        lines = (CORPUS / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        each = (line.replace(ASKED, f"{ASKED}({i}) ", 1) for i in range(copies) for line in lines)
        (folder / f"{split}.jsonl").write_text("".join(each), "utf-8")
    return folder


# The same output, however the work is done


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_processes_does_not_show(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path / "data", 2)
    with (data / "train.jsonl").open("ab") as file:
        file.write(b'{"text": ""}\n\n{"text": "\xff"}\n' + GOOD)
    convert(data, tmp_path / "whole", Request(workers=1))
    monkeypatch.setattr(pieces, "SMALLEST", 100_000)
    convert(data, tmp_path / "parts", Request(workers=workers))
    require_same(contents(tmp_path / "parts"), contents(tmp_path / "whole"))
    assert [row["line"] for row in read_rows(tmp_path / "parts" / "rejected.jsonl")] == [1371, 1373]


def test_compressed_parquet_and_sharded_data_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", 60_000)
    rows = [json.loads(line) for line in (CORPUS / "train.jsonl").read_bytes().splitlines()]
    lines = [json.dumps(row).encode() for row in rows]
    places = {name: tmp_path / name for name in ("plain", "gz", "zst", "array", "parquet", "shards")}
    for place in places.values():
        place.mkdir()
        (place / "valid.jsonl").write_bytes(GOOD)
    (places["plain"] / "train.jsonl").write_bytes(b"\n".join(lines))
    (places["gz"] / "train.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    with pa.output_stream(str(places["zst"] / "train.jsonl.zst"), compression="zstd") as out:
        out.write(b"\n".join(lines))
    (places["array"] / "train.json").write_text(json.dumps(rows, indent=1), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), places["parquet"] / "train.parquet", row_group_size=100)
    for index in range(3):
        (places["shards"] / f"train-{index:05d}-of-00003.jsonl").write_bytes(
            b"\n".join(lines[index * 230 : (index + 1) * 230]) + b"\n"
        )
    outputs = {}
    for name, place in places.items():
        convert(place, tmp_path / "out" / name, Request(workers=1))
        outputs[name] = (tmp_path / "out" / name / "train.jsonl").read_bytes()
    assert {name: output == outputs["plain"] for name, output in outputs.items()} == dict.fromkeys(
        places, True
    )


def test_objects_in_parquet_come_out_as_they_were_in_json_lines(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"a": 1}, {"b": {"c": "x"}}, {"a": 2, "d": ["y"]}, {}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": call}}],
                },
            ]
        }
        for call in calls
    ]
    for name in ("lines", "arrow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "valid.jsonl").write_bytes(GOOD)
    (tmp_path / "lines" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "arrow" / "train.parquet")
    for name in ("lines", "arrow"):
        convert(tmp_path / name, tmp_path / "out" / name)
    found = contents(tmp_path / "out" / "arrow")
    assert found["train.jsonl"] == contents(tmp_path / "out" / "lines")["train.jsonl"]
    assert [
        row["messages"][2]["tool_calls"][0]["function"]["arguments"]
        for row in map(json.loads, found["train.jsonl"].splitlines())
    ] == calls
    card = json.loads(found["card.json"])
    assert card["splits"]["train"]["changes"]["null keys of Arrow structs left out"] == 4


def test_a_long_split_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_corpus(tmp_path / "data", 3)
    convert(data, tmp_path / "whole", Request(workers=1))
    monkeypatch.setattr(pieces, "SMALLEST", 100_000)
    convert(data, tmp_path / "shards", Request(shard_mb=1, workers=1))
    files = split_files(tmp_path / "shards", "train")
    assert len(files) >= 3
    assert all(path.stat().st_size <= 1_000_000 for path in files)
    assert b"".join(path.read_bytes() for path in files) == (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert [path.name for path in split_files(tmp_path / "shards", "valid")] == ["valid.jsonl"]


# Stopped and gone on


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_PIECES, "150000", "--data", str(data), "--out", str(out), *more],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def processes_in(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes from /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_pieces_that_are_left(number: signal.Signals, tmp_path: Path) -> None:
    data, out = write_corpus(tmp_path / "data", 20), tmp_path / "deep" / "out"
    partial = out.parent / ".out.partial" / "pieces"
    process = start(data, out, "--workers", "2")
    wait_for(partial / "train-000003", process)
    # A terminal's Ctrl-C reaches the whole group, a kill the one process alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code, _, error = finish(process)
    assert code == (130 if number == signal.SIGINT else -number), error
    wait_until(lambda: not processes_in(process.pid), "a worker outlived the run")
    if number == signal.SIGINT:
        assert error.splitlines() == [
            "convert_data: interrupted; finished work is kept, the same command goes on"
        ]
    done = {path.name: path.stat().st_ino for path in partial.glob("[!.]*")}
    assert 4 <= len(done) < 40
    assert not out.exists()
    # The rest with one process; what was done is taken as it is, which its numbers show: zeros.
    marked = sorted(done)[0]
    number_file = partial / marked / "train.numbers"
    rows = (partial / marked / "train.jsonl").read_bytes()
    assert number_file.stat().st_size == 8 * rows.count(b"\n")
    marker = b'{"marked": true}\n'
    (partial / marked / "train.jsonl").write_bytes(marker + rows)
    code, _, error = finish(start(data, out, "--workers", "1"))
    assert code == 0, error
    convert(data, tmp_path / "whole", Request(workers=1))
    resumed, whole = contents(out), contents(tmp_path / "whole")
    assert marker in resumed["train.jsonl"], "the piece was not done again"
    resumed["train.jsonl"] = resumed["train.jsonl"].replace(marker, b"")
    for files in (resumed, whole):  # the marker has been counted among the tokens
        del files["card.md"]
        files["card.json"] = orjson.dumps(orjson.loads(files["card.json"]) | {"tokens": None})
    require_same(resumed, whole)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_a_run_stopped_while_shards_are_put_together_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_corpus(tmp_path / "data", 3)
    monkeypatch.setattr(pieces, "SMALLEST", 100_000)
    convert(data, tmp_path / "whole", Request(shard_mb=1, workers=1))
    written = []

    def stop(source: Any, target: Any, length: int = 0) -> None:
        written.append(target.name)
        if len(written) > 8:
            raise KeyboardInterrupt
        target.write(source.read())

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(data, tmp_path / "out", Request(shard_mb=1, workers=1))
    shards = sorted(path.name for path in (tmp_path / ".out.partial").glob("train-*.jsonl"))
    assert shards
    convert(data, tmp_path / "out", Request(shard_mb=1, workers=1))
    require_same(contents(tmp_path / "out"), contents(tmp_path / "whole"))


@pytest.mark.parametrize(
    "step",
    [
        *("stages.convert_data.stage.measure_tokens", "stages.convert_data.stage.write_card"),
        *("shutil.rmtree", "stages.core.artifact.fingerprint_folder", "stages.core.artifact._replace"),
    ],
)
def test_a_run_stopped_when_all_rows_are_written_goes_on(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, request = tmp_path / "data", Request(dedup=True, workers=1)
    data.mkdir()
    (data / "train.jsonl").write_bytes((CORPUS / "train.jsonl").read_bytes() + 3 * (GOOD + b"\n") + b"oops")
    (data / "valid.jsonl").write_bytes((CORPUS / "valid.jsonl").read_bytes())
    monkeypatch.setattr(pieces, "SMALLEST", 200_000)
    outcome = convert(data, tmp_path / "whole", request)

    def stop(path: object = None, *_: object, **__: object) -> None:
        if step == "shutil.rmtree":
            if not isinstance(path, Path) or path.name != "pieces":
                return
            for file in path.glob("*/summary.json"):
                file.unlink()  # as far as it came
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, stop)
        with pytest.raises(KeyboardInterrupt):
            convert(data, tmp_path / "out", request)
    assert not (tmp_path / "out").exists()
    again = convert(data, tmp_path / "out", request)
    assert (again.lines, again.facts) == (outcome.lines, outcome.facts)
    require_same(contents(tmp_path / "out"), contents(tmp_path / "whole"))


def test_a_worker_that_dies_is_said_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_corpus(tmp_path / "data", 20), tmp_path / "out"
    process = start(data, out, "--workers", "2")
    wait_for(tmp_path / ".out.partial" / "pieces" / "train-000002", process)
    workers = [pid for pid in processes_in(process.pid) if pid != process.pid]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in workers}
    os.kill(next(pid for pid, text in commands.items() if "spawn_main" in text), signal.SIGKILL)
    code, _, error = finish(process)
    assert code == 2
    assert error.splitlines()[-1].startswith("convert_data: a worker was killed, for want of memory perhaps")
    assert len(list((tmp_path / ".out.partial" / "pieces").glob("train-*"))) >= 3


# Bad data: every row is in exactly one place


def test_the_disk_must_hold_the_text_and_not_its_compressed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("stages.convert_data.stage.require_disk", lambda _, gb, what: asked.append(gb - 0.01))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + b"\n") * 5000))
    convert(path, tmp_path / "out", Request(valid_share=0))
    assert asked == pytest.approx([4 * path.stat().st_size / 1e9, 4 * 5000 * (len(GOOD) + 1) / 1e9], rel=0.01)


def test_every_row_is_in_exactly_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", 2000)
    monkeypatch.setattr(pieces, "LONGEST_ROW", 10_000)
    good = (CORPUS / "train.jsonl").read_bytes().splitlines()[:60]
    bad = [
        b'{"text": "broken', b"\xff\xfe\x00", b"[]", b"3", b'{"prompt": 1, "column": 2}', b'{"text": 5}',
        b'{"text": "' + b"x" * 20_000 + b'"}', b'{"text": "' + "ä€😀".encode() * 3000 + b'"}', b"\x00",
        b'{"messages": "none"}', b'{"messages": [{"role": "user"}]}', b'{"text": "\\ud800"}',
    ]  # fmt: skip
    lines = [line for group in zip(good[::5], bad, strict=True) for line in group] + good
    (tmp_path / "data").mkdir()
    for index, part in enumerate((lines[:30], lines[30:])):
        (tmp_path / "data" / f"train-{index:05d}-of-00002.jsonl").write_bytes(b"\n".join(part))
    (tmp_path / "data" / "valid.jsonl").write_bytes(GOOD)
    outcome = convert(tmp_path / "data", tmp_path / "out", Request(workers=1))
    rejected = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert outcome.facts["train"]["rows"] == len(lines)
    assert [row["line"] for row in rejected] == [lines.index(line) + 1 for line in bad]
    for row, line in zip(rejected, bad, strict=True):
        assert row["row"] == line.decode("utf-8", "backslashreplace")
        assert row["reason"]
        assert row["file_line"] == row["line"] - (30 if row["file"] == "train-00001-of-00002.jsonl" else 0)
    assert len((tmp_path / "out" / "train.jsonl").read_bytes().splitlines()) == len(lines) - len(bad)
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())["splits"]["train"]
    assert card["rows"] == len(lines)
    assert card["converted"] == len(lines) - len(bad)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_long_integer_is_refused_and_a_large_float_is_not(as_text: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    kept = ("6.02214076e23", "1e300", "18446744073709551615", "-9223372036854775808")
    numbers = (*kept, "-9999999999999999999", "99999999999999999999", "18446744073709551616")
    rows = []
    for number in numbers:
        arguments = f'{{"n": {number}}}'
        call = (
            f'{{"function": {{"name": "f", "arguments": {json.dumps(arguments) if as_text else arguments}}}}}'
        )
        rows.append(f'{{"messages": [{{"role": "assistant", "tool_calls": [{call}]}}]}}')
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    convert(tmp_path / "data", tmp_path / "out", Request(valid_share=0))
    rejected = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert [(row["line"], "JSON cannot hold" in row["reason"]) for row in rejected] == [
        (5, True), (6, True), (7, True)
    ]  # fmt: skip
    found = [
        row["messages"][-1]["tool_calls"][0]["function"]["arguments"]["n"]
        for row in read_rows(tmp_path / "out" / "train.jsonl")
    ]
    assert found == [6.02214076e23, 1e300, 2**64 - 1, -(2**63)]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("fixes", [FAIR, FLAWED], ids=["fair", "flawed"])
def test_a_long_integer_of_a_tool_is_refused(as_text: bool, fixes: FixSet, tmp_path: Path) -> None:
    turns = '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    rows = []
    for number in ("1e20", "99999999999999999999"):
        tools = f'[{{"name": "f", "parameters": {{"properties": {{"n": {{"maximum": {number}}}}}}}}}]'
        rows.append(f'{{{turns}, "tools": {json.dumps(tools) if as_text else tools}}}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    convert(tmp_path / "data", tmp_path / "out", Request(valid_share=0), fixes)
    (rejected,) = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert (rejected["line"], "64-bit" in rejected["reason"]) == (2, True)


def test_a_rejected_row_of_parquet_is_kept_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text, counts = json.loads(GOOD)["text"], pa.map_(pa.int64(), pa.string())
    table = {"text": pa.array([text, "no turns"]), "counts": pa.array([[(1, "a")], [(2, "b")]], counts)}
    pq.write_table(pa.table(table), tmp_path / "data" / "train.parquet")
    convert(tmp_path / "data", tmp_path / "out", Request(valid_share=0))
    (rejected,) = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert json.loads(rejected["row"]) == {"text": "no turns", "counts": {"2": "b"}}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("train.jsonl.gz", gzip.compress(GOOD * 1000, mtime=0)[:60], "train.jsonl.gz breaks off in row 1 "),
        ("train.jsonl.gz", GOOD, "train.jsonl.gz is not what its name says"),
        ("train.jsonl.gz", gzip.compress(b"", mtime=0), "could be converted: it has none"),
        ("train.parquet", GOOD, "train.parquet is not a whole Parquet file"),
        (
            "train.json",
            b"[" + GOOD,
            "train.json is no whole JSON array, it breaks off in row 2",
        ),  # the first is whole
        ("train.jsonl", b'{"a": 1, "b": 2}\n' * 5, r"no conversation in its columns \(a, b\)"),
    ],
)
def test_unusable_data_leave_nothing(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(data)
    (tmp_path / "data" / "valid.jsonl").write_bytes(GOOD)
    with pytest.raises(StageError, match=reason) as error:
        convert(tmp_path / "data", tmp_path / "out")
    assert "\n" not in str(error.value)
    kept = ["out.rejected.jsonl"] if "columns" in reason else []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", *kept]


def test_a_null_that_was_a_number_is_refused_and_one_that_was_null_is_kept(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "x", "limit": %s}}\n</tool_call>'
    turns = [[Turn("user", "q"), Turn("assistant", call % value)] for value in ("null", "Infinity", "1.5")]
    rows = [json.dumps({"text": join_chatml(each)}) for each in turns]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows), "utf-8")
    (tmp_path / "data" / "valid.jsonl").write_bytes(GOOD)
    convert(tmp_path / "data", tmp_path / "out")
    kept = read_rows(tmp_path / "out" / "train.jsonl")
    limits = [row["messages"][-1]["tool_calls"][0]["function"]["arguments"]["limit"] for row in kept]
    assert limits == [None, 1.5]
    (rejected,) = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert rejected["line"] == 2


# A share for validation


@pytest.mark.parametrize("fixes", [FAIR, FLAWED], ids=["fair", "flawed"])
def test_a_share_is_set_aside_with_its_duplicates(
    fixes: FixSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", 50_000)
    lines = (CORPUS / "train.jsonl").read_bytes().splitlines()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines * 3))
    outcome = convert(path, tmp_path / "out", Request(valid_share=0.2, workers=1), fixes)
    splits = {
        split: (tmp_path / "out" / f"{split}.jsonl").read_bytes().splitlines() for split in ("train", "valid")
    }
    assert not set(splits["train"]) & set(splits["valid"])
    assert sum(map(len, splits.values())) == 3 * len(lines)
    assert 0.13 < len(splits["valid"]) / (3 * len(lines)) < 0.27
    assert set(Counter(splits["valid"]).values()) <= {3, 6, 9, 12}
    assert {name: each["converted"] for name, each in outcome.facts.items()} == {
        name: len(rows) for name, rows in splits.items()
    }
    again = convert(path, tmp_path / "again", Request(valid_share=0.2, workers=1), fixes)
    other = convert(path, tmp_path / "other", Request(valid_share=0.2, workers=1), fixes, seed=1)
    require_same(contents(again.folder), contents(outcome.folder))
    assert [require_artifact(o.folder, "convert_data", "").seed for o in (outcome, other)] == [0, 1]
    assert contents(other.folder)["valid.jsonl"] != contents(outcome.folder)["valid.jsonl"]


def test_without_a_valid_split_if_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    assert list(convert(path, tmp_path / "out", Request(valid_share=0)).facts) == ["train"]
    assert require_artifact(tmp_path / "out", "convert_data", "").seed is None, "nothing is drawn"
    assert not (tmp_path / "out" / "valid.jsonl").exists()
    with pytest.raises(StageError, match=r"--valid-share 0\.5 leaves a split without a row"):
        convert(path, tmp_path / "two", Request(valid_share=0.5))
