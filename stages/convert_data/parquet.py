"""Rows of Parquet files.

Arrow holds objects of one column in one struct type, so every object gets the keys of all others, with
nulls. Such nulls cannot be told from ones that were written; both are left out here, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from stages.convert_data.sources import Unreadable
from stages.core.errors import StageError

if TYPE_CHECKING:
    import pyarrow

BATCH_BYTES = 1 << 20  # of rows that are objects at the same time
KEPT_NULLS = ("content", "value", "text")  # of a message: no text, which is something else than no key


def measure(path: Path, name: str) -> tuple[int, int]:
    """Rows of a file and their size in bytes. Raises StageError when it is not Parquet."""
    with _open(path, name) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        return file.metadata.num_rows, sum(group.total_byte_size for group in groups)


def read_rows(path: Path, start: int, end: int) -> Iterator[object]:
    """The rows from `start` up to `end` as objects; one that Python cannot hold as Unreadable.

    Raises StageError when the file is damaged.
    """
    import pyarrow

    with _open(path, path.name) as file:
        first = 0
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            if first < end and first + group.num_rows > start:
                width = max(group.total_byte_size // max(group.num_rows, 1), 1)
                at = first
                try:
                    size = max(BATCH_BYTES // width, 1)
                    for batch in file.iter_batches(size, row_groups=[index], use_threads=False):
                        here, there = max(start - at, 0), min(end - at, batch.num_rows)
                        if here < there:
                            yield from _read_batch(batch.slice(here, there - here))
                        at += batch.num_rows
                except (pyarrow.ArrowException, OSError) as error:
                    raise StageError(_describe_damage(path.name, error, at + 1)) from None
            first += group.num_rows


def drop_foreign_nulls(row: dict[str, Any]) -> int:
    """Take the null keys out of a row's messages, calls and tools; returns how many a model could see.

    Of a message itself they mean the same as a missing key, so those are not counted.
    """
    count = 0
    for name in ("messages", "conversations", "prompt", "completion"):
        for message in _objects(row.get(name)):
            for key in [key for key, value in message.items() if value is None and key not in KEPT_NULLS]:
                del message[key]
            count += _prune(message.get("tool_calls")) + _prune(message.get("function_call"))
    return count + sum(_prune(row.get(name)) for name in ("tools", "functions", "answers"))


def _open(path: Path, name: str) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise StageError("Parquet needs the package pyarrow: run nox -s convert_data") from None
    # Arrow's own allocator keeps as much as the whole row group had, page by page.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StageError(_describe_damage(name, error)) from None


def _describe_damage(name: str, error: Exception, row: int = 0) -> str:
    what = str(error).partition("\n")[0].partition(". ")[0]
    place = f" in row {row} or soon after" if row else ""
    return f"{name} is not a whole Parquet file, it breaks{place} ({what}): write or fetch it again"


def _read_batch(batch: pyarrow.RecordBatch) -> Iterator[object]:
    """The rows of a batch; a value that Python cannot hold fails a whole batch, so its rows are read alone.

    Such are text that is not UTF-8 (ValueError), a map with a key twice (KeyError) and a date beyond the
    year 9999 (OverflowError).
    """
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if batch.num_rows > 1:
            for index in range(batch.num_rows):
                yield from _read_batch(batch.slice(index, 1))
        else:
            reason = str(error.args[0] if isinstance(error, KeyError) else error).partition("\n")[0]
            yield Unreadable(reason, (_show_row(batch),))


def _show_row(batch: pyarrow.RecordBatch) -> bytes:
    """A row that cannot be read, as JSON: bytes that are no text as `\\xff`, a map as its pairs."""
    row = {name: _show(column[0]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return orjson.dumps(row, default=str)


def _show(value: pyarrow.Scalar[Any]) -> Any:
    import pyarrow

    if not value.is_valid:
        return None
    if isinstance(value, pyarrow.StringScalar | pyarrow.LargeStringScalar | pyarrow.StringViewScalar):
        return value.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")
    if isinstance(value, pyarrow.DictionaryScalar):
        return _show(value.value)
    if isinstance(value, pyarrow.StructScalar):
        return {value.type.field(place).name: _show(value[place]) for place in range(len(value.type))}
    if isinstance(value, pyarrow.ListScalar | pyarrow.LargeListScalar | pyarrow.FixedSizeListScalar):
        return [_show(item) for item in value.values]
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        return value.value  # a date's days, which no date of Python's reaches


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _prune(value: Any) -> int:
    """Take null keys out of objects at any depth."""
    if isinstance(value, list):
        return sum(map(_prune, value))
    if not isinstance(value, dict):
        return 0
    nulls = [key for key, inner in value.items() if inner is None]
    for key in nulls:
        del value[key]
    return len(nulls) + sum(map(_prune, value.values()))
