"""All corpora of a recipe: split into scored and held-out documents, sampled, checked for overlap.

Whether a document is scored or held out depends on nothing but its content, so it never moves, and
all pieces that a long one is cut into are on the same side;
which documents are taken, and in what order, depends on the seed and their content, so it is the
same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import digest_of
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe.fields import Side
from pipeline.recipe.texts import Corpus, DatasetSource
from pipeline.sources.documents import Counts, Piece, origin_of, read_documents
from pipeline.sources.overlap import check_overlaps

# Documents are taken until they are sure to hold enough tokens, before a tokenizer is at hand.
CHARACTERS_PER_TOKEN = 9  # about six, and half as much again to be safe
HELD_OUT_CHARACTERS = 1500  # of each held-out document at most this much counts: see packing.py
SELECTION_SHARE = 3  # one held-out document in so many is for a search
STREAMED_BUDGETS = 20  # a Hub data set is read up to this many times what is needed


@dataclass(frozen=True)
class Document:
    """A piece of text.

    Attributes:
        text: the text itself.
        digest: SHA-256 of the text.
        content: SHA-256 of the text with all white space made single spaces; it decides whether two
            pieces are the same.
        whole: the same of the whole row or file that it was cut from; it decides on which side of
            the split all its pieces are.
    """

    text: str
    digest: str
    content: str
    whole: str

    @classmethod
    def of(cls, piece: Piece) -> Document:
        """Make the document of a piece."""
        content = _content(piece.text)
        whole = content if piece.whole == piece.text else _content(piece.whole)
        return cls(piece.text, _sha256(piece.text), content, whole)


@dataclass(frozen=True)
class CorpusDocuments:
    """The documents of one corpus that are used.

    Attributes:
        corpus: the recipe's entry.
        side: "forget" or "retain".
        scored: documents for scoring, in their final order.
        held_out: documents for judging, in their final order.
        counts: what was read and dropped.
        selection: held-out documents kept apart for a search, in their final order.
    """

    corpus: Corpus
    side: Side
    scored: tuple[Document, ...]
    held_out: tuple[Document, ...]
    counts: Counts
    selection: tuple[Document, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over all documents in order."""
        return digest_of([self.scored_digest, self.held_out_digest])

    @property
    def scored_digest(self) -> str:
        """SHA-256 over the scored documents in order."""
        return digest_of([document.digest for document in self.scored])

    @property
    def held_out_digest(self) -> str:
        """SHA-256 over the held-out documents in order."""
        return digest_of([document.digest for document in self.held_out])

    @property
    def summary(self) -> dict[str, Any]:
        """What tables, card and manifest say about it."""
        apart = {
            "selection_documents": len(self.selection),
            "selection_sha256": digest_of([document.digest for document in self.selection]),
        }
        return {
            "name": self.corpus.name,
            "side": self.side,
            "genre": self.corpus.genre,
            "licence": self.corpus.licence,
            "origin": origin_of(self.corpus),
            "scored_documents": len(self.scored),
            "scored_characters": sum(len(document.text) for document in self.scored),
            "scored_sha256": self.scored_digest,
            "held_out_documents": len(self.held_out),
            "held_out_characters": sum(len(document.text) for document in self.held_out),
            "held_out_sha256": self.held_out_digest,
            **(apart if self.selection else {}),
            "read": str(self.counts),
        }


@dataclass(frozen=True)
class Corpora:
    """All corpora of a recipe, in the recipe's order, forget first."""

    items: tuple[CorpusDocuments, ...]

    def __iter__(self) -> Iterator[CorpusDocuments]:
        return iter(self.items)

    def side(self, side: Side) -> tuple[CorpusDocuments, ...]:
        """The corpora of one side."""
        return tuple(item for item in self.items if item.side == side)

    def digest(self) -> dict[str, str]:
        """SHA-256 of each corpus's documents, by the corpus's name."""
        return {item.corpus.name: item.digest for item in self.items}

    def summary(self) -> list[dict[str, Any]]:
        """What tables, card and manifest say about each corpus."""
        return [item.summary for item in self.items]


def load_corpora(recipe: Recipe, folder: Path, progress: Progress) -> Corpora:
    """Read, split and sample every corpus of a recipe.

    Args:
        recipe: the recipe.
        folder: the recipe's folder, where relative paths start.
        progress: told what was read of each corpus.

    Raises:
        InputError: a corpus is empty or cannot be read, or a document is in two places that must
            not share any.
        BrokenError: the Hub cannot be reached.
    """
    pools = []
    for side, corpus in recipe.corpora:
        pool = _read(recipe, side, corpus, folder)
        progress.say(f"  {side} {corpus.name}: {pool.counts}", corpus=corpus.name)
        pools.append(pool)
    check_overlaps(pools)
    return Corpora(tuple(_sample(recipe, pool) for pool in pools))


