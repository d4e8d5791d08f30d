"""Start the ranks of a run: here with `--ranks N`, on other machines with `--hosts A,B` by mlx.launch."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from stages.core.cli import Parser
from stages.core.cpu.blocks import THREADS, count_cores
from stages.core.errors import StageError

POLL = 0.1  # seconds
SAYING, SAVING = 5.0, 60.0  # seconds that the other ranks get to end when one has, before they must
Process = subprocess.Popen[bytes] | subprocess.Popen[str]
_ENDED_BADLY = re.compile(r"Node with rank \d+ (?:exited with code (?P<code>\d+)|was killed)")
VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # of the ring, NCCL and MPI launchers


@dataclass(frozen=True)
class Launch:
    """Where the work is done; none of it changes a result."""

    ranks: int
    hosts: str | None
    backend: str


def read_launch(argv: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """What the options say about processes, None for this one alone, and the other options.

    Raises StageError for a number below 1, and for `--ranks` together with `--hosts`.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--hosts")
    parser.add_argument("--backend", choices=["ring", "mpi", "nccl"], default="ring")
    found, rest = parser.parse_known_args(list(argv))
    if found.ranks is not None and found.hosts:
        raise StageError("--ranks counts processes here and --hosts names machines: use one of them")
    if found.ranks is not None and found.ranks < 1:
        raise StageError(f"--ranks {found.ranks}: use 1 or more")
    alone = not found.hosts and (found.ranks or 1) == 1
    return None if alone else Launch(found.ranks or 1, found.hosts, found.backend), rest


@contextmanager
def stay_quiet() -> Iterator[None]:
    """In a process that does not lead its group: nothing on stdout, which is the leader's."""
    if next((os.environ[name] for name in VARIABLES if name in os.environ), "0") == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def launch_ranks(launch: Launch, argv: Sequence[str]) -> int:
    """Run this stage in several processes; the exit code of the first that failed, or 0."""
    command = [sys.executable, "-m", "stages.train", *argv]
    return _launch_there(launch, command) if launch.hosts else launch_here(launch.ranks, command)


def _launch_there(launch: Launch, command: list[str]) -> int:
    """Let mlx.launch do it, which tells how a rank ended in its messages alone."""
    start = "from mlx._distributed_utils.launch import main; main()"
    launcher = [
        *(sys.executable, "-c", start, "--hosts", str(launch.hosts), "--backend", launch.backend),
        *("--", *command),
    ]
    code = 0
    process = subprocess.Popen(launcher, stderr=subprocess.PIPE, text=True)
    with process, forward_signals([process]):
        for line in process.stderr or ():
            found = _ENDED_BADLY.search(line)
            if found is None:
                sys.stderr.write(line)
            else:
                code = code or int(found["code"] or 1)
    return code or process.returncode


def launch_here(count: int, command: list[str]) -> int:
    """Run a command as ranks that find each other on loopback; 0, or the exit code of one that failed."""
    with ExitStack() as stack:
        hosts = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]), "utf-8")
        shared = os.environ | {"MLX_HOSTFILE": str(hosts), THREADS: str(max(count_cores() // count, 1))}
        said = [stack.enter_context((hosts.parent / str(rank)).open("w+")) for rank in range(1, count)]
        ranks: list[Process] = [
            subprocess.Popen(command, env=shared | {"MLX_RANK": str(rank)}, stderr=where)
            for rank, where in enumerate([None, *said])
        ]
        with forward_signals(ranks):
            code = _wait(ranks)
        if code and ranks[0].returncode not in (2, 130):  # else rank 0 has said what happened
            for file in said:
                file.seek(0)
                sys.stderr.write(file.read())
        return code


def _wait(ranks: list[Process]) -> int:
    """Wait for all. When one ends badly the others would wait for it for ever: they are stopped.

    A mistake in the options or the data ends all of them, and rank 0 has to say so first.
    """
    failed_at, measures = None, [(SAYING, signal.SIGTERM), (SAVING, signal.SIGKILL)]
    while any(rank.poll() is None for rank in ranks):
        time.sleep(POLL)
        if failed_at is None and any(rank.poll() for rank in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and measures and time.monotonic() - failed_at > measures[0][0]:
            _signal(ranks, measures.pop(0)[1])
    codes = [rank.returncode for rank in ranks]
    return next((exit_code(code) for code in codes if code), 0)


def exit_code(code: int) -> int:
    """A process's return code as a shell has it: 128 and the number of the signal that ended it."""
    return code if code >= 0 else 128 - code


def _signal(ranks: list[Process], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


@contextmanager
def forward_signals(ranks: list[Process]) -> Iterator[None]:
    """What would stop this process stops the ranks, which save their work first."""

    def forward(number: int, _frame: FrameType | None) -> None:
        _signal(ranks, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
