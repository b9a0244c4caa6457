from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.sources.rows import find_files, read_rows

ROWS = [{"text": "one"}, {"text": "two"}]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    assert list(read_rows(write(tmp_path / "a.jsonl", lines))) == ROWS
    assert list(read_rows(write(tmp_path / "b.jsonl.gz", gzip.compress(lines.encode())))) == ROWS


def test_line_separators_inside_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c"}]
    path = write(tmp_path / "a.jsonl", json.dumps(rows[0], ensure_ascii=False) + "\n")
    assert list(read_rows(path)) == rows


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (ROWS, ROWS),
        (["one", "two"], ROWS),
        ({"k": {"text": "one"}}, [{"key": "k", "text": "one"}]),
        ({"k": "one"}, [{"key": "k", "text": "one"}]),
    ],
)
def test_json(tmp_path: Path, value: Any, rows: list[dict[str, str]]) -> None:
    assert list(read_rows(write(tmp_path / "a.json", json.dumps(value)))) == rows


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,n\n"one\ntwo",1\n')
    assert list(read_rows(path)) == [{"text": "one\ntwo", "n": "1"}]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == ROWS


@pytest.mark.parametrize("opened", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow(tmp_path: Path, opened: Any) -> None:
    table = pa.Table.from_pylist(ROWS)
    with opened(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert list(read_rows(tmp_path / "a.arrow")) == ROWS


def test_text_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\n")
    assert list(read_rows(path)) == [{"text": "one\ntwo\n", "file": "a.txt"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n", "white space"),
        ("a.txt", b"ab\0cd", "binary"),
        ("a.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("a.jsonl", b'{"text": "one"}\n{"text"\n', "not JSON"),
        ("a.jsonl", b"3\n", "int"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n', "not JSON"),
        ("a.json", b"3", "neither"),
        ("a.csv", b"a,b\n1\n", "as many fields"),
        ("a.parquet", b"PAR1 is not enough", "Parquet"),
        ("a.arrow", b"not an arrow at all", "Arrow"),
        ("a.arrow", b"ARROW1\0\0rubbish", "Arrow"),
        ("a.jsonl.gz", b"not gzip", "gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)[:-12], "gzip"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(path))
    assert str(path) in str(error.value)


def test_find_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".hidden").write_text("x")
    (tmp_path / "sub" / "state.json").write_text("{}")
    a, b = write(tmp_path / "sub" / "a.txt", "a"), write(tmp_path / "sub" / "b.txt", "b")
    assert find_files("sub", tmp_path) == [a, b]
    assert find_files("*/{a,b}.txt", tmp_path) == [a, b]
    assert find_files(str(a), tmp_path) == [a]
    with pytest.raises(InputError, match="no such file"):
        find_files("nothing*", tmp_path)


def test_names_with_brackets_are_found_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "a")
    assert find_files("a[1].txt", tmp_path) == [path]
