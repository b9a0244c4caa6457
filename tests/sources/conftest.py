"""Tiny models on disk, with a byte-level tokenizer, and the recipe around some corpora."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.recipe import Recipe

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
)


def vocabulary() -> list[str]:
    """Special tokens, all bytes, and two merges."""
    return [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "ĠĠ"]


MERGES = [("t", "h"), ("Ġ", "Ġ")]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: number for number, token in enumerate(vocabulary())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


@pytest.fixture
def model_folder(
    tmp_path: Path, tiny_config: LlamaConfig, tokenizer: PreTrainedTokenizerFast
) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    LlamaForCausalLM(tiny_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe() -> MakeRecipe:
    """Make a recipe of corpora that are given as dictionaries."""

    def make(forget: list[dict[str, Any]], retain: list[dict[str, Any]], **more: Any) -> Recipe:
        def whole(corpora: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{"genre": "test", "licence": "CC0-1.0", **corpus} for corpus in corpora]

        return Recipe.model_validate(
            {
                "name": "test",
                "description": "test",
                "model": {"source": {"path": "model"}},
                "forget": whole(forget),
                "retain": whole(retain),
                "select": {"ffn": {"fraction": 0.1}},
                **more,
            }
        )

    return make


@pytest.fixture
def gguf_file(tmp_path: Path, tiny_config: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny Llama with tied embeddings as a float32 GGUF file."""
    torch.manual_seed(1)
    weights = LlamaForCausalLM(tiny_config).state_dict()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(tiny_config.num_hidden_layers)
    writer.add_context_length(tiny_config.max_position_embeddings)
    writer.add_embedding_length(tiny_config.hidden_size)
    writer.add_feed_forward_length(tiny_config.intermediate_size)
    writer.add_head_count(tiny_config.num_attention_heads)
    writer.add_head_count_kv(tiny_config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(tiny_config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(tiny_config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(vocabulary()) - len(SPECIALS)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in weights.items():
        if stored := _gguf_name(name):
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
            writer.add_tensor(stored, _permuted(tensor, heads).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str | None:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    if name in fixed or not name.startswith("model.layers."):
        return fixed.get(name)
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"


def _permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF keeps the rows of query and key heads in another order, for its rotary embedding."""
    if not heads:
        return tensor
    rows = tensor.shape[0]
    halves = tensor.reshape(heads, 2, rows // heads // 2, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
