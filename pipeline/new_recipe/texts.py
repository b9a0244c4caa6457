"""The texts that somebody brings: what they are called, where they are, in which column.

Whether a document is scored or held out depends on the whole row or file that it is in, so a plain
text file is of no use alone: a single one is cut into rows, and several become one source.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.errors import InputError
from pipeline.recipe import next_token_task
from pipeline.recipe.fields import Side
from pipeline.sources.documents import cut
from pipeline.sources.rows import Row, find_files, read_rows

ROWS_LOOKED_AT = 20
PIECE_CHARACTERS = 1000
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow")
PATTERN_CHARACTERS = set("*?[]{},")
Write = Callable[[Path, str], None]


@dataclass(frozen=True)
class OwnText:
    """A text of one side.

    Attributes:
        name: its name in the recipe.
        side: "forget" or "retain".
        path: where it is, as the recipe says it.
        column: the column that holds the text; None for `text`.
        pieces_of: the file that it was cut from, if it was one document.
    """

    name: str
    side: Side
    path: str
    column: str | None = None
    pieces_of: str | None = None


def own_texts(
    recipe: str, forget: Sequence[str], retain: Sequence[str], folder: Path, write: Write
) -> list[OwnText]:
    """Look at the texts of both sides.

    Args:
        recipe: name of the recipe.
        forget: files, folders or patterns, relative to the working folder.
        retain: the same.
        folder: the recipe's folder.
        write: writes a new file.

    Raises:
        InputError: one is not there, cannot be read or holds no text.
    """
    found: list[OwnText] = []
    taken: set[str] = set()
    sides: tuple[tuple[Side, Sequence[str]], ...] = (("forget", forget), ("retain", retain))
    for side, references in sides:
        if not references:
            raise InputError("no text was given", where=f"--{side}", remedy="name a file")
        for place in _grouped(side, references):
            files = find_files(place, Path.cwd())
            name = _name(place, side, taken)
            taken.add(next_token_task(name))
            if len(files) == 1 and not _is_table(files[0]):
                path = folder / f"{recipe}.{name}.jsonl"
                write(path, _pieces(files[0], side))
                found.append(OwnText(name, side, path.name, pieces_of=str(files[0])))
            else:
                column = _column(files[0], side)
                found.append(OwnText(name, side, path_from(Path(place), folder), column))
    return found


def path_from(path: Path, folder: Path) -> str:
    """A path as a recipe in `folder` names it: relative if both are in the working folder."""
    here = Path.cwd().resolve()
    path, folder = Path(os.path.abspath(path.expanduser())), folder.resolve()
    if path.is_relative_to(here) and folder.is_relative_to(here):
        return Path(os.path.relpath(path, folder)).as_posix()
    return path.as_posix()


def _grouped(side: Side, references: Sequence[str]) -> list[str]:
    """The references, with single plain text files made one pattern: each is one document."""
    single = [
        reference
        for reference in references
        if Path(reference).expanduser().is_file() and not _is_table(Path(reference))
    ]
    if len(single) < 2:
        return list(references)
    for reference in single:
        if PATTERN_CHARACTERS & set(str(Path(reference).absolute())):
            raise InputError(
                "several text files cannot be named together if a name has signs of a pattern",
                where=f"--{side} {reference}",
                remedy="put them into a folder and name that, or rename them",
            )
    paths = [str(Path(reference).expanduser().absolute()) for reference in single]
    common = Path(os.path.commonpath([str(Path(path).parent) for path in paths]))
    rest = ",".join(str(Path(path).relative_to(common)) for path in paths)
    return [f"{common}/{{{rest}}}", *(r for r in references if r not in single)]


def _is_table(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in TABLES


def _name(place: str, side: Side, taken: set[str]) -> str:
    """A name for a text after its file or folder."""
    path = Path(place)
    while PATTERN_CHARACTERS & set(path.name):
        path = path.parent
    stem = path.name.split(".")[0] or path.name
    word = re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_") or side
    name, number = word, 1
    while next_token_task(name) in taken:
        number += 1
        name = f"{word}-{number}"
    return name


def _pieces(path: Path, side: Side) -> str:
    """A plain text as JSON lines.

    Raises:
        InputError: it is too short to be cut.
    """
    (row,) = read_rows(path)
    pieces = list(cut(str(row["text"]), PIECE_CHARACTERS))
    if len(pieces) < 2:
        raise InputError(
            "this text is too short to be scored and judged",
            where=f"--{side} {path}",
            remedy="give more text: several files, or one of many lines as .jsonl",
        )
    return "".join(json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces)


def _column(path: Path, side: Side) -> str | None:
    """The column with the longest texts; None if it is `text`.

    Raises:
        InputError: no column holds text.
    """
    rows = list(islice(read_rows(path), ROWS_LOOKED_AT))
    lengths = {column: _length(rows, column) for column in (rows[0] if rows else {})}
    if lengths.get("text", 0):
        return None
    column = max(lengths, key=lambda name: lengths[name], default="")
    if not lengths.get(column):
        raise InputError(
            f"no column holds text: {', '.join(lengths) or 'there are no rows'}",
            where=f"--{side} {path}",
            remedy='one with a column `text` is understood, such as lines of {"text": "…"}',
        )
    return column


def _length(rows: Sequence[Row], column: str) -> int:
    """Characters in a column that holds nothing but text, and 0 in others."""
    values = [row.get(column) for row in rows]
    if not all(value is None or isinstance(value, str) for value in values):
        return 0
    return sum(len(value or "") for value in values)
