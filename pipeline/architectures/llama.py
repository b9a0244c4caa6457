"""Llama and the families that share its layout.

Gated FFN (`gate_proj`, `up_proj` rows; `down_proj` columns) and grouped-query attention with
separate projections. Output projections' biases are added once per token, not per unit: they stay.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.architectures.description import Architecture, Attention, Cut, FeedForward

LLAMA = Architecture(
    # The config validators of these refuse a head count that does not divide hidden_size.
    model_types=("llama",),
    layers="num_hidden_layers",
    prefix="model.layers.{layer}.",
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.down_proj",
        inputs=(
            Cut("mlp.gate_proj.weight", axis=0),
            Cut("mlp.gate_proj.bias", axis=0, optional=True),
            Cut("mlp.up_proj.weight", axis=0),
            Cut("mlp.up_proj.bias", axis=0, optional=True),
        ),
    ),
    attention=Attention(
        heads="num_attention_heads",
        key_value_heads="num_key_value_heads",
        head_dim="head_dim",
        output="self_attn.o_proj",
        queries=(
            Cut("self_attn.q_proj.weight", axis=0),
            Cut("self_attn.q_proj.bias", axis=0, optional=True),
        ),
        keys_values=(
            Cut("self_attn.k_proj.weight", axis=0),
            Cut("self_attn.k_proj.bias", axis=0, optional=True),
            Cut("self_attn.v_proj.weight", axis=0),
            Cut("self_attn.v_proj.bias", axis=0, optional=True),
        ),
        heads_divide_hidden=True,
    ),
)

# Same tensors, but the config takes any number of heads with an explicit head_dim. Norms on
# queries and keys (qwen3) are per head_dim and stay untouched.
LLAMA_LIKE = replace(
    LLAMA,
    model_types=("mistral", "qwen2", "qwen3"),
    attention=replace(LLAMA.attention, heads_divide_hidden=False),
)