def scored_tokens(recipe: Recipe, side: Side, corpus: Corpus) -> int:
    """Tokens of a corpus that are scored: its share, by weight, of its side's tokens."""
    if corpus.use == "held_out":
        return 0
    scoring = recipe.scoring
    total = scoring.forget_tokens if side == "forget" else scoring.retain_tokens
    weights = [c.weight for s, c in recipe.corpora if s == side and c.use != "held_out"]
    return max(1, round(total * corpus.weight / sum(weights)))


def _read(recipe: Recipe, side: Side, corpus: Corpus, folder: Path) -> CorpusDocuments:
    """Every document of a corpus, without duplicates, split."""
    counts = Counts()
    limit = _streaming_limit(recipe, side, corpus)
    seen: set[str] = set()
    scored: list[Document] = []
    held_out: list[Document] = []
    for piece in read_documents(corpus, folder, limit, counts):
        document = Document.of(piece)
        if document.content in seen:
            counts.duplicates += 1
            continue
        seen.add(document.content)
        is_held_out = corpus.use == "held_out" or (
            corpus.use == "both"
            and int(document.whole[:16], 16) / 16**16 < recipe.scoring.held_out_fraction
        )
        (held_out if is_held_out else scored).append(document)
    _check_not_empty(corpus, side, scored, held_out, counts)
    return CorpusDocuments(corpus, side, tuple(scored), tuple(held_out), counts)


def _check_not_empty(
    corpus: Corpus,
    side: Side,
    scored: list[Document],
    held_out: list[Document],
    counts: Counts,
) -> None:
    where = f"{side} corpus {corpus.name}"
    if not scored and not held_out:
        raise InputError(
            f"there are no documents in it ({counts})",
            where=where,
            remedy="check `where`, `exclude` and `text`",
        )
    if corpus.use == "both" and not (scored and held_out):
        lacking = "scored" if held_out else "held out"
        raise InputError(
            f"it has too few documents to be split: none of {len(scored) + len(held_out)} is "
            f"{lacking}",
            where=where,
            remedy="give more rows or files (all of one is on the same side), or say `use: scored` "
            "or `use: held_out`",
        )


def _sample(recipe: Recipe, pool: CorpusDocuments) -> CorpusDocuments:
    tokens, until = scored_tokens(recipe, pool.side, pool.corpus), recipe.select.until
    judging, apart = (pool.held_out, ()) if until is None else _kept_apart(pool)
    return CorpusDocuments(
        corpus=pool.corpus,
        side=pool.side,
        scored=_take(pool.scored, recipe.seed, tokens, pool.corpus.document_characters),
        held_out=_take(
            judging, recipe.seed, recipe.evaluate.next_token_tokens, HELD_OUT_CHARACTERS
        ),
        counts=pool.counts,
        selection=_take(apart, recipe.seed, until.tokens if until else 0, HELD_OUT_CHARACTERS),
    )


def _kept_apart(pool: CorpusDocuments) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Held-out documents that judge, and the third of them that a search asks instead.

    The split looks at other digits than that into scored and held out, so that both are random.
    """
    selects = [int(each.whole[16:32], 16) % SELECTION_SHARE == 0 for each in pool.held_out]
    judging = tuple(each for each, own in zip(pool.held_out, selects, strict=True) if not own)
    apart = tuple(each for each, own in zip(pool.held_out, selects, strict=True) if own)
    if pool.held_out and not (judging and apart):
        raise InputError(
            f"it has too few held-out documents ({len(pool.held_out)}) to keep some apart for the "
            "search of select.until",
            where=f"{pool.side} corpus {pool.corpus.name}",
            remedy="give more rows or files, raise scoring.held_out_fraction, or say `use: scored`",
        )
    return judging, apart


def _take(
    documents: tuple[Document, ...], seed: int, tokens: int, counted: int
) -> tuple[Document, ...]:
    """The first documents in a random order that follows from seed and content."""
    taken: list[Document] = []
    characters = 0
    for document in sorted(documents, key=lambda one: _sha256(f"{seed}:{one.digest}")):
        if characters >= tokens * CHARACTERS_PER_TOKEN:
            break
        taken.append(document)
        characters += min(len(document.text), counted)
    return tuple(taken)


def _streaming_limit(recipe: Recipe, side: Side, corpus: Corpus) -> int | None:
    if not isinstance(corpus.source, DatasetSource):
        return None
    tokens = scored_tokens(recipe, side, corpus)
    if corpus.use != "scored":
        tokens += recipe.evaluate.next_token_tokens
        if recipe.select.until is not None:
            tokens += recipe.select.until.tokens * SELECTION_SHARE
    return tokens * CHARACTERS_PER_TOKEN * STREAMED_BUDGETS


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content(text: str) -> str:
    return _sha256(" ".join(text.split()))
