"""How requests become batches: a budget of tokens, and shared contexts computed once.

The choices of a multiple-choice question share their context. Its tokens are the `prefix` of all
their rows, which the model reads once and keeps in its key/value cache; only the rows' `suffix`es
are read apart. Prefixes of one batch have the same length, so nothing in front needs padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]

SHORTEST_PREFIX = 4  # a shorter context costs less than a second forward pass


@dataclass(frozen=True)
class Request:
    """Tokens that are scored, after tokens that are only read."""

    context: Tokens
    continuation: Tokens


@dataclass(frozen=True)
class Row:
    """What the model reads for one or more requests whose input is the same."""

    prefix: Tokens
    suffix: Tokens
    requests: tuple[int, ...]
    scored: int  # positions at the end of `suffix` that some request scores


def rows_of(requests: Sequence[Request], *, longest: int, share: bool) -> list[Row]:
    """Turn requests into rows, each different input once.

    Args:
        requests: what is scored; contexts must not be empty.
        longest: tokens that the model can read; longer inputs lose their left end.
        share: whether contexts that several rows have in common become prefixes.
    """
    same_input: dict[Tokens, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        # The last token is only predicted, never read.
        same_input[(request.context + request.continuation)[-(longest + 1) : -1]].append(index)
    scored = {
        tokens: max(len(requests[index].continuation) for index in indices)
        for tokens, indices in same_input.items()
    }
    rows_with: dict[Tokens, int] = defaultdict(int)
    for tokens in same_input:
        rows_with[tokens[: -scored[tokens]]] += 1
    rows = []
    for tokens, indices in same_input.items():
        prefix = tokens[: -scored[tokens]]
        if not share or rows_with[prefix] < 2 or len(prefix) < SHORTEST_PREFIX:
            prefix = ()
        rows.append(Row(prefix, tokens[len(prefix) :], tuple(indices), scored[tokens]))
    return rows


def batches_of(rows: Iterable[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Yield batches of at most `batch_tokens` tokens, padding included, longest rows first.

    A prefix counts once for every row, because each row keeps its own copy in the cache. A row
    that is longer than the budget is a batch of its own.
    """
    order = sorted(rows, key=lambda r: (-len(r.prefix), r.prefix, -len(r.suffix), r.suffix))
    batch: list[Row] = []
    width = 0
    for row in order:
        wider = max(width, len(row.prefix) + len(row.suffix))
        full = (len(batch) + 1) * wider > batch_tokens
        if batch and (full or len(row.prefix) != len(batch[0].prefix)):
            yield batch
            batch, wider = [], len(row.prefix) + len(row.suffix)
        batch.append(row)
        width = wider
    if batch:
        yield batch


def tokens_read(batch: Sequence[Row]) -> int:
    """Tokens that the model reads for a batch: every prefix once, no padding."""
    prefixes = {row.prefix for row in batch}
    return sum(map(len, prefixes)) + sum(len(row.suffix) for row in batch)
