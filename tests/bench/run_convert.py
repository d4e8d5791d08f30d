"""One side of the conversion benchmark: `SIDE FILE CORES`, where SIDE is a key of SIDES."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from stages.convert_data.request import Request
from stages.convert_data.rows import ConvertContext, convert_row
from stages.convert_data.stage import CORPUS, convert_data
from stages.core.cli import Options
from stages.core.fixes import FAIR
from stages.core.preset import load_preset

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


def run_ours(path: Path, cores: int) -> float:
    """The whole stage, from a file to an output with its card and manifest."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        options = Options(load_preset("smol"), FAIR, data=path, out=Path(folder) / "out")
        started = time.perf_counter()
        convert_data(options, Request(valid_share=0, workers=cores))
        return time.perf_counter() - started


def run_function(path: Path, cores: int) -> float:
    """The function for one row alone: from a line to a line, in this process, nothing written."""
    context = ConvertContext(load_preset("smol").model, FAIR)
    started = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            _ = convert_row(orjson.loads(line), context).line
    return time.perf_counter() - started


def run_orjson(path: Path, cores: int) -> float:
    """The least that any converter in Python does: nothing but reading and writing JSON."""
    started = time.perf_counter()
    with path.open("rb") as lines:
        for line in lines:
            orjson.dumps(orjson.loads(line))
    return time.perf_counter() - started


def run_datasets(path: Path, cores: int) -> float:
    """`datasets.map` with the same function; only the map counts, not the reading of the file."""
    import datasets

    datasets.disable_progress_bars()
    context = ConvertContext(load_preset("smol").model, FAIR)

    def convert(row: dict[str, Any]) -> dict[str, bytes]:
        # A line, as ours writes it: with an object Arrow would be slower still, and add foreign nulls.
        return {"row": convert_row(row, context).line}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=folder)
        started = time.perf_counter()
        rows.map(convert, remove_columns=["text"], num_proc=cores if cores > 1 else None)
        return time.perf_counter() - started


def run_script(path: Path, cores: int) -> float:
    """What one would write in an afternoon: json and a few expressions, right for this corpus alone."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        started = time.perf_counter()
        with path.open() as lines, (Path(folder) / "out.jsonl").open("w") as out:
            for line in lines:
                messages = list(_read_plainly(json.loads(line)["text"]))
                out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        return time.perf_counter() - started


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


SIDES: dict[str, Callable[[Path, int], float]] = {
    "ours": run_ours,
    "function": run_function,
    "orjson": run_orjson,
    "datasets": run_datasets,
    "script": run_script,
}


def cut_rows(path: Path, target: Path, megabytes: float) -> None:
    """The first rows of a file, about so many megabytes."""
    with path.open("rb") as lines, target.open("wb") as out:
        width = path.stat().st_size / sum(1 for _ in path.open("rb"))
        out.writelines(islice(lines, int(megabytes * 1e6 / width)))


if __name__ == "__main__":
    side, path, cores = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print(json.dumps({"seconds": SIDES[side](path, cores)}))
