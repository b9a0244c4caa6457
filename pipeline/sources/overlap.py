"""The same document in two places that must not share any: an error that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.errors import InputError
from pipeline.recipe.fields import Side
from pipeline.recipe.texts import Corpus

SHOWN_CHARACTERS = 160


class _Document(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def whole(self) -> str: ...


class _Pool(Protocol):
    @property
    def corpus(self) -> Corpus: ...
    @property
    def side(self) -> Side: ...
    @property
    def scored(self) -> Sequence[_Document]: ...
    @property
    def held_out(self) -> Sequence[_Document]: ...


def check_overlaps(pools: Iterable[_Pool]) -> None:
    """Refuse a document that is in forget and retain, or in scored and held-out text.

    Documents and the pieces that they are cut into are compared without regard to white space,
    before they are sampled, so that the answer does not depend on seed or budget.

    Raises:
        InputError: there is one; it shows the beginning and names both corpora.
    """
    pools = tuple(pools)
    forget = _places(pools, "forget")
    retain = _places(pools, "retain")
    _refuse(forget[0] | forget[1], retain[0] | retain[1], "in forget and in retain")
    for scored, held_out in (forget, retain):
        _refuse(scored, held_out, "in scored and in held-out text")


_Place = dict[str, tuple[str, str]]  # content digest → corpus name and text


def _places(pools: Iterable[_Pool], side: Side) -> tuple[_Place, _Place]:
    scored: _Place = {}
    held_out: _Place = {}
    for pool in pools:
        if pool.side == side:
            for place, documents in ((scored, pool.scored), (held_out, pool.held_out)):
                for one in documents:
                    place[one.whole] = place[one.content] = (pool.corpus.name, one.text)
    return scored, held_out


def _refuse(first: _Place, second: _Place, what: str) -> None:
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return
    (one, text), (other, _) = first[shared[0]], second[shared[0]]
    beginning = " ".join(text.split())
    if len(beginning) > SHOWN_CHARACTERS:
        beginning = beginning[:SHOWN_CHARACTERS].rstrip() + "…"
    raise InputError(
        f"{_number(len(shared))} {what}: “{beginning}”",
        where=f"corpora {one} and {other}",
        remedy="give them different text, or drop it from one of them with `where` or `exclude`",
    )


def _number(count: int) -> str:
    return "the same document is" if count == 1 else f"{count:,} documents are"
