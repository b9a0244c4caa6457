"""What llama.cpp expects of each model family, where it is not what transformers stores.

llama.cpp's side: `conversion/` and `src/models/` of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gguf import MODEL_ARCH


@dataclass(frozen=True)
class GgufFamily:
    """How a family's checkpoints become GGUF.

    Attributes:
        architecture: llama.cpp's name of the family.
        pairs: llama.cpp rotates neighbouring coordinates of queries and keys, where transformers
            rotates the first half against the second; their rows are re-ordered.
        norm_offset: added to the weights of norms, which transformers stores around 0.
        conv1d: linear layers are stored as [in, out].
        free_heads: the heads together may be narrower than the residual stream.
        ragged: llama.cpp's name of a family that reads the sizes of each layer and is otherwise the
            same; None if there is none.
        windows: every so many layers, one attends to all positions and the others to a window;
            None where llama.cpp knows of no windows, or has the same one in all layers.
        llama3: it divides rotary frequencies by the factors of a Llama 3.
        ungrouped: each query head wants a key/value head of its own.
        partial: it rotates a share of each head if the file says so.
        largest: number of layers by which it knows the family's largest model, whose queries it
            scales by hidden size / heads where those of the others are scaled by the head's width.
        keys: writer's method for each config attribute that only some families have.
        requires: values of config attributes that llama.cpp takes for granted.
        needs: config attributes without which it takes a default of its own.
    """

    architecture: MODEL_ARCH
    pairs: bool = False
    norm_offset: float = 0.0
    conv1d: bool = False
    free_heads: bool = False
    ragged: MODEL_ARCH | None = None
    windows: int | None = None
    llama3: bool = False
    ungrouped: bool = False
    partial: bool = False
    largest: int | None = None
    keys: dict[str, str] = field(default_factory=dict)
    requires: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


SILU = {"hidden_act": ("silu", "swish")}
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu")  # llama.cpp has one, a table in half precision
NO_BIAS = {"attention_bias": (False,)}
FORWARD = {"use_bidirectional_attention": (None, False)}
GEMMA = {"hidden_activation": (*GELU, None)} | NO_BIAS | FORWARD
WINDOW = {"sliding_window": "add_sliding_window"}
UNTIED = {"tie_word_embeddings": (False,)}  # it wants an output projection of its own
PARALLEL = {"use_parallel_residual": "add_parallel_residual"}

LLAMA = GgufFamily(
    MODEL_ARCH.LLAMA,
    free_heads=True,
    pairs=True,
    ragged=MODEL_ARCH.DECI,
    llama3=True,
    requires=SILU,
)

FAMILIES: dict[str, GgufFamily] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": GgufFamily(MODEL_ARCH.QWEN2, requires=SILU),
    "qwen3": GgufFamily(MODEL_ARCH.QWEN3, free_heads=True, requires=SILU | NO_BIAS),
    "gemma": GgufFamily(
        MODEL_ARCH.GEMMA,
        free_heads=True,
        norm_offset=1.0,
        requires={"hidden_act": GELU} | NO_BIAS | FORWARD,
    ),
    "gemma2": GgufFamily(
        MODEL_ARCH.GEMMA2,
        free_heads=True,
        norm_offset=1.0,
        windows=2,
        largest=46,
        keys=WINDOW
        | {
            "attn_logit_softcapping": "add_attn_logit_softcapping",
            "final_logit_softcapping": "add_final_logit_softcapping",
        },
        needs=("attn_logit_softcapping", "final_logit_softcapping"),
        requires=GEMMA,
    ),
    "gemma3_text": GgufFamily(
        MODEL_ARCH.GEMMA3,
        free_heads=True,
        norm_offset=1.0,
        windows=6,
        largest=62,
        keys=WINDOW,
        requires=GEMMA | {"final_logit_softcapping": (None,), "attn_logit_softcapping": (None,)},
    ),
    "mixtral": replace(LLAMA, ragged=None),
    "qwen2_moe": GgufFamily(
        MODEL_ARCH.QWEN2MOE, requires=SILU | {"norm_topk_prob": (False,), "qkv_bias": (True,)}
    ),
    "qwen3_moe": GgufFamily(
        MODEL_ARCH.QWEN3MOE,
        free_heads=True,
        requires=SILU | NO_BIAS | {"norm_topk_prob": (True,)},
    ),
    "olmoe": GgufFamily(
        MODEL_ARCH.OLMOE,
        ungrouped=True,  # its norm on keys is as wide as that on queries
        requires=SILU | NO_BIAS | UNTIED | {"norm_topk_prob": (False,), "clip_qkv": (None,)},
    ),
    "smollm3": GgufFamily(
        MODEL_ARCH.SMOLLM3,
        free_heads=True,
        pairs=True,
        requires=SILU | NO_BIAS | {"mlp_bias": (False,), "no_rope_layer_interval": (4,)},
    ),
    "granite": GgufFamily(
        MODEL_ARCH.GRANITE,
        llama3=True,
        free_heads=True,
        pairs=True,
        keys={
            "attention_multiplier": "add_attention_scale",
            "embedding_multiplier": "add_embedding_scale",
            "residual_multiplier": "add_residual_scale",
            "logits_scaling": "add_logit_scale",
        },
        requires=SILU,
    ),
    "olmo": GgufFamily(
        MODEL_ARCH.OLMO, pairs=True, requires=SILU | NO_BIAS | {"clip_qkv": (None,)}
    ),
    "olmo2": GgufFamily(MODEL_ARCH.OLMO2, requires=SILU | NO_BIAS | UNTIED),
    "cohere": GgufFamily(
        MODEL_ARCH.COMMAND_R,
        keys={"logit_scale": "add_logit_scale"},
        requires=SILU | NO_BIAS | {"use_qk_norm": (False,)},
    ),
    "stablelm": GgufFamily(
        MODEL_ARCH.STABLELM,
        partial=True,
        keys=PARALLEL,
        requires=SILU | UNTIED | {"qk_layernorm": (False,)},
    ),
    "nemotron": GgufFamily(
        MODEL_ARCH.NEMOTRON,
        norm_offset=1.0,
        partial=True,
        requires=UNTIED | {"hidden_act": ("relu2",)},
    ),
    "starcoder2": GgufFamily(
        MODEL_ARCH.STARCODER2, requires={"hidden_act": GELU, "use_bias": (True,)}
    ),
    "phi": GgufFamily(
        MODEL_ARCH.PHI2,
        partial=True,
        requires=UNTIED | {"hidden_act": GELU, "qk_layernorm": (False,)},
    ),
    "phi3": GgufFamily(MODEL_ARCH.PHI3, partial=True, requires=SILU),
    "gpt2": GgufFamily(
        MODEL_ARCH.GPT2,
        conv1d=True,
        requires={
            "activation_function": GELU,
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
    ),
    "gpt_neox": GgufFamily(
        MODEL_ARCH.GPTNEOX,
        partial=True,
        keys=PARALLEL,
        requires=UNTIED | {"hidden_act": GELU, "attention_bias": (True,)},
    ),
    "bloom": GgufFamily(
        MODEL_ARCH.BLOOM, requires={"apply_residual_connection_post_layernorm": (False,)}
    ),
    "falcon": GgufFamily(
        MODEL_ARCH.FALCON,
        requires={
            "activation": GELU,
            "alibi": (False,),
            "bias": (False,),
            "parallel_attn": (True,),
        },
    ),
}
