"""Documents of one corpus: rows, turned into text, filtered, and cut to length."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.recipe.texts import Corpus, DatasetSource, PackageSource, StandardLibrarySource
from pipeline.sources.hub_datasets import commit_of, stream_rows
from pipeline.sources.packages import locate, version_of
from pipeline.sources.row_text import RowFilter, RowText
from pipeline.sources.rows import Row, find_files, read_rows
from pipeline.sources.standard_library import read_definitions


@dataclass
class Counts:
    """What was read of a corpus and what was dropped, and why."""

    rows: int = 0
    where: int = 0
    blank: int = 0
    excluded: int = 0
    duplicates: int = 0
    documents: int = 0

    def __str__(self) -> str:
        dropped = {
            "not matching `where`": self.where,
            "without text": self.blank,
            "matching `exclude`": self.excluded,
            "duplicates": self.duplicates,
        }
        parts = [f"{number:,} {what}" for what, number in dropped.items() if number]
        return (
            f"{self.rows:,} rows read, {self.documents - self.duplicates:,} documents; "
            f"dropped: {', '.join(parts) or 'none'}"
        )


class Piece(NamedTuple):
    """A piece of a document, and the whole document: the text of one row or file."""

    text: str
    whole: str


def read_documents(
    corpus: Corpus,
    folder: Path,
    limit_characters: int | None = None,
    counts: Counts | None = None,
) -> Iterator[Piece]:
    """Yield the documents of a corpus, cut into pieces, in the order of its source.

    Args:
        corpus: one of the recipe's corpora.
        folder: the recipe's folder, where relative paths start.
        limit_characters: stop after this many characters; None reads everything.
        counts: filled while reading, if given.

    Raises:
        InputError: a file, package, column, template or expression is wrong; it says which.
        BrokenError: the Hub cannot be reached.
    """
    counts = counts if counts is not None else Counts()
    text_of, keeps = RowText(corpus), RowFilter(corpus)
    exclude = _compiled(corpus)
    characters = 0
    for row in _rows(corpus, folder):
        counts.rows += 1
        if not keeps(row):
            counts.where += 1
            continue
        text = text_of(row)
        if not text.strip():
            counts.blank += 1
            continue
        for piece in cut(text, corpus.document_characters):
            if exclude and exclude.search(piece):
                counts.excluded += 1
                continue
            counts.documents += 1
            yield Piece(piece, text)
            characters += len(piece)
            if limit_characters is not None and characters >= limit_characters:
                return


def origin_of(corpus: Corpus) -> dict[str, str]:
    """Where a corpus comes from, for the manifest: enough to get the same text again.

    Raises:
        InputError: the package is not installed, or there is no such data set.
        BrokenError: the Hub cannot be reached.
    """
    source = corpus.source
    if isinstance(source, DatasetSource):
        return {"dataset": source.hub, "commit": commit_of(source)}
    if isinstance(source, PackageSource):
        version = version_of(source.package)
        return {"package": source.package, "version": version, "file": source.file}
    if isinstance(source, StandardLibrarySource):
        return {"python": platform.python_version()}
    return {"path": source.path}


def cut(text: str, limit: int) -> Iterator[str]:
    """Yield the text in pieces of at most `limit` characters.

    A piece ends at a paragraph if one ends in its second half, else at a line, a sentence or a
    word, and only otherwise in the middle of one.
    """
    text = text.strip("\n").rstrip()
    while len(text) > limit:
        end = limit
        for mark in ("\n\n", "\n", ". ", " "):
            found = text.rfind(mark, limit // 2, limit + 1 - len(mark.rstrip(" \n")))
            if found > 0:
                end = found + len(mark.rstrip(" \n"))
                break
        if piece := text[:end].rstrip():
            yield piece
        text = text[end:].lstrip("\n") if text[end : end + 1] == "\n" else text[end:].lstrip(" ")
    if text:
        yield text


def _rows(corpus: Corpus, folder: Path) -> Iterator[Row]:
    source = corpus.source
    if isinstance(source, DatasetSource):
        yield from stream_rows(source)
    elif isinstance(source, StandardLibrarySource):
        yield from read_definitions(source.standard_library)
    else:
        files = (
            locate(source.package, source.file)
            if isinstance(source, PackageSource)
            else find_files(source.path, folder)
        )
        for file in files:
            yield from read_rows(file)


def _compiled(corpus: Corpus) -> re.Pattern[str] | None:
    if corpus.exclude is None:
        return None
    try:
        return re.compile(corpus.exclude)
    except re.error as error:
        raise InputError(
            f"this is not a regular expression: {error}",
            where=f"corpus {corpus.name}, exclude",
        ) from error
