"""The trackers that a user chose: mlx-lm's callbacks for wandb and swanlab, and one of ours for trackio."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.errors import StageError

PROJECT = "fair-retest"
TRACKERS = ("wandb", "swanlab", "trackio")


class Trackio:
    """trackio in the shape of mlx-lm's callbacks, which do not know it; `others` hear everything as well.

    It writes where `trackio show` looks: into TRACKIO_DIR, or its own default place.
    """

    def __init__(self, name: str, config: dict[str, Any], others: Any) -> None:
        import trackio

        self._run = trackio.init(PROJECT, name=name, config=config, embed=False)
        self._others = others

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """Log a line of the training."""
        self._run.log(info, step=info["iteration"])
        if self._others is not None:
            self._others.on_train_loss_report(info)

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """Log a line of a validation."""
        self._run.log(info, step=info["iteration"])
        if self._others is not None:
            self._others.on_val_loss_report(info)


def refuse_trackers(names: Sequence[str]) -> None:
    """Raise StageError for a tracker that is unknown or not installed, and start none."""
    for name in names:
        if name not in TRACKERS:
            raise StageError(f"--report-to {name}: use {', '.join(TRACKERS)}")
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, with what a tracker wrote
            raise StageError(f"--report-to {name}: install {name} where train runs, or leave it out")


@contextmanager
def start_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Iterator[Any]:
    """The callbacks of the named trackers, None without any, for the block; a run has the name of `folder`.

    wandb and swanlab write below `folder`. Raises StageError for a tracker that cannot be used.
    """
    if not names:
        yield None
        return
    with redirect_stdout(sys.stderr):  # stdout may be for JSON alone
        callbacks = _make_callbacks(names, folder, config)
    try:
        yield callbacks
    finally:
        with redirect_stdout(sys.stderr):
            for name in names:
                import_module(name).finish()  # which waits until everything is written


def _make_callbacks(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Any:
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    folder.mkdir(parents=True, exist_ok=True)
    others = ",".join(name for name in names if name != "trackio")
    try:
        callbacks = get_reporting_callbacks(others, PROJECT, str(folder), dict(config))
        return Trackio(folder.name, dict(config), callbacks) if "trackio" in names else callbacks
    except (ValueError, ImportError) as error:
        raise StageError(f"--report-to {','.join(names)}: {error}") from None
