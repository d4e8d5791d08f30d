"""The machine: memory, disk, accelerator."""

from __future__ import annotations

import resource
import shutil
import sys
from functools import cache
from pathlib import Path

from stages.core.errors import StageError

GB = 1e9


def peak_memory_gb() -> float:
    """Highest resident memory of this process so far, in GB (1e9 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the process that started this one held at that moment.
        peak_kib = next(
            line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )
        return round(int(peak_kib) * 1024 / GB, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / GB, 3)


def require_disk(folder: Path, needed_gb: float, what: str) -> None:
    """Raise StageError when the disk that will hold `folder` has less than `needed_gb` free."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / GB
    if free_gb < needed_gb:
        raise StageError(
            f"{what} needs about {needed_gb:.2f} GB of disk in {place}, {free_gb:.2f} GB is free: "
            "free some space or choose another place with --out"
        )


@cache
def accelerator() -> str:
    """`metal`, `cuda` or `cpu`: what MLX computes on here."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if sys.platform == "darwin" else "cuda"


def folder_size_gb(folder: Path) -> float:
    """Size of all files below a folder, in GB."""
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / GB, 4)
