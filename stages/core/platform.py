"""The machine: memory, disk, accelerator."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from stages.core.errors import StageError

GB = 1e9
ELSEWHERE = "choose another place with FAIR_RETEST_ARTIFACTS"
CGROUP = Path("/sys/fs/cgroup")  # of a container, where the kernel mounts it
SHARE_VARIABLE = "FAIR_RETEST_MEMORY"  # GB for a stage that has another beside it, set by who starts both


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


def require_disk(
    folder: Path, needed_gb: float, what: str, elsewhere: str = "choose another place with --out"
) -> None:
    """Raise StageError when the disk that will hold `folder` has less than `needed_gb` free.

    A place such as /proc has no disk at all.
    """
    place = existing_part(folder)
    disk = shutil.disk_usage(place)
    free_gb = disk.free / GB
    if free_gb < needed_gb and (disk.total == 0 or not os.access(place, os.W_OK)):
        raise StageError(f"nothing can be written in {place}: {elsewhere}")
    if free_gb < needed_gb:
        raise StageError(
            f"{what} needs about {describe_gb(needed_gb)} of disk in {place}, "
            f"{describe_gb(free_gb)} is free: free some space or {elsewhere}"
        )


def describe_gb(size_gb: float) -> str:
    """A size in the unit that shows it: `1.25 GB`, `12 MB`."""
    return f"{size_gb:.2f} GB" if size_gb >= 0.1 else f"{size_gb * 1000:.0f} MB"


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, of which neither need exist yet, lie on the same disk."""
    return existing_part(one).stat().st_dev == existing_part(other).stat().st_dev


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def require_memory(needed_gb: float, what: str, device_free_gb: float | None = None) -> None:
    """Raise StageError when less than `needed_gb` is available, on a device with its own memory there.

    `needed_gb` is what has to be held at the least: a run that could go well is not refused.
    """
    free_gb = available_memory_gb() if device_free_gb is None else device_free_gb
    if free_gb < needed_gb:
        raise StageError(
            f"{what} takes {needed_gb:.1f} GB of memory, {free_gb:.1f} GB is available: close other "
            "programs, or take a smaller model or a machine with more memory"
        )


def available_memory_gb() -> float:
    """Memory that this process can still get, in GB: the machine's, or its container's if that is less.

    Of a share (SHARE_VARIABLE) it is what this process has not taken yet: what lies free may be another's.
    """
    free = psutil.virtual_memory().available
    if share := os.environ.get(SHARE_VARIABLE):
        free = min(free, int(float(share) * GB) - psutil.Process().memory_info().rss)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - int(used["anon"]))  # what files take there is given back when needed
    except (OSError, ValueError, KeyError):
        pass  # no container, or one without a limit ("max")
    return round(max(free, 0) / GB, 3)


def machine_memory_gb() -> float:
    """Memory that this process may use in all, in GB: the machine's, or its container's if that is less."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int((CGROUP / "memory.max").read_text()))
    return round(total / GB, 3)


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
