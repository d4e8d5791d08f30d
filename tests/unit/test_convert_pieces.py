"""The work cut into pieces: nothing is left out, nothing is done twice, and every row has its number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data import parquet, pieces
from stages.convert_data.pieces import cut_split, piece_bytes, read_rows
from stages.convert_data.sources import SourceFile, Unreadable
from stages.convert_data.unpack import needs_unpacking, unpack
from stages.core.errors import StageError

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.translate(None, b"\n\xef")), max_size=40)


def source(path: Path) -> SourceFile:
    return SourceFile(path, path.name)


def read_all(files: list[SourceFile], size: int) -> list[tuple[int, int, Any]]:
    """Number in the split, number in the file, and row, as all pieces together give them."""
    return [
        (span.before + number, number, item)
        for piece in cut_split("train", files, size)
        for span in piece.spans
        for number, item in read_rows(span)
    ]


# JSON lines


@given(st.lists(st.tuples(LINES, st.booleans()), max_size=4), st.integers(1, 200))
def test_any_cut_gives_every_line_once_with_its_number(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[list[bytes], bool]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    files, wanted, before = [], [], 0
    for index, (lines, ended) in enumerate(contents):
        text = b"\n".join(lines) + (b"\n" if ended and lines else b"")
        (folder / f"{index}.jsonl").write_bytes(text)
        files.append(source(folder / f"{index}.jsonl"))
        numbered = list(enumerate(text.removesuffix(b"\n").split(b"\n") if text else [], 1))
        wanted += [(before + number, number, line) for number, line in numbered]
        before += len(numbered)
    found = read_all(files, size)
    assert [(split, file, line.removesuffix(b"\n")) for split, file, line in found] == wanted
    for piece in cut_split("train", files, size):
        assert piece.rows == sum(len(list(read_rows(span))) for span in piece.spans)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(50, 2000))
def test_pieces_are_as_long_as_they_should_be(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], size: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(b"".join(b"x" * (length - 1) + b"\n" for length in lengths))
    cut = cut_split("train", [source(path)], size)
    for piece in cut[:-1]:
        (span,) = piece.spans
        assert size <= span.end - span.start < size + 300


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    for index in range(100):
        (tmp_path / f"{index:03d}.jsonl").write_bytes(b'{"text": "row"}\n' * 10)
    files = [source(path) for path in sorted(tmp_path.iterdir())]
    cut = cut_split("train", files, 1600)
    assert [len(piece.spans) for piece in cut] == [10] * 10
    assert [row[0] for row in read_all(files, 1600)] == list(range(1, 1001))


def test_the_size_of_a_piece_follows_the_data_alone() -> None:
    assert [piece_bytes(gb) for gb in (0.001, 1.0, 50.0, 5000.0)] == [
        16 << 20,
        16 << 20,
        97_656_250,
        256 << 20,
    ]


def test_a_mark_of_byte_order_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert [item for *_, item in read_all([source(path)], 5)] == [b'{"a": 1}\n', b'\xef\xbb\xbf{"a": 2}\n']


@pytest.mark.parametrize("ended", [True, False])
def test_a_row_too_long_is_not_held_in_memory(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "LONGEST_ROW", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"first\n" + b"x" * 1000 + b"\n" + b"y" * 5_000_000 + (b"\nlast\n" if ended else b""))
    rows = read_all([source(path)], 100)
    assert [number for number, *_ in rows] == list(range(1, len(rows) + 1))
    assert rows[0][2] == b"first\n"
    assert rows[1][2] == b"x" * 1000 + b"\n"
    long = rows[2][2]
    assert isinstance(long, Unreadable)
    assert "more than the 1000 that are read" in long.reason
    blocks = list(long.blocks)
    assert max(map(len, blocks)) <= 1 << 20
    assert b"".join(blocks).rstrip(b"\n") == b"y" * 5_000_000
    assert [item for *_, item in rows[3:]] == ([b"last\n"] if ended else [])


# Compressed files and arrays

TEXT = b"".join(b'{"text": "row %d"}\n' % index for index in range(20_000))


def pack(path: Path, data: bytes) -> SourceFile:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(data)
    else:
        path.write_bytes(data)
    return source(path)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.ndjson.zst", "train.json.gz"])
def test_unpacked_is_what_was_packed(name: str, tmp_path: Path) -> None:
    file = pack(tmp_path / name, TEXT)
    assert needs_unpacking(file)
    unpack(file, tmp_path / "plain" / "rows.jsonl")
    assert (tmp_path / "plain" / "rows.jsonl").read_bytes() == TEXT
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl.zst"])
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_file_that_breaks_off_names_the_row(name: str, kept: float, tmp_path: Path) -> None:
    file = pack(tmp_path / name, TEXT)
    data = file.path.read_bytes()
    file.path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(
        StageError, match=rf"{name} breaks off in row \d+ \(.*\): get the whole file"
    ) as error:
        unpack(file, tmp_path / "rows.jsonl")
    row = int(str(error.value).split("in row ")[1].split()[0])
    assert 20_000 * (kept - 0.25) < row <= 20_000
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl.zst"])
def test_a_file_that_is_not_compressed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(StageError, match=rf"{name} is not what its name says \(.*\): rename it"):
        unpack(source(tmp_path / name), tmp_path / "rows.jsonl")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=30), st.sampled_from([None, 2]), st.integers(1, 60), st.booleans())
def test_an_array_is_one_element_a_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, block: int, zipped: bool
) -> None:
    folder = tmp_path_factory.mktemp("array")
    text = json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    file = pack(folder / ("rows.json.gz" if zipped else "rows.json"), b"\xef\xbb\xbf \n" + text + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.convert_data.unpack._BLOCK", block)
        assert needs_unpacking(file)
        unpack(file, folder / "rows.jsonl")
    lines = (folder / "rows.jsonl").read_bytes().decode("utf-8", "surrogatepass").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


@pytest.mark.parametrize(
    "element",
    [
        *(
            '{"b" 2}',
            "oops",
            '{"a": 1]',
            '{"a": NaN,}',
            '{"a": "raw\nnewline"}',
            '"\\q"',
            '{"a": ' + "9" * 5000 + "}",
        ),
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_an_element_that_is_no_json_is_a_line_of_its_own(element: str, block: int, tmp_path: Path) -> None:
    """The conversion says what is wrong with it, as it does with JSON lines."""
    file = pack(tmp_path / "rows.json", f'[{{"a": 1}},\n {element}, {{"a":\n 2}}]'.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.convert_data.unpack._BLOCK", block)
        unpack(file, tmp_path / "rows.jsonl")
    first, second, third = (tmp_path / "rows.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")
    assert (json.loads(first), json.loads(third)) == ({"a": 1}, {"a": 2})
    assert second.decode() == element.replace("\n", "\r"), "which no string of JSON may hold either"


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": ', '[{"a": 1}}, {"b": 2}]', '[{"a": 1}] [1]', '[{"a": 1}', '[{"a": "never closed'],
)
def test_a_broken_array_names_the_row(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text, "utf-8")
    with pytest.raises(StageError, match=r"rows.json is no whole JSON array, it breaks off in row [12] \("):
        unpack(source(tmp_path / "rows.json"), tmp_path / "rows.jsonl")


def test_a_row_too_long_in_an_array_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.convert_data.unpack.LONGEST_ROW", 100_000)
    (tmp_path / "rows.json").write_text(json.dumps([{"a": 1}, {"a": "x" * 200_000}, {"a": 2}]))
    with pytest.raises(StageError, match=r"rows.json: row 2 is longer than 100000 bytes"):
        unpack(source(tmp_path / "rows.json"), tmp_path / "rows.jsonl")


def test_json_lines_named_json_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(TEXT)
    assert not needs_unpacking(source(tmp_path / "rows.json"))


# Parquet


def write_parquet(path: Path, table: pa.Table, **options: Any) -> SourceFile:
    pq.write_table(table, path, **options)
    return source(path)


@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 4000))
def test_any_cut_of_parquet_gives_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    table = pa.table({"text": [f"row {index} " + "x" * (index % 40) for index in range(rows)]})
    found = read_all([write_parquet(path, table, row_group_size=group)], size)
    assert [number for number, *_ in found] == list(range(1, rows + 1))
    assert [item["text"] for *_, item in found] == table["text"].to_pylist()


def test_a_long_group_is_cut_too(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{index:0100d}" for index in range(20_000)]})
    file = write_parquet(tmp_path / "rows.parquet", table, compression="none", use_dictionary=False)
    assert len(cut_split("train", [file], 200_000)) in (10, 11, 12)


def test_foreign_nulls_are_left_out_and_counted(tmp_path: Path) -> None:
    calls = [{"code": "x"}, {"path": "y", "deep": {"a": 1}}, {"deep": {"b": [{"c": 1}, {"d": 2}]}}]
    rows: list[Any] = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": f"f{index}", "arguments": arguments}}],
                },
            ],
            "tools": [
                {"function": {"name": "f", "parameters": {"properties": {f"p{index}": {"type": "x"}}}}}
            ],
        }
        for index, arguments in enumerate(calls)
    ]
    file = write_parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(rows))
    for (*_, item), row, count in zip(read_all([file], 10_000), rows, (4, 4, 7), strict=True):
        assert item["messages"][1]["tool_calls"][0]["function"]["arguments"] != row["messages"][1]
        assert parquet.drop_foreign_nulls(item) == count
        assert item == row


def test_a_null_in_text_that_is_json_stays(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"path": null}'}}
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}], "other": [None]}
    file = write_parquet(tmp_path / "rows.parquet", pa.Table.from_pylist([row]))
    ((*_, item),) = read_all([file], 10_000)
    assert parquet.drop_foreign_nulls(item) == 0
    assert item == row


@pytest.mark.parametrize("data", [b"", b"PAR1", b'{"text": "row"}\n' * 10])
def test_a_file_that_is_no_parquet(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(data)
    with pytest.raises(
        StageError, match=r"rows.parquet is not a whole Parquet file, it breaks \(.+\): write"
    ):
        cut_split("train", [source(tmp_path / "rows.parquet")], 1000)


def test_a_damaged_page_is_said_with_its_row(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {index}" * 20 for index in range(2000)]})
    file = write_parquet(tmp_path / "rows.parquet", table, row_group_size=500, compression="gzip")
    data = bytearray(file.path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    file.path.write_bytes(data)
    with pytest.raises(
        StageError, match=r"rows.parquet is not a whole Parquet file, it breaks in row \d+ or soon"
    ):
        read_all([file], 1 << 20)


def test_text_that_is_not_utf_8_costs_its_own_row_alone(tmp_path: Path) -> None:
    values = [b"row 0", b"broken \xff", b"row 2"]
    column = pa.Array.from_buffers(
        pa.string(), 3, pa.array(values, pa.binary()).buffers()
    )  # what another writer may store
    file = write_parquet(tmp_path / "rows.parquet", pa.table({"text": column}))
    first, second, third = (item for *_, item in read_all([file], 1000))
    assert (first, third) == ({"text": "row 0"}, {"text": "row 2"})
    assert isinstance(second, Unreadable)
    assert "utf-8" in second.reason
    assert b"".join(second.blocks) == b'{"text":"broken \\\\xff"}'


def text_of_bytes(values: list[bytes]) -> pa.Array[Any]:
    """A column of text with whatever bytes, as another writer may store it."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_a_refused_row_of_parquet_shows_what_is_nested_too(tmp_path: Path) -> None:
    fields = [text_of_bytes([b"user", b"user"]), text_of_bytes([b"Hi", b"bro\xffken"])]
    messages = pa.ListArray.from_arrays(
        pa.array([0, 1, 2]), pa.StructArray.from_arrays(fields, ["role", "content"])
    )
    table = pa.table({"id": [1, 2], "messages": messages, "kind": pa.array(["a", "b"]).dictionary_encode()})
    first, second = (item for *_, item in read_all([write_parquet(tmp_path / "rows.parquet", table)], 1000))
    assert first == {"id": 1, "messages": [{"role": "user", "content": "Hi"}], "kind": "a"}
    assert json.loads(b"".join(second.blocks)) == {
        "id": 2, "messages": [{"role": "user", "content": "bro\\xffken"}], "kind": "b"
    }  # fmt: skip


def test_a_value_that_python_cannot_hold_costs_its_own_row_alone(tmp_path: Path) -> None:
    tags = pa.array([[("a", 1)], [("a", 1), ("a", 2)], [], None], pa.map_(pa.string(), pa.int64()))
    days = pa.array([0, 1, 9_999_999, None], pa.int32()).cast(pa.date32())
    stamps = pa.array([0, 0, 0, 2**60], pa.int64()).cast(pa.timestamp("ms"))
    table = pa.table({"text": ["0", "1", "2", "3"], "tags": tags, "day": days, "at": stamps})
    rows = [item for *_, item in read_all([write_parquet(tmp_path / "rows.parquet", table)], 1000)]
    assert rows[0]["text"] == "0"
    assert "duplicate key was 'a'" in rows[1].reason
    assert "out of range" in rows[2].reason
    shown = [json.loads(b"".join(row.blocks)) for row in rows[1:]]
    assert [row["text"] for row in shown] == ["1", "2", "3"]
    assert (shown[0]["tags"], shown[0]["day"]) == (
        [{"key": "a", "value": 1}, {"key": "a", "value": 2}],
        "1970-01-02",
    )
    assert (shown[1]["day"], shown[2]["tags"]) == (9_999_999, None)
