"""Start the ranks of a run on other machines, by mlx.launch."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.core.errors import StageError
from stages.train.lifeline import LAUNCHER, SAVING, STDIN, exit_code, hear_signals

# What a rank on another machine has to know. No keys: anyone there could read them.
PASSED_ON = ("FAIR_RETEST_ARTIFACTS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRACKIO_DIR")
_ENDED_BADLY = re.compile(r"Node with rank \d+ (?:exited with code (?P<code>\d+)|was killed)")


def launch_there(names: Sequence[str], backend: str, command: Sequence[str]) -> int:
    """Run a command on hosts; 0, or the exit code of a rank that failed, which mlx.launch says in words.

    mlx.launch has a session of its own, since it dies at a signal without telling the ranks;
    `run_mlx_launch` in it tells them to stop when its stdin is closed.
    """
    with ExitStack() as stack:
        hosts = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hosts.json"
        hosts.write_text(json.dumps(describe_hosts(names, backend)), "utf-8")
        start = "from stages.train.hosts import run_mlx_launch; run_mlx_launch()"
        options = ["--hostfile", str(hosts), "--backend", backend, "--"]
        process = subprocess.Popen(
            [sys.executable, "-c", start, *options, *command],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        stack.enter_context(process)
        stack.enter_context(hear_signals(_stopper(process, stack)))
        code = 0
        for line in process.stderr or ():
            found = _ENDED_BADLY.search(line)
            if found is None:
                sys.stderr.write(line)
            else:
                code = code or int(found["code"] or 1)
        return code or exit_code(process.wait())


def _stopper(process: subprocess.Popen[str], stack: ExitStack) -> Callable[[int], None]:
    """What has a launcher's ranks save their work, and ends it when they cannot be told in that time."""
    give_up = threading.Timer(SAVING + 5.0, process.kill)
    give_up.daemon = True
    stack.callback(give_up.cancel)

    def stop(_number: int) -> None:
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
            give_up.start()

    return stop


def describe_hosts(names: Sequence[str], backend: str) -> dict[str, Any]:
    """mlx.launch's host file: how ssh calls each host, its address, and the variables that ranks get.

    Raises StageError for a name without an address, or with one that the other hosts cannot reach, and
    where there is no mpirun to be used.
    """
    if not all(names):
        raise StageError("--hosts: name each host, as in 10.0.0.1,10.0.0.2")
    if backend == "mpi" and shutil.which("mpirun") is None:
        raise StageError("--backend mpi: there is no mpirun on this machine: install Open MPI, or use ring")
    hosts: list[dict[str, Any]] = [
        {"ssh": name, "ips": [] if backend == "mpi" else [_find_address(name)]} for name in names
    ]
    here = [host for host in hosts if host["ips"] and host["ips"][0].startswith("127.")]
    if 0 < len(here) < len(hosts):
        raise StageError(
            f"--hosts: {here[0]['ssh']} is {here[0]['ips'][0]} here, where the other hosts cannot reach it: "
            "give its address"
        )
    for host in here:
        host["ssh"] = "127.0.0.1"  # so mlx.launch needs no ssh
    passed = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
    return {"hosts": hosts, "envs": [*passed, f"{LAUNCHER}={STDIN}"]}


def _find_address(name: str) -> str:
    """The address of `host` or `user@host`."""
    try:
        return socket.gethostbyname(name.rpartition("@")[2])
    except (OSError, UnicodeError):
        raise StageError(f"--hosts: {name!r} has no address that this machine can find: give it") from None


def run_mlx_launch() -> None:
    """In a process of its own: mlx.launch, with the ranks told to stop when this process's stdin is closed.

    Its exit code is that of mpirun, which mlx.launch drops.
    """
    launch: Any = import_module("mlx._distributed_utils.launch")
    starter, codes = os.dup(0), [0]
    told, tell = os.pipe()
    os.dup2(told, 0)  # what mlx.launch reads there goes to the ranks

    def pass_on() -> None:
        os.read(starter, 1)
        os.write(tell, b"stop\n")

    def run(*command: Any, **options: Any) -> Any:
        done = subprocess.run(*command, **options)
        codes.append(done.returncode)
        return done

    threading.Thread(target=pass_on, daemon=True).start()
    launch.run = run
    launch.main()
    sys.exit(codes[-1])
