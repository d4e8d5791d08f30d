"""Start the ranks of a run: here with `--ranks N`, on other machines with `--hosts A,B`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from stages.core import progress
from stages.core.blas import count_cpus
from stages.core.cli import Options, Parser
from stages.core.cpu.blocks import THREADS, count_cores
from stages.core.errors import INTERRUPTED_CODE, StageError
from stages.core.preset import describe_lack
from stages.core.progress import LOG_VARIABLE
from stages.core.words import plural
from stages.train.hosts import launch_there
from stages.train.lifeline import (
    LAUNCHER,
    MPI_VARIABLES,
    SAVING,
    Process,
    exit_code,
    forward_signals,
    open_lifeline,
    signal_all,
)

POLL = 0.1  # seconds
SAYING = 5.0  # seconds that the other ranks get to say why they end when one has
VARIABLES = ("MLX_RANK", *MPI_VARIABLES)  # of the ring and NCCL, and of the MPI launchers


@dataclass(frozen=True)
class Launch:
    """Where the work is done; without dropout none of it changes a result."""

    ranks: int
    hosts: str | None
    backend: str

    @property
    def names(self) -> list[str]:
        """The machines; none for processes of this one."""
        return [name.strip() for name in self.hosts.split(",")] if self.hosts else []

    @property
    def size(self) -> int:
        """How many processes take part."""
        return len(self.names) or self.ranks


@dataclass(frozen=True)
class Place:
    """The machines that take part, None for this one alone, and how they talk."""

    hosts: str | None = None
    backend: str = "ring"


def add_place(parser: argparse.ArgumentParser) -> None:
    """The flags about machines."""
    group = parser.add_argument_group("several machines")
    group.add_argument(
        "--hosts", metavar="A,B,…", help="share the work between these machines, reached over ssh"
    )
    group.add_argument(
        "--backend",
        choices=["ring", "mpi", "nccl"],
        default=Place.backend,
        help="how the machines of --hosts talk (%(default)s)",
    )


def read_place(argv: Sequence[str]) -> tuple[Place, list[str]]:
    """What the options say about machines, and the other options."""
    parser = Parser(add_help=False, allow_abbrev=False)
    add_place(parser)
    found, rest = parser.parse_known_args(list(argv))
    return Place(found.hosts, found.backend), rest


def choose_launch(options: Options, place: Place, *, on_cpu: bool) -> Launch | None:
    """The processes of a run; None for this one alone.

    A preset's number of ranks is meant for CPUs: a GPU gets one, unless `--ranks` says otherwise.
    Raises StageError for `--ranks` together with `--hosts`, another `--backend` without them, and for one
    host or more than a batch has rows.
    """
    asked = "ranks" in options.overrides
    if place.hosts and asked:
        raise StageError("--ranks counts processes here and --hosts names machines: use one of them")
    if place.hosts:
        launch = Launch(1, place.hosts, place.backend)
        if launch.size == 1:
            raise StageError(f"--hosts {place.hosts} is one machine: name several, or train there without it")
        if launch.size > (rows := options.preset.train.batch_size):
            raise StageError(
                f"--hosts {place.hosts}: {describe_lack(rows)}: name fewer or raise --batch-size"
            )
        return launch
    if place.backend != Place.backend:
        raise StageError(
            f"--backend {place.backend} is how several machines talk, and processes of this one use ring: "
            "name the machines with --hosts, or leave it out"
        )
    preset = min(options.preset.train.ranks, count_cores()) if on_cpu else 1
    ranks = options.preset.train.ranks if asked else preset
    return Launch(ranks, None, place.backend) if ranks > 1 else None


def warn_of_crowd(launch: Launch, cores: int | None = None) -> list[str]:
    """A line where processes here outnumber the `cores`, by default the machine's, not a BLAS's."""
    cores = count_cpus() if cores is None else cores
    if launch.hosts or launch.ranks <= cores:
        return []
    return [
        f"WARNING: --ranks {launch.ranks} are more than this machine's {plural(cores, 'core')}, "
        "and take turns on them"
    ]


def in_group() -> bool:
    """Whether this process was started as one of several."""
    return any(name in os.environ for name in VARIABLES)


@contextmanager
def stay_quiet() -> Iterator[None]:
    """In a process that does not lead its group: nothing on stdout or in the log, which are the leader's."""
    if next((os.environ[name] for name in VARIABLES if name in os.environ), "0") == "0":
        yield
        return
    os.environ[LOG_VARIABLE] = os.devnull
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def launch_ranks(launch: Launch, argv: Sequence[str]) -> int:
    """Run this stage in several processes; the exit code of the first that failed, or 0."""
    command = [sys.executable, "-m", "stages.train", *argv]
    for line in warn_of_crowd(launch):
        progress.say(f"  {line}")
    if launch.hosts:
        return launch_there(launch.names, launch.backend, command)
    return launch_here(launch.ranks, command)


def launch_here(count: int, command: list[str]) -> int:
    """Run a command as ranks that find each other on loopback; 0, or the exit code of one that failed."""
    with ExitStack() as stack:
        hosts = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]), "utf-8")
        alive = stack.enter_context(open_lifeline())
        shared = os.environ | {
            "MLX_HOSTFILE": str(hosts),
            THREADS: str(max(count_cores() // count, 1)),
            LAUNCHER: str(alive),
        }
        said = [stack.enter_context((hosts.parent / str(rank)).open("w+")) for rank in range(1, count)]
        ranks: list[Process] = [
            subprocess.Popen(command, env=shared | {"MLX_RANK": str(rank)}, stderr=where, pass_fds=[alive])
            for rank, where in enumerate([None, *said])
        ]
        with forward_signals(ranks) as told:
            code = _wait(ranks, told)
        if code and ranks[0].returncode not in (2, INTERRUPTED_CODE):  # else rank 0 has said what happened
            for file in said:
                file.seek(0)
                sys.stderr.write(file.read())
        return code


def _wait(ranks: list[Process], told: threading.Event) -> int:
    """Wait for all. When one ends badly the others would wait for it for ever: they are stopped.

    A mistake in the options or the data ends all of them, and rank 0 has to say so first. Ranks that
    were `told` to stop are not told again: the second signal could meet a process that is just leaving.
    """
    failed_at, measures = None, [(SAYING, signal.SIGTERM), (SAVING, signal.SIGKILL)]
    while any(rank.poll() is None for rank in ranks):
        time.sleep(POLL)
        if failed_at is None and (told.is_set() or any(rank.poll() for rank in ranks)):
            failed_at, measures = time.monotonic(), measures[told.is_set() :]
        if failed_at is not None and measures and time.monotonic() - failed_at > measures[0][0]:
            signal_all(ranks, measures.pop(0)[1])
    codes = [rank.returncode for rank in ranks]
    return next((exit_code(code) for code in codes if code), 0)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
