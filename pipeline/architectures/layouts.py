"""How units lie along an axis of a tensor: for each entry, the unit to which it belongs.

FFN neurons are counted from 0, expert after expert where there are several. Of attention, query
head i is unit i and key/value head j is unit `heads` + j; where every query head has its own key
and value, `kv_heads` equals `heads`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.architectures.description import Dimensions

CODEGEN_BLOCKS = 4  # hard-wired in the family's model, as many as TPU cores it was trained on


def neurons(sizes: Dimensions) -> Sequence[int]:
    """One entry a neuron."""
    return range(sizes.ffn)


def gate_then_up(sizes: Dimensions) -> Sequence[int]:
    """All gates, then all ups."""
    return [*range(sizes.ffn), *range(sizes.ffn)]


def neurons_of_each_expert(sizes: Dimensions) -> Sequence[int]:
    """Expert by expert, one entry a neuron."""
    return range(sizes.experts * sizes.ffn)


def gate_then_up_of_each_expert(sizes: Dimensions) -> Sequence[int]:
    """Expert by expert, all gates, then all ups."""
    own = [range(start, start + sizes.ffn) for start in _starts(sizes)]
    return [neuron for each in own for neuron in (*each, *each)]


def gate_up_pairs_of_each_expert(sizes: Dimensions) -> Sequence[int]:
    """Expert by expert, each gate beside its up."""
    return [neuron for neuron in range(sizes.experts * sizes.ffn) for _ in "gu"]


def each_expert(sizes: Dimensions) -> Sequence[int]:
    """One entry an expert."""
    return range(sizes.experts)


def query_heads(sizes: Dimensions) -> Sequence[int]:
    """`head_dim` entries a query head."""
    return _wide(range(sizes.heads), sizes)


def key_value_heads(sizes: Dimensions) -> Sequence[int]:
    """`head_dim` entries a key/value head."""
    return _wide(_groups(sizes), sizes)


def each_query_head(sizes: Dimensions) -> Sequence[int]:
    """One entry a query head."""
    return range(sizes.heads)


def each_key_value_head(sizes: Dimensions) -> Sequence[int]:
    """One entry a key/value head."""
    return _groups(sizes)


def queries_keys_values(sizes: Dimensions) -> Sequence[int]:
    """All queries, then all keys, then all values."""
    return _wide([*range(sizes.heads), *_groups(sizes), *_groups(sizes)], sizes)


def groups_of_queries_key_value(sizes: Dimensions) -> Sequence[int]:
    """Group by group: its queries, its key, its value."""
    per_group, units = sizes.heads_per_group, []
    for group, unit in enumerate(_groups(sizes)):
        units += [*range(group * per_group, (group + 1) * per_group), unit, unit]
    return _wide(units, sizes)


def codegen_blocks(sizes: Dimensions) -> Sequence[int]:
    """Blocks of heads; in each, all queries, then all values, then all keys."""
    per_block, units = sizes.heads // CODEGEN_BLOCKS, []
    for block in range(CODEGEN_BLOCKS):
        heads = range(block * per_block, (block + 1) * per_block)
        own = [sizes.heads + head for head in heads]
        units += [*heads, *own, *own]
    return _wide(units, sizes)


def _starts(sizes: Dimensions) -> range:
    return range(0, sizes.experts * sizes.ffn, sizes.ffn)


def _groups(sizes: Dimensions) -> range:
    return range(sizes.heads, sizes.heads + sizes.kv_heads)


def _wide(units: Sequence[int], sizes: Dimensions) -> list[int]:
    return [unit for unit in units for _ in range(sizes.head_dim)]
