"""A finding: one thing in a release that is not what it should be."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What is wrong, and in which file, tensor or key."""

    where: str
    what: str


def printable(text: str) -> str:
    """The text without what would steer a terminal or break a report: a release names its files."""
    return "".join(character if character.isprintable() else "?" for character in text)
