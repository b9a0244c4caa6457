"""A finding: one thing in a release that is not what it should be."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What is wrong, and in which file, tensor or key."""

    where: str
    what: str


def shortened(text: str, length: int = 500) -> str:
    """The text without its middle if it is long: a release can put megabytes into a name."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def printable(text: str) -> str:
    """The text without what would steer a terminal or break a report: a release names its files."""
    return "".join(character if character.isprintable() else "?" for character in text)
