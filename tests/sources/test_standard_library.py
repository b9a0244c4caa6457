from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline.errors import BrokenError
from pipeline.sources.standard_library import Kinds, read_definitions

FILLER = "'" + "x" * 120 + "'"
SOURCE = f'''
import functools

@functools.cache
def first():
    """{FILLER}"""

class Thing:
    def method(self):
        return {FILLER}

    async def other(self):
        def inner():
            return {FILLER}
        return inner

def short(): pass
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text(SOURCE)
    for excluded in ("test", "site-packages", "deep/tests"):
        (tmp_path / excluded).mkdir(parents=True)
        (tmp_path / excluded / "b.py").write_text(SOURCE)
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n" + SOURCE.encode())
    (tmp_path / "broken.py").write_text("def (:")
    return tmp_path


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ("functions", ["first", "method", "other"]),
        ("classes", ["Thing"]),
        ("functions+classes", ["first", "Thing"]),
    ],
)
def test_definitions(library: Path, kinds: Kinds, names: list[str]) -> None:
    rows = list(read_definitions(kinds, library))
    assert [row["name"] for row in rows] == names
    assert {row["module"] for row in rows} == {"a"}
    for row in rows:
        ast.parse(row["text"])  # dedented, and whole


def test_decorators_belong_to_their_function(library: Path) -> None:
    first = next(read_definitions("functions", library))
    assert first["text"].startswith("@functools.cache\ndef first")


def test_running_python() -> None:
    rows = read_definitions("functions")
    modules = {row["module"] for row, _ in zip(rows, range(500), strict=False)}
    assert modules
    assert not any(".test" in module or "site-packages" in module for module in modules)


def test_library_without_source(tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match="not installed"):
        list(read_definitions("functions", tmp_path))
