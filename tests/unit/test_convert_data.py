"""convert_data as a stage and as a command: every row accounted for, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.convert_data.__main__ import main
from stages.convert_data.converted import HAD_LINE, HAD_NONE, HAD_OTHER
from stages.convert_data.request import Request
from stages.convert_data.stage import CORPUS, convert_data
from stages.core import progress
from stages.core.artifact import MANIFEST, read_manifest
from stages.core.chatml import Turn, join_chatml
from stages.core.cli import Options, Outcome
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.prompts import system_message
from tests.waiting import HANGS, finish, wait_for

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ["card.json", "card.md", MANIFEST, "rejected.jsonl", "train.jsonl", "valid.jsonl"]
GOOD = json.dumps({"text": join_chatml([Turn("user", "Why?"), Turn("assistant", "So.")])})
BROKEN = '{"text": "<|im_start|>user'
# Mounts a disk of argv[1] bytes at argv[2], runs the rest there, and lists what is left on it.
ON_SMALL_DISK = 'mount -t tmpfs -o size=$1 tmpfs $2 && d=$2 && shift 2 && "$@"; code=$?; ls -A $d; exit $code'
IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logs stay in the test's folder, and what a command does to signals stays in the test."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv(progress.LOG_VARIABLE, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def write_data(folder: Path, train: str = GOOD, valid: str = GOOD, test: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (("train", train), ("valid", valid), ("test", test)):
        if text is not None:
            (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return folder


def write_long_data(folder: Path) -> Path:
    """Data that takes seconds to convert: long enough to be interrupted."""
    return write_data(folder, "\n".join((CORPUS / "train.jsonl").read_text("utf-8").splitlines() * 40))


def convert(data: Path, out: Path, fixes: FixSet = FAIR, **more: Any) -> Outcome:
    overrides = {key: more.pop(key) for key in ("system",) if key in more}
    return convert_data(Options(load_preset("smol", overrides), fixes, data=data, out=out, **more))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stages.convert_data", *arguments]


def start(arguments: Sequence[str], *, ignoring_interrupts: bool = False) -> subprocess.Popen[str]:
    """The command in a process of its own; a shell starts background jobs with SIGINT ignored."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    words = (
        [sys.executable, "-c", f"{ignore}os.execv(sys.argv[1], sys.argv[1:])", *arguments]
        if ignoring_interrupts
        else list(arguments)
    )
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=HANGS)


# The stage


def test_the_shipped_corpus_loses_no_row(tmp_path: Path) -> None:
    outcome = convert(CORPUS, tmp_path / "out")
    assert outcome.facts == {
        "train": {"rows": 685, "converted": 685, "rejected": 0},
        "valid": {"rows": 85, "converted": 85, "rejected": 0},
        "test": {"rows": 87, "converted": 87, "rejected": 0},
    }
    assert (tmp_path / "out" / "rejected.jsonl").read_bytes() == b""
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())
    assert card["splits"]["train"]["rows_by_dialect"] == {
        "qwen3_coder": 415,
        "no call": 208,
        "bare_python": 62,
    }
    assert card["splits"]["train"]["turns_by_dialect"] == {"qwen3_coder": 419, "bare_python": 62}
    (system,) = card["system_texts"]
    assert system["text"] == system_message(load_preset("smol").model, FAIR).content
    assert system["rows_that_had"] == {
        "train": {HAD_NONE: 80, HAD_LINE: 599, HAD_OTHER: 6},
        "valid": {HAD_NONE: 10, HAD_LINE: 75},
        "test": {HAD_NONE: 10, HAD_LINE: 77},
    }
    assert any("train: 685 rows = 685 converted + 0 rejected" in line for line in outcome.lines)
    assert "| qwen3_coder" in (tmp_path / "out" / "card.md").read_text("utf-8")


def test_without_any_fix_the_rows_stay_as_they_are(tmp_path: Path) -> None:
    convert(CORPUS, tmp_path / "out", FLAWED)
    for split in ("train", "valid", "test"):
        assert read_rows(tmp_path / "out" / f"{split}.jsonl") == read_rows(CORPUS / f"{split}.jsonl")


