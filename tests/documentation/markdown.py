"""What the generated pages share: tables, code spans and anchors of Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

GENERATED = "<!-- Written by `make docs`; a test fails if it is not what the code says. -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; columns in which every row is empty are left out."""
    filled = [n for n, _ in enumerate(header) if any(row[n] for row in rows)]
    lines = [[header[n] for n in filled], ["---"] * len(filled)]
    lines += [[_cell(row[n]) for n in filled] for row in rows]
    return [f"| {' | '.join(cells)} |" if cells[0] != "---" else _rule(cells) for cells in lines]


def code(text: object) -> str:
    """A code span."""
    return f"`{text}`"


def anchor(heading: str) -> str:
    """What GitHub makes of a heading, to link to it."""
    return "#" + re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    """What a cell would not take as text: a bar, and outside of code what looks like HTML."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"<(?=\w)", r"\\<", part) for part in parts[::2]]
    return "`".join(parts)


def _rule(cells: Sequence[str]) -> str:
    return f"|{'|'.join(cells)}|"
