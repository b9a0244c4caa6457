"""Functions and classes of Python's own standard library, as documents."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.errors import BrokenError
from pipeline.sources.rows import Row

Kinds = Literal["functions", "classes", "functions+classes"]

MINIMUM_CHARACTERS = 120
# Tests are not the library, site-packages belong to others, and `encodings` is a hundred
# generated copies of the same few functions.
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}


def read_definitions(kinds: Kinds, root: Path | None = None) -> Iterator[Row]:
    """Yield definitions of the standard library, in the order of files and lines.

    `functions` are those of modules and the methods of their classes; with `functions+classes`
    the methods come with their classes only, so that no text is read twice.

    Args:
        kinds: which definitions are cut out.
        root: folder of the library; that of the running Python by default.

    Returns:
        Rows with the columns `text`, `module` (dotted), `name` and `kind`.

    Raises:
        BrokenError: the library's source is not installed.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if _belongs(file.relative_to(root)))
    if not files:
        raise BrokenError(
            "the source of the standard library is not installed",
            where=str(root),
            remedy="use a Python that comes with its .py files",
        )
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
            with warnings.catch_warnings(action="ignore"):  # about escapes in the library's source
                tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue  # a few files are in other encodings or templates: not library code
        lines = source.splitlines(keepends=True)
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        for node in _definitions(tree, kinds):
            text = _cut(node, lines)
            if len(text) >= MINIMUM_CHARACTERS:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                yield {"text": text, "module": module, "name": node.name, "kind": kind}


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.Module, kinds: Kinds) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            if kinds != "functions":
                yield node
            else:
                yield from (
                    inner
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and kinds != "classes":
            yield node


def _cut(node: Definition, lines: list[str]) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()


def _belongs(path: Path) -> bool:
    return not EXCLUDED.intersection(path.parts) and not any(
        part.startswith((".", "config-")) for part in path.parts
    )
