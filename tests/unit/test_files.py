"""Files that are written together: all of them, or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from stages.core.files import write_whole


def test_files_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_whole({tmp_path / "a": b"new", tmp_path / "b": b"more"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"more"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_where_there_is_no_room_everything_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / ".b.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole({tmp_path / "a": b"new", tmp_path / "b": b"more"})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
