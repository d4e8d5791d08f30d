"""The conversion beside JSON alone, `datasets.map` with the same function, and a plain script."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tabulate import tabulate

from tests.bench.run_convert import write_rows

SAMPLE_EVERY = 0.1  # seconds between looks at the memory; each goes through all processes
SIDES = (
    ("orjson loads and dumps", "orjson", 1),
    ("loads, a cut at the marks of turns, dumps", "bare", 1),
    ("our function alone", "function", 1),
    ("convert_data", "ours", 1),
    ("convert_data", "ours", 2),
    ("datasets.map, the same function", "datasets", 1),
    ("datasets.map, the same function", "datasets", 2),
    ("the same, batched", "datasets_batched", 1),
    ("the same, batched", "datasets_batched", 2),
    ("a plain json and re script", "script", 1),
)


@dataclass(frozen=True)
class Speed:
    """What one side took for the rows, from the file to the file where it writes one."""

    name: str
    side: str
    cores: int
    megabytes: float
    """Of 1e6 bytes."""
    seconds: float
    cpu: float
    """Seconds of all cores together."""
    peak_mb: float
    digest: str
    """SHA-256 of the rows written; empty where none are."""
    map: float = 0.0
    """Seconds of `datasets.map` alone."""


def show_conversion(megabytes: float) -> int:
    """Measure all sides on the same rows and print what each took."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, megabytes)
        sides = [_measure(name, side, rows, cores) for name, side, cores in SIDES]
    json_alone = sides[0].megabytes / sides[0].cpu
    table = [
        [
            s.name,
            s.cores,
            f"{s.megabytes / s.seconds:.1f}",
            f"{s.megabytes / s.cpu:.1f}",
            f"{s.megabytes / s.cpu / json_alone:.1%}",
            f"{s.peak_mb:.0f}",
        ]
        for s in sides
    ]
    head = ["", "processes", "MB/s", "MB per CPU second", "of orjson", "peak memory of all processes, MB"]
    print(tabulate(table, headers=head, tablefmt="github", disable_numparse=True))
    print("\n".join(_compare(sides)))
    return 0


def _compare(sides: list[Speed]) -> list[str]:
    """Ours beside `datasets`, which must have written the same bytes."""
    ours = {s.cores: s for s in sides if s.side == "ours"}
    lines = []
    for s in sides:
        if s.side.startswith("datasets"):
            mine = ours[s.cores]
            if s.digest != mine.digest:
                raise SystemExit(f"{s.name} wrote other rows than convert_data")
            lines.append(
                f"{s.name}, {s.cores}: convert_data took {mine.seconds:.1f} s, it {s.seconds:.1f} s = "
                f"{s.seconds / mine.seconds:.1f} times as long ({s.cpu / mine.cpu:.1f} in CPU time); its map "
                f"alone {s.map:.1f} s = {s.map / mine.seconds:.1f} times"
            )
    return lines


def _measure(name: str, side: str, rows: Path, cores: int) -> Speed:
    """Run one side in a process of its own and watch the memory of all its processes together."""
    print(f"{name}, {cores} …", flush=True)
    command = [sys.executable, "-m", "tests.bench.run_convert", side, str(rows), str(cores)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, family = 0, psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _memory(family))
        time.sleep(SAMPLE_EVERY)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name} failed")
    told = json.loads(out.splitlines()[-1])
    return Speed(name, side, cores, rows.stat().st_size / 1e6, peak_mb=peak / 1e6, **told)


def _memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its children; pages that they share are counted in each."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # ended between the two calls
    return total
