"""Mixtures of experts: Mixtral, Qwen 2 and 3, OLMoE and gpt-oss.

Checkpoints of all but gpt-oss store one matrix an expert; the loaded module, and checkpoints that
were saved as it holds them, stack those of all experts.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.architectures.description import (
    Attention,
    Cut,
    Experts,
    ExpertTensors,
    FeedForward,
)
from pipeline.architectures.layouts import (
    each_expert,
    each_query_head,
    gate_then_up_of_each_expert,
    gate_up_pairs_of_each_expert,
    neurons,
    neurons_of_each_expert,
)
from pipeline.architectures.llama import LLAMA_LIKE, OLMO2, SEPARATE

# Experts are multiplied in groups, whose rows must be multiples of 16 bytes: eight 16-bit numbers.
GROUPED_MULTIPLE = 8

STACKED = ExpertTensors(
    output=Cut("mlp.experts.down_proj", neurons_of_each_expert, axis=2, stacked=True),
    inputs=(Cut("mlp.experts.gate_up_proj", gate_then_up_of_each_expert, axis=1, stacked=True),),
    rows=(Cut("mlp.gate.weight", each_expert),),
)


def one_an_expert(block: str, gate: str, up: str, down: str) -> ExpertTensors:
    """The layout of one matrix an expert, by its names."""
    start = f"{block}.experts.{{expert}}."
    return ExpertTensors(
        output=Cut(f"{start}{down}.weight", neurons, axis=1),
        inputs=(Cut(f"{start}{gate}.weight", neurons), Cut(f"{start}{up}.weight", neurons)),
        rows=(Cut(f"{block}.gate.weight", each_expert),),
    )


COUNTS = ("num_local_experts", "num_experts")
SEPARATE_EXPERTS = Experts(
    counts=COUNTS,
    output="down_proj",
    router="mlp.gate",
    held=STACKED,
    stored=(one_an_expert("mlp", "gate_proj", "up_proj", "down_proj"),),
)

MIXTRAL = replace(
    LLAMA_LIKE,
    model_types=("mixtral",),
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.experts",
        inputs=(),
        experts=replace(
            SEPARATE_EXPERTS, stored=(one_an_expert("block_sparse_moe", "w1", "w3", "w2"),)
        ),
    ),
)

QWEN3_MOE = replace(
    LLAMA_LIKE,
    model_types=("qwen3_moe",),
    feed_forward=FeedForward(
        width="moe_intermediate_size", output="mlp.experts", inputs=(), experts=SEPARATE_EXPERTS
    ),
)

QWEN2_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen2_moe",),
    feed_forward=replace(
        QWEN3_MOE.feed_forward,
        experts=replace(
            SEPARATE_EXPERTS,
            shared=FeedForward(
                width="shared_expert_intermediate_size",
                output="mlp.shared_expert.down_proj",
                inputs=(
                    Cut("mlp.shared_expert.gate_proj.weight", neurons),
                    Cut("mlp.shared_expert.up_proj.weight", neurons),
                ),
            ),
        ),
    ),
)

OLMOE = replace(
    OLMO2,
    model_types=("olmoe",),
    feed_forward=FeedForward(
        width="intermediate_size", output="mlp.experts", inputs=(), experts=SEPARATE_EXPERTS
    ),
)

GPT_OSS = replace(
    LLAMA_LIKE,
    model_types=("gpt_oss",),
    feed_forward=FeedForward(
        width="intermediate_size",
        output="mlp.experts",
        inputs=(),
        output_axis=0,
        experts=Experts(
            counts=COUNTS,
            output="down_proj",
            router="mlp.router",
            held=ExpertTensors(
                output=Cut("mlp.experts.down_proj", neurons_of_each_expert, axis=1, stacked=True),
                inputs=(
                    Cut(
                        "mlp.experts.gate_up_proj",
                        gate_up_pairs_of_each_expert,
                        axis=2,
                        stacked=True,
                    ),
                    Cut(
                        "mlp.experts.gate_up_proj_bias",
                        gate_up_pairs_of_each_expert,
                        axis=1,
                        stacked=True,
                    ),
                ),
                rows=(
                    Cut("mlp.router.weight", each_expert),
                    Cut("mlp.router.bias", each_expert),
                    Cut("mlp.experts.down_proj_bias", each_expert),
                ),
            ),
        ),
    ),
    attention=Attention(
        output="self_attn.o_proj",
        inputs=(*SEPARATE, Cut("self_attn.sinks", each_query_head)),
    ),
)

FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS)
