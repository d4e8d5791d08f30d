"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder, each whole; none is replaced before all are written.

    Raises OSError, naming a file, where the disk is full; nothing of the attempt is left then.
    """
    partials = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, data in files.items():
            _write(partials[path], data, path)
        for path, partial in partials.items():
            partial.replace(path)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def _write(partial: Path, data: bytes, path: Path) -> None:
    try:
        partial.write_bytes(data)
    except OSError as error:  # a write that fails names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
