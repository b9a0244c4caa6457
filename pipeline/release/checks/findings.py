"""A finding: one thing in a release that is not what it should be."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What is wrong, and in which file, tensor or key."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"
