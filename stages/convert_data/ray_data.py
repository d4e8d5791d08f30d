"""The pieces on a Ray cluster: Ray Data hands them to its nodes and repeats those of a node that is lost.

A piece is worked on by the same function as on one machine. Its rows never go through Ray, which would
put them into Arrow structs: every node reads the data and writes the results itself, so the data and
the output must lie where all nodes see them under the same path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import stages
from stages.convert_data.local import LostWorker
from stages.convert_data.offers import ToolsUnclear
from stages.convert_data.pieces import Piece
from stages.convert_data.work import Task, Work
from stages.core import progress
from stages.core.errors import StageError
from stages.core.words import plural


def run_on_ray(task: Task, pieces: Sequence[Piece], work: Work, workers: int) -> Iterator[int]:
    """Do the task on the cluster that RAY_ADDRESS names and yield the rows of each piece as it is done.

    Without RAY_ADDRESS a cluster of `workers` processes is started on this machine.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError:
        raise StageError(
            "--engine ray needs the dependency group ray: run nox -s convert_data -- --engine ray"
        ) from None
    _connect(workers)
    nodes = set()

    def do_task(row: dict[str, Any]) -> dict[str, Any]:
        done = {"rows": 0, "node": ray.get_runtime_context().get_node_id(), "mistake": "", "unclear": ""}
        try:  # both as values: Ray would wrap them in its own
            done["rows"] = task(pieces[row["item"]], work)
        except StageError as error:
            done["mistake"] = str(error)
        except ToolsUnclear as error:
            done["unclear"] = str(error)
        return done

    try:
        # One block a piece, so that a piece is a task.
        items = ray.data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
        for done in items.map(do_task).iter_rows():
            if done["mistake"]:
                raise StageError(done["mistake"])
            if done["unclear"]:
                raise ToolsUnclear(done["unclear"])
            nodes.add(done["node"])
            yield done["rows"]
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise LostWorker(f"Ray gave up ({reason}); the same command goes on") from None
    progress.say(f"  done on {plural(len(nodes), 'node')}: {plural(len(pieces), 'piece')}")


def _connect(workers: int) -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if not ray.is_initialized():
        # Nodes elsewhere get this package sent.
        code = {"py_modules": [str(Path(stages.__file__).parent)]}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(runtime_env=code, log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, runtime_env=code, log_to_driver=False)
