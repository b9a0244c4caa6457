"""The command that writes GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from export.test_gguf import (
    change_tokenizer,
    put_around,
    same_tokens_in_llama_cpp,
    sentencepiece_model,
)
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer

from pipeline.cache import digest_of_file, read_json, write_json
from pipeline.export.gguf import llama_cpp
from pipeline.export.manifest import NAME as MANIFEST

Change = Callable[[Path], object]
PREPEND = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def test_a_release_becomes_one_file_beside_it(release: Any, unlearn: Unlearn) -> None:
    made = release()
    result = unlearn("export", made.folder, "--type", "bf16", "--compare", "--quiet", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    path = made.folder.with_name(f"{made.folder.name}-BF16.gguf")
    assert (found["file"], found["agrees"]) == (str(path), True)
    # Four prompts; odd spaces and letters, added tokens in four ways, a space before.
    assert found["llama_cpp"]["same_tokenization"] == found["llama_cpp"]["texts"] == 4 + 6
    assert found["sha256"] == digest_of_file(path)
    fields = GGUFReader(path).fields
    assert fields["unlearn.manifest_sha256"].contents() == digest_of_file(made.folder / MANIFEST)
    assert fields["unlearn.verdict"].contents() in ("PASS", "FAIL", "INCONCLUSIVE", "UNJUDGED")
    assert made.verify()[0] == 0  # nothing was written into the release


def test_a_checkpoint_without_a_manifest_and_a_name_of_ones_own(
    release: Any, unlearn: Unlearn, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(release().base, folder)
    result = unlearn("export", folder, "--out", tmp_path / "own.gguf", "--quiet")
    assert result.code == 0 and "SHA-256" in result.out
    assert (tmp_path / "own.gguf").stat().st_size > 1000


@pytest.mark.parametrize("spaced", [True, False])
def test_a_space_that_llama_cpp_alone_puts_after_control_tokens_is_said(
    unlearn: Unlearn, tmp_path: Path, spaced: bool
) -> None:
    sentencepiece_model(tmp_path / "m", LlamaTokenizer if spaced else AutoTokenizer)
    result = unlearn("export", "m", "--type", "F32", "--quiet")
    said = "a space between a control token and the text after it" in " ".join(result.out.split())
    assert (result.code, said) == (0, spaced)
    path = tmp_path / "m-F32.gguf"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "</s>the cat"
    theirs = llama_cpp._run(path, {"texts": [text], "contexts": [], "letter": 0})["tokenized"]
    assert (theirs[0] != tokenizer(text, add_special_tokens=False)["input_ids"]) is spaced


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "spaced"),
    [
        ({"type": "Metaspace", "prepend_scheme": "first", "split": False}, None, True),
        ({"type": "Metaspace", "prepend_scheme": "always", "split": False}, None, True),
        ({"type": "Metaspace", "prepend_scheme": "never", "split": False}, None, False),
        (None, {"type": "Sequence", "normalizers": PREPEND}, False),
    ],
)
def test_a_space_that_llama_cpp_alone_puts_before_one_is_said(
    unlearn: Unlearn, tmp_path: Path, pre_tokenizer: Any, normalizer: Any, spaced: bool
) -> None:
    folder = sentencepiece_model(tmp_path / "m", AutoTokenizer)
    replaced = pre_tokenizer and {"replacement": "▁"} | pre_tokenizer
    change_tokenizer(folder, pre_tokenizer=replaced, normalizer=normalizer)
    result = unlearn("export", "m", "--type", "F32", "--compare", "--quiet")
    said = "before a text that begins with one too" in " ".join(result.out.split())
    assert (result.code, said) == (0, spaced), result.out
    assert same_tokens_in_llama_cpp(folder, [" the cat"]) is not spaced


@pytest.mark.parametrize("name", ["Phi-3-mini", "other"])
@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word", ""])
def test_tokens_that_take_the_spaces_beside_them(
    unlearn: Unlearn, tmp_path: Path, name: str, option: str
) -> None:
    """llama.cpp lets those of models named Phi-3 take the space after them, and no others."""
    folder = make_model(tmp_path / name, "phi3", vocab_size=420)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    taking = {"special": True, "rstrip": name == "Phi-3-mini"}
    endings = [AddedToken(text, **taking) for text in ("</s>", "<|end|>")]
    tokenizer.add_tokens(["<unk>", "<s>", "<|endoftext|>", *endings], special_tokens=True)
    options = {option: True} if option else {}
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, **options)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    result = unlearn("export", name, "--type", "F32", "--compare", "--quiet")
    same = option == ("rstrip" if name == "Phi-3-mini" else "")
    said = "reads spaces beside <|user|>" in " ".join(result.out.split())
    assert (said, result.code) == (not same, 0 if same else 1), result.out


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_that_are_sought_after_a_space(
    unlearn: Unlearn, tmp_path: Path, normalized: bool
) -> None:
    folder = sentencepiece_model(tmp_path / "m", AutoTokenizer)
    prepended = {"type": "Sequence", "normalizers": PREPEND}
    change_tokenizer(folder, pre_tokenizer=None, normalizer=prepended)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<own>", normalized=normalized)])
    tokenizer.save_pretrained(folder)
    result = unlearn("export", "m", "--type", "F32", "--compare", "--quiet")
    said = "finds <own> after a space only" in " ".join(result.out.split())
    assert (said, result.code) == (normalized, int(normalized)), result.out


def test_a_name_by_which_llama_cpp_expects_tokens(unlearn: Unlearn, tmp_path: Path) -> None:
    make_model(tmp_path / "my-phi3")
    result = unlearn("export", "my-phi3", "--type", "F32", "--compare", "--quiet")
    assert result.code == 0, result.err
    name = GGUFReader(tmp_path / "my-phi3-F32.gguf").fields["general.name"].contents()
    assert name == "my-Phi 3"


def test_tokens_around_a_text_of_which_a_file_says_one(unlearn: Unlearn, tmp_path: Path) -> None:
    put_around(make_model(tmp_path / "m"), before=True, after=False, times=2)
    result = unlearn("export", "m", "--type", "F32", "--quiet")
    assert result.code == 0 and "of which a GGUF file can say one" in " ".join(result.out.split())


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_ragged_checkpoint_runs_in_llama_cpp(release: Any, unlearn: Unlearn, family: str) -> None:
    """As `deci`, the one family of llama.cpp that reads the sizes of each layer."""
    overrides = ["select.policy=ragged", "select.ffn.fraction=0.3", "select.attention.fraction=0.4"]
    made = release(family, *overrides)
    options = ["--type", "F32", "--compare", "--quiet", "--json"]
    result = unlearn("export", made.folder, *options)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["llama_cpp"]["same_tokens"] == found["llama_cpp"]["tokens"] == 80
    assert found["llama_cpp"]["max_difference"] < 0.02
    fields = GGUFReader(found["file"]).fields
    plan = read_json(made.folder / MANIFEST)["plan"]["layers"]
    for key, kind in (
        ("deci.feed_forward_length", "ffn"),
        ("deci.attention.head_count", "query_heads"),
        ("deci.attention.head_count_kv", "kv_heads"),
    ):
        counts = [len(layer[kind]) for layer in plan]
        assert fields[key].contents() == counts and len(set(counts)) > 1


def test_other_ragged_checkpoints_are_refused(release: Any, unlearn: Unlearn) -> None:
    folder = release("qwen3", "select.policy=ragged", "select.ffn.fraction=0.3").folder
    result = unlearn("export", folder, "--quiet")
    assert result.code == 2 and "in those of llama, mistral they may differ" in result.err
    result = unlearn("inspect", folder)
    assert result.code == 2 and "a ragged checkpoint cannot be cut again" in result.err


@pytest.mark.parametrize("changed", [[], {"0": 3}, None])
def test_a_ragged_config_without_the_sizes_of_its_layers(
    release: Any, unlearn: Unlearn, changed: Any
) -> None:
    folder = release("llama", "select.policy=ragged", "select.ffn.fraction=0.3").folder
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"per_layer_config": changed})
    result = unlearn("export", folder, "--quiet")
    assert result.code == 2 and "per_layer_config of the model's config" in result.err


def test_a_ragged_config_that_counts_heads_in_two_ways(release: Any, unlearn: Unlearn) -> None:
    """Three heads of 16 have the shapes of six of 8."""
    folder = release("llama", "select.policy=ragged", "select.attention.fraction=0.4").folder
    config = read_json(folder / "config.json")
    changed = next(iter(config["per_layer_config"].values()))
    heads, width = changed["num_attention_heads"], config["head_dim"]
    changed |= {"num_attention_heads": 2 * heads, "head_dim": width // 2}
    changed["num_key_value_heads"] *= 2
    write_json(folder / "config.json", config)
    result = unlearn("export", folder, "--quiet")
    assert result.code == 2 and "counts heads in one way for transformers" in result.err


def test_bad_input(release: Any, unlearn: Unlearn, tmp_path: Path) -> None:
    folder = release().folder
    for arguments, message in (
        (("nowhere",), "no such"),
        ((folder, "--type", "Q2"), "choose F32, F16, BF16, Q8_0"),
        ((folder, "--out", tmp_path), "no place for a file"),
        ((folder, "--out", tmp_path / "a/b.gguf"), "no place for a file"),
    ):
        result = unlearn("export", *arguments, "--quiet")
        assert result.code == 2 and message in result.err and "Traceback" not in result.err


# ── folders that hold no whole model ─────────────────────────────────────────────────────────────


def config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        write_json(folder / "config.json", read_json(folder / "config.json") | fields)

    return change


def drop(*ends: str) -> Change:
    def change(folder: Path) -> None:
        kept = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.endswith(ends)}
        save_file(kept, folder / WEIGHTS, {"format": "pt"})

    return change


def index(content: Any) -> Change:
    return lambda folder: (folder / INDEX).write_text(json.dumps(content))


def outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "out.safetensors")
    names = load_file(folder.parent / "out.safetensors")
    index({"weight_map": dict.fromkeys(names, "../out.safetensors")})(folder)


def in_two(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for number in (0, 1):
        part = {name: tensors[name] for name in list(tensors)[number::2]}
        save_file(part, folder / f"{number}.safetensors", {"format": "pt"})


def in_two_forms(folder: Path) -> None:
    """Shards of other weights beside the file: transformers reads the one, others the other."""
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v + 1 for k, v in tensors.items()}, folder / "0.safetensors", {"format": "pt"})
    index({"weight_map": dict.fromkeys(tensors, "0.safetensors")})(folder)


def shard_missing(folder: Path) -> None:
    in_two(folder)
    (folder / "1.safetensors").unlink()
    index({"weight_map": {"a": "0.safetensors", "b": "1.safetensors"}})(folder)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "the index names a file outside the folder"),
        (drop("lm_head.weight"), "the checkpoint lacks weights: lm_head.weight"),
        (config(attention_bias=True), "the checkpoint lacks weights: model.layers.0.self_attn"),
        (config(vocab_size=40), "its weights have other shapes than config.json says"),
        (config(intermediate_size=80), "has 64 entries where its config says 80"),
        (config(num_hidden_layers=4), "do not fit the model's config: there is no tensor"),
        (in_two, f"there are 2 safetensors files but no {INDEX}"),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised (gptq)"),
        (shard_missing, "1 of 2 weight files are missing: 1.safetensors"),
        (index([]), "this is not a JSON object"),
        (index({"weight_map": {"a": 3}}), "1 of 1 weight files are missing: 3"),
        (pickled, "its weights are pickled"),
        (cut_short, "damaged or cut short"),
        (in_two_forms, f"in two forms, {WEIGHTS} and the files that {INDEX} names"),
        (config(per_layer_config={"0": {"num_key_value_heads": 1}}), "sizes layer by layer"),
    ],
)
def test_what_is_no_whole_model_is_refused_as_everywhere(
    unlearn: Unlearn, tmp_path: Path, release: Any, change: Change, words: str
) -> None:
    shutil.copytree(release().base, tmp_path / "broken")
    change(tmp_path / "broken")
    result = unlearn("export", "broken", "--type", "F32", "--out", "m.gguf", "--quiet")
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))
    if change is not pickled:  # which is described without being read
        inspected = unlearn("inspect", "broken")
        assert inspected.code == 2 and words in inspected.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (config(num_local_experts=5), "do not fit the model's config: there is no tensor"),
        (config(num_hidden_layers=4), "do not fit the model's config: there is no tensor"),
    ],
)
def test_a_mixture_with_less_than_its_config_says(
    unlearn: Unlearn, tmp_path: Path, change: Change, words: str
) -> None:
    change(make_model(tmp_path / "mixture", "mixtral"))
    for verb in ("inspect", "export"):
        result = unlearn(verb, "mixture")
        assert result.code == 2 and words in result.err
        assert "mixture: " in result.err
        assert "config.json and weights are of two models" in result.err


def layer(number: str, **fields: int) -> Change:
    def change(folder: Path) -> None:
        changed = read_json(folder / "config.json")["per_layer_config"]
        changed[number] = changed.get(number, {}) | fields
        config(per_layer_config=changed)(folder)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (layer("1", intermediate_size=32), "entries where its config says 32"),
        (layer("1", num_attention_heads=5, num_key_value_heads=5), "where its config says"),
        (layer("1", intermediate_size=-5), "intermediate_size of the model's config is -5"),
        (drop("lm_head.weight"), "the checkpoint lacks weights: lm_head.weight"),
        (drop("layers.1.mlp.up_proj.weight"), "there is no tensor 'model.layers.1.mlp.up_proj"),
        (config(ragged=5), "cannot be loaded"),
        (config(ragged={"shapes": {}, "attributes": {}}), "its weights have other shapes"),
        (config(num_hidden_layers="x"), "num_hidden_layers"),
        (cut_short, "damaged or cut short"),
    ],
)
def test_a_ragged_checkpoint_whose_parts_do_not_belong_together(
    release: Any, unlearn: Unlearn, tmp_path: Path, change: Change, words: str
) -> None:
    folder = release("llama", "select.policy=ragged", "select.ffn.fraction=0.3").folder
    change(folder)
    result = unlearn("export", folder, "--out", tmp_path / "m.gguf", "--quiet")
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_ragged_families_whose_config_says_nothing_of_it(
    release: Any, unlearn: Unlearn, family: str
) -> None:
    folder = release(family, "select.policy=ragged", "select.ffn.fraction=0.3").folder
    result = unlearn("export", folder, "--quiet")
    words = "no key for the width of its layers" if family == "bloom" else "the same width in all"
    assert result.code == 2 and words in result.err
