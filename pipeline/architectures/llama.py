"""Llama and the families that share its names, in part or as a whole.

Gated FFN (`gate_proj`, `up_proj` rows; `down_proj` columns) and grouped-query attention with
separate projections. Output projections' biases are added once per token, not per unit: they stay.
So do norms on queries and keys that are per `head_dim`.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.architectures.description import (
    Architecture,
    Attention,
    Cut,
    FeedForward,
    HeadCount,
    Relabel,
)
from pipeline.architectures.layouts import (
    each_key_value_head,
    each_query_head,
    gate_then_up,
    key_value_heads,
    neurons,
    queries_keys_values,
    query_heads,
)

SEPARATE = (
    Cut("self_attn.q_proj.weight", query_heads),
    Cut("self_attn.q_proj.bias", query_heads, optional=True),
    Cut("self_attn.k_proj.weight", key_value_heads),
    Cut("self_attn.k_proj.bias", key_value_heads, optional=True),
    Cut("self_attn.v_proj.weight", key_value_heads),
    Cut("self_attn.v_proj.bias", key_value_heads, optional=True),
)

GROUP = HeadCount("self_attn", "num_key_value_groups", lambda sizes: sizes.heads_per_group)

# A Mistral without a window is a Llama whose config asks nothing of its number of heads.
MISTRAL = Relabel(
    model_type="mistral",
    model_class="MistralForCausalLM",
    adds=(("sliding_window", None),),
    keeps=("intermediate_size", "max_position_embeddings", "rms_norm_eps", "hidden_act"),
    requires=(("attention_bias", False), ("mlp_bias", False)),
)

# The config validators of these refuse a head count that does not divide hidden_size.
LLAMA = Architecture(
    model_types=("llama",),
    prefix="model.layers.{layer}.",
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.down_proj",
        inputs=(
            Cut("mlp.gate_proj.weight", neurons),
            Cut("mlp.gate_proj.bias", neurons, optional=True),
            Cut("mlp.up_proj.weight", neurons),
            Cut("mlp.up_proj.bias", neurons, optional=True),
        ),
    ),
    attention=Attention(
        output="self_attn.o_proj",
        inputs=SEPARATE,
        head_counts="divides_hidden",
        counts=(GROUP,),
        relabel=MISTRAL,
    ),
)

GEMMA = replace(
    LLAMA,
    model_types=("gemma2", "gemma3_text"),
    attention=replace(LLAMA.attention, relabel=None),
)

LLAMA_LIKE = replace(
    LLAMA,
    model_types=("mistral", "qwen2", "qwen3", "gemma", "smollm3", "granite", "olmo"),
    attention=replace(GEMMA.attention, head_counts="any"),
)

# Norms on queries and keys with a weight of its own for every head, if `use_qk_norm` is set.
COHERE = replace(
    LLAMA_LIKE,
    model_types=("cohere",),
    attention=replace(
        LLAMA_LIKE.attention,
        inputs=(
            *SEPARATE,
            Cut("self_attn.q_norm.weight", each_query_head, optional=True),
            Cut("self_attn.k_norm.weight", each_key_value_head, optional=True),
        ),
    ),
)

STABLELM = replace(
    LLAMA_LIKE,
    model_types=("stablelm",),
    attention=replace(LLAMA_LIKE.attention, head_counts="fixed", head_dim=None, counts=None),
)

OLMO2 = replace(
    LLAMA_LIKE,
    model_types=("olmo2",),
    attention=replace(
        LLAMA_LIKE.attention,
        head_counts="fixed",
        untouchable="queries and keys are normalised over all heads together, so that removing one "
        "changes the others",
    ),
)

NEMOTRON = replace(
    LLAMA_LIKE,
    model_types=("nemotron",),
    feed_forward=replace(LLAMA.feed_forward, inputs=LLAMA.feed_forward.inputs[2:]),
)

STARCODER2 = replace(
    LLAMA_LIKE,
    model_types=("starcoder2",),
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.c_proj",
        inputs=(
            Cut("mlp.c_fc.weight", neurons),
            Cut("mlp.c_fc.bias", neurons, optional=True),
        ),
    ),
)

PHI = replace(
    LLAMA_LIKE,
    model_types=("phi",),
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.fc2",
        inputs=(Cut("mlp.fc1.weight", neurons), Cut("mlp.fc1.bias", neurons)),
    ),
    attention=replace(LLAMA_LIKE.attention, output="self_attn.dense"),
)

# Its norms on queries and keys are as wide as hidden_size / heads, whatever head_dim says.
PHI_OF_NORMS = replace(
    PHI,
    when=(("qk_layernorm", True),),
    attention=replace(PHI.attention, head_counts="fixed"),
)

GLM = replace(
    LLAMA_LIKE,
    model_types=("glm",),
    feed_forward=replace(
        LLAMA.feed_forward, inputs=(Cut("mlp.gate_up_proj.weight", gate_then_up),)
    ),
)

PHI3 = replace(
    GLM,
    model_types=("phi3",),
    attention=replace(
        LLAMA_LIKE.attention,
        inputs=(Cut("self_attn.qkv_proj.weight", queries_keys_values),),
        counts=(
            GROUP,
            HeadCount("self_attn", "num_key_value_heads", lambda sizes: sizes.kv_heads),
            HeadCount("self_attn", "config.num_attention_heads", lambda sizes: sizes.heads),
        ),
    ),
)

# Its factors are counted by hidden_size / heads, whatever head_dim says.
PHI3_OF_LONG_CONTEXTS = replace(
    PHI3,
    when=(("rope_parameters.rope_type", "longrope"),),
    attention=replace(PHI3.attention, head_counts="fixed"),
)

FAMILIES = (
    LLAMA,
    GEMMA,
    LLAMA_LIKE,
    COHERE,
    STABLELM,
    OLMO2,
    NEMOTRON,
    STARCODER2,
    PHI_OF_NORMS,  # before PHI, which any Phi is
    PHI,
    GLM,
    PHI3_OF_LONG_CONTEXTS,
    PHI3,
)
