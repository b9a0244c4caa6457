"""What the command printed and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


Unlearn = Callable[..., Result]
