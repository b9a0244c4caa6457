"""Tiny random models of every described family, as folders, and ways to cut them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation.tiny import make_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.architectures.description import Dimensions
from pipeline.cache import digest_of_file, write_json
from pipeline.export.checkpoint import copy_companions
from pipeline.export.ragged import MODELING_FILE, model_class
from pipeline.selection.plan import LayerPlan, Plan, Shape
from pipeline.sources.models import ResolvedModel
from pipeline.stages.base import Base, open_base
from pipeline.stages.cut import cuts_and_config
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.cut import SurgeryReport, cut_checkpoint
from pipeline.surgery.masking import masked

# Config fields by family, where the default ones do not do. None leaves a default one out.
OWN_KEYS: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "smollm3": {},
    "granite": {"attention_multiplier": 0.3},
    "olmo": {},
    "olmo2": {},
    "cohere": {"use_qk_norm": True},
    "stablelm": {"head_dim": None, "use_qkv_bias": True, "qk_layernorm": True},
    "nemotron": {},
    "starcoder2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi_normed": {"model_type": "phi", "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "glm": {"attention_bias": True, "partial_rotary_factor": 0.5},
    "phi3": {},
    "phi3_long": {
        "model_type": "phi3",
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 2.1, 2.2, 2.3],
        },
    },
    "gpt2": {**OWN_KEYS, "n_inner": 64},
    "gpt_neo": {
        **OWN_KEYS,
        "num_layers": 3,
        "num_heads": 6,
        "attention_types": [[["global"], 1], [["local"], 2]],
        "window_size": 8,
    },
    "gptj": {**OWN_KEYS, "n_inner": 64, "rotary_dim": 4},
    "codegen": {**OWN_KEYS, "n_inner": 64, "rotary_dim": 4, "num_attention_heads": 8},
    "opt": {**OWN_KEYS, "ffn_dim": 64, "word_embed_proj_dim": 48},
    "mpt": {**OWN_KEYS, "max_seq_len": 512},
    "gpt_neox": {**OWN_KEYS, "rotary_pct": 0.5},
    "bloom": {**OWN_KEYS},
    "falcon_groups": {
        **OWN_KEYS,
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_kv_heads": 3,
        "ffn_hidden_size": 64,
    },
    "falcon_one_key": {
        **OWN_KEYS,
        "model_type": "falcon",
        "multi_query": True,
        "ffn_hidden_size": 64,
    },
    "falcon_heads": {
        **OWN_KEYS,
        "model_type": "falcon",
        "multi_query": False,
        "alibi": True,
        "parallel_attn": False,
        "bias": True,
        "ffn_hidden_size": 64,
    },
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "intermediate_size": 32}
FAMILIES |= {
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen2_moe": {
        **EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32},
    "olmoe": {**EXPERTS, "num_experts": 4, "num_key_value_heads": 6, "head_dim": None},
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "sliding_window": 16},
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
DENSE = tuple(family for family in FAMILIES if family not in MIXTURES)
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")  # whose tensors have the same names


def make_model(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a random model and a tokenizer; biases and norms are random too."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer) + 8,  # some families' tokenizers add tokens of their own
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    fields = {
        key: value
        for key, value in (sizes | FAMILIES.get(family, {}) | config).items()
        if value is not None
    }
    model_type = fields.pop("model_type", family)
    settings = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def base_of(folder: Path) -> Base:
    weights = digest_of_file(sorted(folder.glob("*.safetensors"))[0])
    return open_base(ResolvedModel(folder, "tiny", {"kind": "folder"}, weights, None))


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """Load a model; experts one by one, since their grouped product knows no float64."""
    model = model_class(folder).from_pretrained(folder, dtype=dtype).eval()
    if model.config._experts_implementation == "grouped_mm":
        model.set_experts_implementation("eager")
    return model


def random_plan(
    sizes: Dimensions,
    seed: int,
    *,
    ffn: int | Sequence[int] = 0,
    groups: int = 0,
    per_group: int = 0,
    experts: int = 0,
) -> Plan:
    """Keep random units of every layer: so many neurons, groups and heads of a group; 0 is all.

    In a mixture so many neurons of every expert stay.
    """
    neurons = [ffn] * sizes.layers if isinstance(ffn, int) else ffn
    choose = np.random.default_rng(seed)

    def some(total: int, count: int) -> tuple[int, ...]:
        return tuple(sorted(choose.permutation(total)[: count or total].tolist()))

    layers = []
    for layer in range(sizes.layers):
        kept = some(sizes.kv_heads, groups)
        heads = sizes.heads_per_group
        queries = tuple(g * heads + h for g in kept for h in some(heads, per_group))
        routed = some(sizes.experts, experts)
        units = tuple(
            block.start + unit
            for number, block in enumerate(sizes.blocks)
            if not sizes.experts or number in (*routed, sizes.experts)
            for unit in some(len(block), neurons[layer])
        )
        layers.append(LayerPlan(units, queries, kept, routed))
    return Plan(sizes.neurons, sizes.heads, sizes.kv_heads, tuple(layers), sizes.experts)


def cut(
    base: Base,
    target: Path,
    plan: Plan,
    maps: Mapping[str, CompensationMap] | None = None,
    *,
    ragged: bool = False,
    relabel: bool = False,
    **settings: Any,
) -> SurgeryReport:
    """Write the whole checkpoint of a plan."""
    target.mkdir(parents=True, exist_ok=True)
    cuts, config = cuts_and_config(base, plan, Shape(ragged, relabel))
    report = cut_checkpoint(base.model.path, target, cuts, maps or {}, lambda _: None, **settings)
    write_json(target / "config.json", config)
    copy_companions(base.model.path, target)
    if ragged:
        shutil.copyfile(MODELING_FILE, target / MODELING_FILE.name)
    return report


def mask(
    base: Base, model: nn.Module, plan: Plan, maps: Mapping[str, CompensationMap] | None = None
) -> Any:
    return masked(model, base.architecture, base.dimensions, plan, maps or {})


@torch.inference_mode()
def logits(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    result: Tensor = model(input_ids=ids, **arguments).logits
    return result


def some_ids(base: Base, shape: tuple[int, int] = (3, 20), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, base.config.vocab_size, shape, generator=generator)


def left_padded_ids(base: Base) -> tuple[Tensor, Tensor]:
    """Three rows of ten tokens, two of them padded on the left, and the mask of what counts."""
    ids = some_ids(base, (3, 10))
    attended = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 7)):
        ids[row, :padding] = 0
        attended[row, :padding] = 0
    return ids, attended
