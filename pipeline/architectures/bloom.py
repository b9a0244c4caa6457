"""BLOOM and Falcon: one fused projection of queries, keys and values, in one of three orders.

ALiBi's slopes follow from the number of heads, and so does the width of a head: no head can be cut
out of a stock checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.architectures.description import Architecture, Attention, Cut, FeedForward
from pipeline.architectures.layouts import (
    groups_of_queries_key_value,
    neurons,
    queries_keys_values,
)

_INPUTS = (
    Cut("mlp.dense_h_to_4h.weight", neurons),
    Cut("mlp.dense_h_to_4h.bias", neurons, optional=True),
)

BLOOM = Architecture(
    model_types=("bloom",),
    prefix="transformer.h.{layer}.",
    feed_forward=FeedForward(
        width=None, output="mlp.dense_4h_to_h", inputs=_INPUTS, multiple_of_hidden=4
    ),
    attention=Attention(
        output="self_attention.dense",
        inputs=(
            Cut("self_attention.query_key_value.weight", groups_of_queries_key_value),
            Cut("self_attention.query_key_value.bias", groups_of_queries_key_value, optional=True),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
    ),
    unlike=(("slow_but_exact", True),),  # then it multiplies slices, and calls no module
)

FALCON_OF_GROUPS = replace(
    BLOOM,
    model_types=("falcon",),
    unlike=(),
    when=(("new_decoder_architecture", True),),
    feed_forward=FeedForward(
        width="ffn_hidden_size",
        output="mlp.dense_4h_to_h",
        inputs=_INPUTS,
        multiple_of_hidden=4,
    ),
    attention=replace(BLOOM.attention, key_value_heads="num_kv_heads"),
)

FALCON_OF_ONE_KEY = replace(
    FALCON_OF_GROUPS,
    when=(("new_decoder_architecture", False), ("multi_query", True)),
    attention=replace(
        BLOOM.attention,
        key_value_heads=1,
        inputs=tuple(replace(cut, layout=queries_keys_values) for cut in BLOOM.attention.inputs),
    ),
)

FALCON_OF_HEADS = replace(
    FALCON_OF_GROUPS,
    when=(("new_decoder_architecture", False), ("multi_query", False)),
    attention=BLOOM.attention,
)

FAMILIES = (BLOOM, FALCON_OF_GROUPS, FALCON_OF_ONE_KEY, FALCON_OF_HEADS)