def test_a_broken_line_is_kept_with_its_number(tmp_path: Path) -> None:
    data = write_data(
        tmp_path / "data", f"{GOOD}\n\n{BROKEN}\r\n{GOOD}\r\n[]\n", GOOD, f'{{"text": ""}}\n{GOOD}'
    )
    outcome = convert(data, tmp_path / "out")
    assert outcome.facts["train"] == {"rows": 4, "converted": 2, "rejected": 2}
    rejected = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert [(row["split"], row["line"]) for row in rejected] == [("train", 3), ("train", 5), ("test", 1)]
    assert rejected[0]["row"].rstrip("\r") == BROKEN
    assert [row["reason"] for row in rejected[1:]] == ["not a JSON object", "no turns"]
    assert len(read_rows(tmp_path / "out" / "train.jsonl")) == 2
    assert len(read_rows(tmp_path / "out" / "test.jsonl")) == 1
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.facts == outcome.facts


@pytest.mark.parametrize(
    "value", ["123456789012345678901234567890", r'"\ud800"', "NaN", "1e999", r'{"\udfff": 1}']
)
def test_what_json_cannot_hold_is_refused_and_not_changed(value: str, tmp_path: Path) -> None:
    call = f'<tool_call>\n{{"name": "execute_code", "arguments": {{"code": {value}}}}}\n</tool_call>'
    row = {"text": join_chatml([Turn("user", "q"), Turn("assistant", call)])}
    data = write_data(tmp_path / "data", f"{GOOD}\n{json.dumps(row)}")
    outcome = convert(data, tmp_path / "out")
    assert outcome.facts["train"] == {"rows": 2, "converted": 1, "rejected": 1}
    (rejected,) = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert rejected["line"] == 2
    assert "JSON cannot hold" in rejected["reason"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "train.jsonl").write_bytes(GOOD.encode() + b'\n{"text": "\xff\xfe"}\n')
    convert(data, tmp_path / "out")
    (rejected,) = read_rows(tmp_path / "out" / "rejected.jsonl")
    assert rejected["row"] == '{"text": "\\xff\\xfe"}'
    assert rejected["reason"] == "not UTF-8 text: byte 0xff at position 11 of the row"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"train": ""}, "train.jsonl is empty: give it at least one row"),
        ({"valid": ""}, "valid.jsonl is empty: give it at least one row"),
        ({"valid": None}, "has no valid.jsonl: training needs train.jsonl and valid.jsonl"),
        ({"train": None}, "has no train.jsonl: training needs"),
        ({"train": "\n\n \n"}, "no row of"),
        ({"valid": "\n"}, "no row of"),
        ({"train": f"{BROKEN}\n{BROKEN}\n3"}, "could be converted: not valid JSON: unexpected end"),
        (
            {"train": "\n" * 14 + '{"text": "\\ud800"}'},
            "not valid JSON: no low surrogate in string at character 11 of the row (1 row, first 15)",
        ),
        (
            {"valid": "[]\n{}\n[]"},
            "could be converted: not a JSON object (2 rows, first 1); no conversation in",
        ),
    ],
)
def test_unusable_data_is_said_in_one_line(
    files: dict[str, Any], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", **({"train": GOOD, "valid": GOOD} | files))
    assert main(["--data", str(data), "--out", str(tmp_path / "deep" / "out")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("convert_data: ")
    assert reason in error
    assert error.count("\n") == 1
    left = list((tmp_path / "deep").iterdir() if (tmp_path / "deep").exists() else ())
    assert [path.name for path in left] == (["out.rejected.jsonl"] if "JSON" in reason else [])
    assert all(str(path) in error for path in left)


def test_rows_that_were_all_rejected_can_be_read(tmp_path: Path) -> None:
    data, out, beside = tmp_path / "data", tmp_path / "out", tmp_path / "out.rejected.jsonl"
    write_data(data, f"{BROKEN}\n\n3", f"{GOOD}\n{BROKEN}")
    for _ in range(2):
        with pytest.raises(StageError, match=r"^no row of .* why they were rejected are in .*out"):
            convert(data, out)
        rejected = read_rows(beside)
        places = [(row["split"], row["line"], row["row"]) for row in rejected]
        assert places == [("train", 1, BROKEN), ("train", 3, "3"), ("valid", 2, BROKEN)]
        assert all(row["reason"] for row in rejected)
        assert names(tmp_path) == ["data", "out.rejected.jsonl"]
    convert(write_data(data), out)
    assert not beside.exists(), "they are no longer those of the data"


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_said(name: str, coding: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    text = f"\ufeff{GOOD}\n".encode(coding)
    (data / "train.jsonl").unlink()
    (data / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(StageError, match=rf"^{name} is UTF-16: save it as UTF-8$"):
        convert(data, tmp_path / "out")


def test_no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"no data folder or file .*none: give one with train\.jsonl, valid\.jsonl"
    ):
        convert(tmp_path / "none", tmp_path / "out")


TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


def test_all_arms_have_the_same_rows(tmp_path: Path) -> None:
    answers = [
        '<tool_call>\n{"name": "search", "arguments": {"q": 1}}\n</tool_call>',
        "<｜tool▁calls▁begin｜>search",
        "Action: search\nAction Input: x",
        '<tool_call>\n{"name": "search", "arguments": {"q": \n</tool_call>',
        "Such as `<tool_use>` around it.",
        "<function=search>\n<parameter=q>\n1\n</parameter>\n</function>\n</tool_call>",
        "So.",
    ]
    turns = [[Turn("user", f"Why {n}?"), Turn("assistant", said)] for n, said in enumerate(answers)]
    rows = [json.dumps({"text": join_chatml(each), "tools": TOOLS}) for each in turns]
    data = write_data(tmp_path / "data", "\n".join(rows), test=rows[5])
    seen = set()
    for fixes in (FAIR, FLAWED, ("json",), ("tools",)):
        out = tmp_path / "-".join(("out", *fixes))
        convert_data(Options(load_preset("smol"), fixes, data=data, out=out), Request(dedup=True))
        card = json.loads((out / "card.json").read_bytes())["splits"]["train"]
        refused = [(row["line"], row["reason"]) for row in read_rows(out / "rejected.jsonl")]
        removed = [(row["split"], row["line"]) for row in read_rows(out / "duplicates.jsonl")]
        assert [line for line, _ in refused] == [2, 3, 4]
        assert removed == [("train", 6)]
        seen.add(json.dumps([refused, card["turns_that_look_like_a_call"]]))
    assert len(seen) == 1
    assert "Anthropic" in seen.pop()


def test_the_same_again_is_up_to_date_and_anything_else_is_said(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    first = convert(data, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = convert(data, out, seed=5)
    assert (first.up_to_date, again.up_to_date, again.facts) == (False, True, first.facts)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert convert(data, out, ("json", "tools")).up_to_date, "the other fixes do not act here"
    with pytest.raises(StageError, match=r"fixes=\['json', 'tools'\] \(now \[\]\): --force replaces it"):
        convert(data, out, FLAWED)
    with pytest.raises(StageError, match=r"model\.system=.* \(now Other\.\): --force replaces it"):
        convert(data, out, system="Other.")
    with pytest.raises(StageError, match="with other data: --force replaces it"):
        convert(write_data(tmp_path / "data2", f"{GOOD}\n{GOOD}"), out)
    assert names(out) == OUTPUT
    assert convert(data, out, FLAWED, force=True).up_to_date is False
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.recipe.settings["fixes"] == []


# The command


def test_the_command_ends_with_0_and_then_with_up_to_date(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for state in ("done", "up to date"):
        done = run("--data", str(data))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"convert_data: {state} in " in done.stdout
    assert names(tmp_path / "artifacts" / "smol" / "convert_data" / "json+tools") == OUTPUT
    events = [event for path in (tmp_path / "artifacts" / "logs").iterdir() for event in read_rows(path)]
    ends = sorted((event["time"], event["up_to_date"]) for event in events if event["event"] == "end")
    assert [up_to_date for _, up_to_date in ends] == [False, True]


def test_json_alone_is_on_stdout(tmp_path: Path) -> None:
    done = run("--data", str(write_data(tmp_path / "data")), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["train"] == {"rows": 1, "converted": 1, "rejected": 0}
    assert (answer["stage"], answer["folder"], answer["up_to_date"]) == (
        "convert_data",
        str(tmp_path / "out"),
        False,
    )
    assert "train: 1 row = 1 converted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fixes", "jason", "--json"], "unknown fix jason"),
        (["--itres", "3"], "unrecognized arguments: --itres 3"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(arguments: list[str], reason: str, tmp_path: Path) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convert_data: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "ignoring"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_an_interrupt_ends_with_130_and_leaves_nothing_finished(
    number: signal.Signals, ignoring: bool, tmp_path: Path
) -> None:
    data, out = write_long_data(tmp_path / "data"), tmp_path / "deep" / "out"
    process = start(command("--data", str(data), "--out", str(out)), ignoring_interrupts=ignoring)
    wait_for(out.parent / ".out.partial" / "pieces", process)
    process.send_signal(number)
    code, _, error = finish(process)
    assert (code, error.count("\n")) == (130, 1), error
    assert error.startswith("convert_data: interrupted")
    assert names(out.parent) == [".out.partial"]
    (log,) = (tmp_path / "artifacts" / "logs").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["ok"] is False


def test_a_second_process_is_refused_and_kill_9_leaves_nothing_finished(tmp_path: Path) -> None:
    data, out = write_long_data(tmp_path / "data"), tmp_path / "deep" / "out"
    process = start(command("--data", str(data), "--out", str(out)))
    wait_for(out.parent / ".out.partial" / "pieces", process)
    process.send_signal(signal.SIGSTOP)
    second = run("--data", str(data), "--out", str(out))
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another process is writing" in second.stderr
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert not out.exists()
    assert read_manifest(out) is None
    write_data(data)
    with pytest.raises(StageError, match="an unfinished run with other data is in"):
        convert(data, out)
    assert convert(data, out, force=True).facts["train"]["rows"] == 1
    assert names(out) == OUTPUT
    assert names(out.parent) == ["out"]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no namespace of one's own in which to mount a small disk",
)
@pytest.mark.parametrize(
    ("size", "rows", "reason"),
    [
        ("1m", 1, "needs about 10 MB of disk in"),
        # Such short rows grow thirteenfold with the tools, more than the estimate of fourfold.
        ("15600k", 16_000, "No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_finished(
    size: str, rows: int, reason: str, tmp_path: Path
) -> None:
    data, disk = write_data(tmp_path / "data"), tmp_path / "disk"
    (data / "train.jsonl").write_text(f"{GOOD}\n" * rows)
    disk.mkdir()
    done = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", ON_SMALL_DISK, "sh", size, str(disk),
         *command("--data", str(data), "--out", str(disk / "out"), "--json")],
        cwd=ROOT, env=os.environ | {"FAIR_RETEST_ARTIFACTS": str(tmp_path / "artifacts")},
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("convert_data: ")
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout in ("", ".out.partial\n"), "neither JSON nor a finished output on the disk"


def test_a_file_of_tools_and_a_folder_without_a_model_are_said_to_be_that(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "train.jsonl").unlink()
    (data / "train.json").write_text(json.dumps({"tools": TOOLS}, indent=2), "utf-8")
    with pytest.raises(StageError, match=r"^train\.json is one JSON object over several lines: .* --tools$"):
        convert(data, tmp_path / "out")
    (data / "train.json").write_text(f"\ufeff[{GOOD}]", "utf-8")
    place = tmp_path / "model"
    place.mkdir()
    with pytest.raises(
        StageError, match=r"^--render: .*model has no config\.json, so it is no model folder: gi"
    ):
        convert_data(
            Options(load_preset("smol"), FAIR, data=data, out=tmp_path / "o"), Request(render=str(place))
        )
