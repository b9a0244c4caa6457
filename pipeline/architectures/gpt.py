"""GPT-2 and the families of its time: a plain FFN, and as many keys and values as queries.

All of them derive the width of a head from the number of heads, so no head can be cut out of a
stock checkpoint.
"""

from __future__ import annotations

from pipeline.architectures.description import (
    Architecture,
    Attention,
    Cut,
    FeedForward,
    HeadCount,
)
from pipeline.architectures.layouts import (
    codegen_blocks,
    groups_of_queries_key_value,
    key_value_heads,
    neurons,
    queries_keys_values,
    query_heads,
)

GPT2 = Architecture(
    model_types=("gpt2",),
    prefix="transformer.h.{layer}.",
    feed_forward=FeedForward(  # its Conv1D keeps weights as [in, out]
        width="n_inner",
        output="mlp.c_proj",
        output_axis=0,
        inputs=(Cut("mlp.c_fc.weight", neurons, axis=1), Cut("mlp.c_fc.bias", neurons)),
        multiple_of_hidden=4,
    ),
    attention=Attention(
        output="attn.c_proj",
        output_axis=0,
        inputs=(
            Cut("attn.c_attn.weight", queries_keys_values, axis=1),
            Cut("attn.c_attn.bias", queries_keys_values),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
        counts=(
            HeadCount("attn", "num_heads", lambda sizes: sizes.heads),
            HeadCount("attn", "split_size", lambda sizes: sizes.heads * sizes.head_dim),
        ),
    ),
)

GPT_NEO = Architecture(
    model_types=("gpt_neo",),
    prefix="transformer.h.{layer}.",
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.c_proj",
        inputs=(Cut("mlp.c_fc.weight", neurons), Cut("mlp.c_fc.bias", neurons)),
        multiple_of_hidden=4,
    ),
    attention=Attention(
        output="attn.attention.out_proj",
        inputs=(
            Cut("attn.attention.q_proj.weight", query_heads),
            Cut("attn.attention.k_proj.weight", key_value_heads),
            Cut("attn.attention.v_proj.weight", key_value_heads),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
        counts=(HeadCount("attn.attention", "num_heads", lambda sizes: sizes.heads),),
    ),
)

_FC_IN_OUT = FeedForward(
    width="n_inner",
    output="mlp.fc_out",
    inputs=(Cut("mlp.fc_in.weight", neurons), Cut("mlp.fc_in.bias", neurons)),
    multiple_of_hidden=4,
)

GPTJ = Architecture(
    model_types=("gptj",),
    prefix="transformer.h.{layer}.",
    feed_forward=_FC_IN_OUT,
    attention=Attention(
        output="attn.out_proj",
        inputs=(
            Cut("attn.q_proj.weight", query_heads),
            Cut("attn.k_proj.weight", key_value_heads),
            Cut("attn.v_proj.weight", key_value_heads),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
        counts=(HeadCount("attn", "num_attention_heads", lambda sizes: sizes.heads),),
    ),
)

CODEGEN = Architecture(
    model_types=("codegen",),
    prefix="transformer.h.{layer}.",
    feed_forward=_FC_IN_OUT,
    attention=Attention(
        output="attn.out_proj",
        inputs=(Cut("attn.qkv_proj.weight", codegen_blocks),),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
    ),
)

OPT = Architecture(
    model_types=("opt",),
    prefix="model.decoder.layers.{layer}.",
    feed_forward=FeedForward(
        width="ffn_dim",
        output="fc2",
        inputs=(Cut("fc1.weight", neurons), Cut("fc1.bias", neurons, optional=True)),
    ),
    attention=Attention(
        output="self_attn.out_proj",
        inputs=(
            Cut("self_attn.q_proj.weight", query_heads),
            Cut("self_attn.q_proj.bias", query_heads, optional=True),
            Cut("self_attn.k_proj.weight", key_value_heads),
            Cut("self_attn.k_proj.bias", key_value_heads, optional=True),
            Cut("self_attn.v_proj.weight", key_value_heads),
            Cut("self_attn.v_proj.bias", key_value_heads, optional=True),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
        counts=(HeadCount("self_attn", "num_heads", lambda sizes: sizes.heads),),
    ),
)

MPT = Architecture(
    model_types=("mpt",),
    prefix="transformer.blocks.{layer}.",
    feed_forward=FeedForward(  # the model ignores expansion_ratio
        width=None,
        output="ffn.down_proj",
        inputs=(Cut("ffn.up_proj.weight", neurons),),
        multiple_of_hidden=4,
    ),
    attention=Attention(
        output="attn.out_proj",
        inputs=(Cut("attn.Wqkv.weight", queries_keys_values),),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
    ),
)

GPT_NEOX = Architecture(
    model_types=("gpt_neox",),
    prefix="gpt_neox.layers.{layer}.",
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.dense_4h_to_h",
        inputs=(Cut("mlp.dense_h_to_4h.weight", neurons), Cut("mlp.dense_h_to_4h.bias", neurons)),
    ),
    attention=Attention(
        output="attention.dense",
        inputs=(
            Cut("attention.query_key_value.weight", groups_of_queries_key_value),
            Cut("attention.query_key_value.bias", groups_of_queries_key_value, optional=True),
        ),
        head_counts="fixed",
        key_value_heads="num_attention_heads",
        head_dim=None,
        counts=(),
    ),
)

FAMILIES = (GPT2, GPT_NEO, GPTJ, CODEGEN, OPT, MPT, GPT_NEOX)
