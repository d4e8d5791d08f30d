"""One side of the conversion benchmark: `SIDE FILE CORES`, where SIDE is a key of SIDES.

A side gets the file of rows, an empty folder for what it writes, and how many processes it may use.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import orjson

from stages.convert_data.offers import ConvertContext
from stages.convert_data.request import Request
from stages.convert_data.rows import convert_row
from stages.convert_data.stage import CORPUS, convert_data
from stages.core.cli import Options
from stages.core.fixes import FAIR
from stages.core.preset import load_preset

Times = dict[str, float]
"""`seconds` from the file to the end, and `map` of that in `datasets.map` alone."""

_MARKS = re.compile(r"<\|im_start\|>|<\|im_end\|>\n?")
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_XML = re.compile(r"<function=(\w+)>\s*<parameter=(\w+)>\n(.*?)\n</parameter>\s*</function>", re.DOTALL)
_BARE = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def write_rows(path: Path, megabytes: float) -> None:
    """Rows of the shipped corpus over and over, every one with a question and a length of its own."""
    texts = [
        json.loads(line)["text"]
        for split in ("train", "valid", "test")
        for line in (CORPUS / f"{split}.jsonl").read_bytes().splitlines()
    ]
    written, number = 0, 0
    with path.open("wb", buffering=1 << 20) as file:
        while written < megabytes * 1e6:
            text = texts[number % len(texts)].replace(
                "<|im_start|>user\n", f"<|im_start|>user\n{number}: ", 1
            )
            number += 1
            written += file.write(orjson.dumps({"text": text}) + b"\n")


def run_ours(path: Path, out: Path, cores: int) -> Times:
    """The whole stage, from a file to an output with its card and manifest."""
    options = Options(load_preset("smol"), FAIR, data=path, out=out)
    started = time.perf_counter()
    convert_data(options, Request(valid_share=0, workers=cores))
    return {"seconds": time.perf_counter() - started}


def run_function(path: Path, out: Path, cores: int) -> Times:
    """The function for one row alone: from a line to a line, in this process, nothing written."""
    context = ConvertContext(load_preset("smol").model, FAIR)
    started = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            _ = convert_row(orjson.loads(line), context).line
    return {"seconds": time.perf_counter() - started}


def run_orjson(path: Path, out: Path, cores: int) -> Times:
    """Nothing but reading and writing JSON."""
    started = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            orjson.dumps(orjson.loads(line))
    return {"seconds": time.perf_counter() - started}


def run_bare(path: Path, out: Path, cores: int) -> Times:
    """The least that a converter in Python does: JSON, a cut at the marks of turns, JSON."""
    started = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            orjson.dumps(_MARKS.split(orjson.loads(line)["text"]))
    return {"seconds": time.perf_counter() - started}


def run_datasets(path: Path, out: Path, cores: int, *, batched: bool = False) -> Times:
    """`datasets` with the same function, from the same file to the same lines."""
    import datasets

    datasets.disable_progress_bars()
    context = ConvertContext(load_preset("smol").model, FAIR)

    # A line, as ours writes it: with an object Arrow would be slower still, and add foreign nulls.
    def convert(row: dict[str, Any]) -> dict[str, bytes]:
        return {"row": convert_row(row, context).line}

    def convert_many(rows: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"row": [convert_row({"text": text}, context).line for text in rows["text"]]}

    started = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(out))
    read = time.perf_counter()
    rows = rows.map(
        convert_many if batched else convert,
        remove_columns=["text"],
        num_proc=cores if cores > 1 else None,
        batched=batched,
    )
    mapped = time.perf_counter()
    with (out / "train.jsonl").open("wb") as file:
        for batch in rows.iter(1000):
            file.writelines(batch["row"])
    return {"seconds": time.perf_counter() - started, "map": mapped - read}


def run_script(path: Path, out: Path, cores: int) -> Times:
    """What one would write in an afternoon: json and a few expressions, right for this corpus alone."""
    started = time.perf_counter()
    with path.open() as lines, (out / "train.jsonl").open("w") as file:
        for line in lines:
            messages = list(_read_plainly(json.loads(line)["text"]))
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return {"seconds": time.perf_counter() - started}


def _read_plainly(text: str) -> Iterator[dict[str, Any]]:
    for role, content in _TURN.findall(text):
        if role == "assistant" and "<tool_call>" in content:
            calls = [(name, {key: value}) for name, key, value in _XML.findall(content)]
            calls = calls or [("execute_code", {"code": code}) for code in _BARE.findall(content)]
            functions = [{"function": {"name": name, "arguments": given}} for name, given in calls]
            yield {
                "role": role,
                "content": content.partition("<tool_call>")[0].strip(),
                "tool_calls": functions,
            }
        elif role == "user" and "<tool_response>" in content:
            for result in _RESULT.findall(content):
                yield {"role": "tool", "content": result}
        else:
            yield {"role": role, "content": content}


SIDES: dict[str, Callable[[Path, Path, int], Times]] = {
    "ours": run_ours,
    "function": run_function,
    "orjson": run_orjson,
    "bare": run_bare,
    "datasets": run_datasets,
    "datasets_batched": partial(run_datasets, batched=True),
    "script": run_script,
}


def count_cpu() -> float:
    """Seconds of all cores that this process and its ended children took."""
    return sum(use.ru_utime + use.ru_stime for use in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def digest_rows(folder: Path) -> str:
    """SHA-256 of the rows that were written, in their order; empty where there are none."""
    digest, paths = sha256(), sorted(folder.rglob("train*.jsonl"))
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if paths else ""


def main() -> None:
    """Run a side and print its times and what it wrote as JSON."""
    side, path, cores = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        before = count_cpu()
        times = SIDES[side](path, Path(folder), cores)
        times["cpu"] = count_cpu() - before
        print(json.dumps(times | {"digest": digest_rows(Path(folder))}))


if __name__ == "__main__":
    main()
