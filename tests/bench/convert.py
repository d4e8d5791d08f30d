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

from tests.bench.run_convert import cut_rows, write_rows

SLOW_MB = 100.0  # the slow sides get no more rows than this; their speed does not depend on it
SAMPLE_EVERY = 0.02  # seconds between looks at the memory


@dataclass(frozen=True)
class Speed:
    """What one side took for so many megabytes (1e6 bytes) of rows."""

    name: str
    cores: int
    megabytes: float
    seconds: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """Megabytes of rows a second."""
        return self.megabytes / self.seconds


def show_conversion(megabytes: float) -> int:
    """Measure all sides on the same rows and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        rows, few = Path(folder) / "rows.jsonl", Path(folder) / "few.jsonl"
        write_rows(rows, megabytes)
        cut_rows(rows, few, min(megabytes, SLOW_MB))
        sides = [
            _measure("orjson loads and dumps", "orjson", rows, 1),
            _measure("our function alone", "function", few, 1),
            _measure("convert_data", "ours", rows, 1),
            _measure("convert_data", "ours", rows, 2),
            _measure("datasets.map, the same function", "datasets", few, 1),
            _measure("datasets.map, the same function", "datasets", few, 2),
            _measure("a plain json and re script", "script", few, 1),
        ]
    json_alone = sides[0].rate
    table = [
        [
            s.name,
            s.cores,
            f"{s.megabytes:.0f}",
            f"{s.rate:.1f}",
            f"{s.rate / s.cores / json_alone:.1%}",
            f"{s.peak_mb:.0f}",
        ]
        for s in sides
    ]
    head = ["", "cores", "MB", "MB/s", "of orjson, a core", "peak memory of all processes, MB"]
    print(tabulate(table, headers=head, tablefmt="github", disable_numparse=True))
    return 0


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
    seconds = json.loads(out.splitlines()[-1])["seconds"]
    return Speed(name, cores, rows.stat().st_size / 1e6, seconds, peak / 1e6)


def _memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its children; pages that they share are counted in each."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # ended between the two calls
    return total
