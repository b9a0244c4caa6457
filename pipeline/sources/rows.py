"""Rows of files: JSON, JSON lines, CSV, Parquet, Arrow, and plain text as one row a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache import check_permission
from pipeline.errors import InputError
from pipeline.sources.packages import expand_braces

Row = dict[str, Any]

LEAVE_OUT = "leave it out of the pattern"
ARROW_FILE_MAGIC = b"ARROW1"
DATASET_METADATA = {"dataset_info.json", "state.json", "dataset_dict.json"}


def find_files(pattern: str, folder: Path) -> list[Path]:
    """Return the files that a path names, sorted: itself, those in a folder, or those of a pattern.

    Args:
        pattern: file, folder or glob pattern; `**` crosses folders, `{a,b}` means either.
        folder: where relative paths start.

    Raises:
        InputError: nothing is there.
        PermissionError: a folder may not be entered, so that some of its files would be left out.
    """
    found: set[Path] = set()
    for one in expand_braces(pattern):
        path = folder / Path(one).expanduser()
        check_permission(path)
        if path.is_dir():
            found |= {file for file in _files_in(path) if not _hidden(file, path)}
        elif path.exists():
            found.add(path)
        else:
            anchor = Path(path.anchor)
            found |= set(anchor.glob(str(path.relative_to(anchor))))
    files = sorted(file for file in found if file.is_file() and file.name not in DATASET_METADATA)
    if not files:
        raise InputError(
            "there is no such file, and nothing matches it as a pattern",
            where=str(folder / pattern),
            remedy="relative paths start at the recipe's folder, with --set at the working folder",
        )
    return files


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; its suffix says how it is read.

    A text file (any suffix that is not known) is one row with the columns `text` and `file`.

    Raises:
        InputError: the file is empty, binary or not what its suffix says.
        PermissionError: it may not be read.
    """
    try:
        check_permission(path)
        if path.stat().st_size == 0:
            raise InputError("the file is empty", where=str(path), remedy=LEAVE_OUT)
        match [suffix.lower() for suffix in path.suffixes]:
            case [*_, ".jsonl" | ".ndjson"] | [*_, ".jsonl" | ".ndjson", ".gz"]:
                yield from _json_lines(path)
            case [*_, ".json"] | [*_, ".json", ".gz"]:
                yield from _json(path)
            case [*_, ".csv"] | [*_, ".csv", ".gz"]:
                yield from _csv(path)
            case [*_, ".parquet"]:
                yield from _parquet(path)
            case [*_, ".arrow"]:
                yield from _arrow(path)
            case _:
                text = _text(path)
                if not text.strip():
                    raise InputError(
                        "the file holds nothing but white space",
                        where=str(path),
                        remedy=LEAVE_OUT,
                    )
                yield {"text": text, "file": path.name}
    except PermissionError:
        raise
    except OSError as error:
        raise InputError(f"the file cannot be read ({error})", where=str(path)) from error


def _files_in(folder: Path) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=refused):
        yield from (Path(place, name) for name in names)


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"this gzip file is damaged ({error})",
                where=str(path),
                remedy="download or copy it again",
            ) from error
    if b"\0" in data:
        raise InputError(
            "this is a binary file, not text",
            where=str(path),
            remedy=LEAVE_OUT,
        )
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"this is not UTF-8 text (byte {error.start})",
            where=str(path),
            remedy="convert it to UTF-8, or leave it out of the pattern",
        ) from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(
                    f"this line is not JSON: {_reason(error)}",
                    where=f"{path}:{number}",
                    remedy="every line of a .jsonl file is one JSON object or string",
                ) from error
            yield _as_row(value, f"{path}:{number}")


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"this is not JSON: {_reason(error)}",
            where=f"{path}{line}",
            remedy="a file with one object a line is named .jsonl",
        ) from error
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                yield {"key": key, "text": item}
            else:
                yield {"key": key, **_as_row(item, f"{path}, {key!r}")}
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield _as_row(item, f"{path}, item {number}")
    else:
        raise InputError("this JSON is neither a list nor an object", where=str(path))


def _reason(error: json.JSONDecodeError | RecursionError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"


def _as_row(value: Any, where: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise InputError(
            f"a row is an object or a string, and this is {type(value).__name__}", where=where
        )
    return value


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    "this line has not as many fields as the first",
                    where=f"{path}:{reader.line_num}",
                )
            yield row
    except csv.Error as error:
        raise InputError(f"this is not CSV: {error}", where=f"{path}:{reader.line_num}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise _damaged(path, "Parquet", error) from error


def _arrow(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as stream:
            is_file = stream.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
            stream.seek(0)
            if is_file:
                reader = pa.ipc.open_file(stream)
                for number in range(reader.num_record_batches):
                    yield from reader.get_batch(number).to_pylist()
            else:
                for batch in pa.ipc.open_stream(stream):
                    yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from error


def _damaged(path: Path, what: str, error: Exception) -> InputError:
    return InputError(
        f"this {what} file is damaged or is something else ({str(error).splitlines()[0]})",
        where=str(path),
        remedy="download or install it again",
    )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
