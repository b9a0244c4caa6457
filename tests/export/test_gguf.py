"""GGUF files in real llama.cpp, against the checkpoints that they were made from."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from evaluation.tiny import sentences
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file, save_file
from tiny_models import base_of, cut, load, make_model, random_plan
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer

from pipeline.cache import read_json, write_json
from pipeline.errors import BrokenError, InputError
from pipeline.export.gguf import families, llama_cpp, tokenizer_checks
from pipeline.export.gguf.checkpoint import Checkpoint
from pipeline.export.gguf.file import WeightType, write_gguf
from pipeline.export.gguf.llama_cpp import Agreement, compare_with_llama_cpp
from pipeline.export.gguf.tokenizer import tokenizer_notes
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]
TEXTS = ("the cat sat on 12", "def x ( y ) : return z")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
# What llama.cpp has of a family, where it is not what the other tests' tiny model has.
# Nothing that llama.cpp would take by itself: what is not written, or read, shows.
RMS = {"rms_norm_eps": 0.01}
NORM = {"layer_norm_eps": 0.01}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": RMS,
    "mistral": RMS,
    "qwen2": RMS,
    "qwen3": RMS,
    "gemma": TIED | RMS,
    "gemma2": TIED | RMS | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": TIED
    | RMS
    | {
        "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    },
    "smollm3": RMS | {"num_hidden_layers": 5},
    "granite": RMS
    | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "olmo": {},  # whose epsilon is in its code
    "olmo2": RMS,
    "cohere": TIED | NORM | {"use_qk_norm": False, "logit_scale": 0.3},
    "stablelm": NORM | {"qk_layernorm": False},
    "nemotron": {"norm_eps": 0.01},
    "starcoder2": {"norm_epsilon": 0.01},
    "phi": NORM,
    "phi3": RMS,
    "gpt2": {"layer_norm_epsilon": 0.01},
    "gpt_neox": NORM,
    "bloom": TIED | {"layer_norm_epsilon": 0.01},
    "falcon_groups": TIED | {"layer_norm_epsilon": 0.01},
    "falcon_one_key": TIED | {"layer_norm_epsilon": 0.01},
    "mixtral": RMS,
    "qwen2_moe": RMS,
    "qwen3_moe": RMS | {"norm_topk_prob": True},
    "olmoe": RMS,
}


def checkpoint_of(base: Base) -> Checkpoint:
    tensors = list(base.tensors.values())
    folder, layers = base.model.path, (base.dimensions,) * base.dimensions.layers
    return Checkpoint(folder, base.config, base.architecture, layers, tensors, base.tokenizer)


def write(base: Base, path: Path, kind: WeightType = "F32", pre: str | None = None) -> list[str]:
    return write_gguf(
        path, checkpoint_of(base), kind, {"general.name": "tiny"}, pre, lambda _: None
    )


def agreement(base: Base, path: Path, tokens: int = 12) -> Agreement:
    model = load(base.model.path, torch.float32)
    return compare_with_llama_cpp(path, model, base.tokenizer, TEXTS, tokens)


@pytest.mark.parametrize("family", CONFIGS)
def test_llama_cpp_runs_a_cut_checkpoint_of_every_family(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    whole = tiny_base(family, **CONFIGS[family])
    known = families.FAMILIES[whole.config.model_type]
    groups = 2 if known.free_heads else 0
    mixture = whole.dimensions.experts > 0
    plan = random_plan(
        whole.dimensions, 1, ffn=16 if mixture else 32, groups=groups, experts=3 if mixture else 0
    )
    cut(whole, tmp_path / "cut", plan)
    base = base_of(tmp_path / "cut")
    write(base, tmp_path / "cut.gguf")
    found = agreement(base, tmp_path / "cut.gguf")
    assert (found.same_tokens, found.same_tokenization) == (24, 2)
    assert found.max_difference < 0.02 and found.holds("F32")


def test_every_described_family_is_tested() -> None:
    types = {"falcon" if name.startswith("falcon") else name for name in CONFIGS}
    assert types == set(families.FAMILIES)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("llama", TIED),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"qk_layernorm": False, "use_parallel_residual": True}),
    ],
    ids=["biases", "llama3", "linear", "tied", "sequential", "parallel"],
)
def test_variants(tiny_base: TinyBase, tmp_path: Path, family: str, config: Any) -> None:
    base = tiny_base(family, **config)
    write(base, tmp_path / "m.gguf")
    assert agreement(base, tmp_path / "m.gguf").max_difference < 0.02


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": (1, 1, 9, 9)}),
        ("gpt_neox", {"gpt_neox.layers.1.attention.masked_bias": ()}),
        ("llama", {"model.layers.2.self_attn.rotary_emb.inv_freq": (4,)}),
    ],
)
def test_buffers_of_older_checkpoints_are_left_behind(
    tiny_base: TinyBase, tmp_path: Path, family: str, buffers: dict[str, tuple[int, ...]]
) -> None:
    """No model loads them, and they are no parameters."""
    shutil.copytree(tiny_base(family).model.path, tmp_path / "old")
    weights = tmp_path / "old/model.safetensors"
    added = {name: torch.ones(shape) for name, shape in buffers.items()}
    save_file(load_file(weights) | added, weights, {"format": "pt"})
    base = base_of(tmp_path / "old")
    plan = random_plan(base.dimensions, 1, ffn=32)
    counts = cut(base, tmp_path / "cut", plan).parameters
    assert counts == cut(tiny_base(family), tmp_path / "new", plan).parameters
    write(base_of(tmp_path / "cut"), tmp_path / "m.gguf")
    assert agreement(base_of(tmp_path / "cut"), tmp_path / "m.gguf").holds("F32")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_types(tiny_base: TinyBase, tmp_path: Path, kind: WeightType) -> None:
    base = tiny_base("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    assert write(base, tmp_path / "m.gguf", kind) == []
    reader = GGUFReader(tmp_path / "m.gguf")
    stored = {len(t.shape): t.tensor_type for t in reader.tensors}
    assert stored == {1: GGMLQuantizationType.F32, 2: GGMLQuantizationType[kind]}
    assert agreement(base, tmp_path / "m.gguf").holds(kind)


def test_rows_that_do_not_fill_blocks_stay_in_f16(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama", intermediate_size=64)  # hidden_size 48
    left = write(base, tmp_path / "m.gguf", "Q8_0")
    assert "blk.0.attn_q.weight" in left and "blk.0.ffn_down.weight" not in left
    assert agreement(base, tmp_path / "m.gguf").holds("Q8_0")


@pytest.mark.parametrize(
    ("family", "config", "name"),
    [("qwen2_moe", {"num_key_value_heads": 4}, "ffn_gate_inp"), ("gpt2", {}, "position_embd")],
)
def test_what_stays_in_f32(
    tiny_base: TinyBase, tmp_path: Path, family: str, config: dict[str, int], name: str
) -> None:
    base = tiny_base(family, hidden_size=64, num_attention_heads=8, **config)
    left = write(base, tmp_path / "m.gguf", "Q8_0")
    kinds = {t.name: t.tensor_type for t in GGUFReader(tmp_path / "m.gguf").tensors}
    found = {kind for full, kind in kinds.items() if full.split(".")[-2] == name}
    assert found == {GGMLQuantizationType.F32}
    assert not any(name in each for each in left)
    assert agreement(base, tmp_path / "m.gguf").holds("Q8_0")


def test_the_same_checkpoint_gives_the_same_bytes(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("qwen3", dtype=torch.bfloat16)
    for name in ("one", "two"):
        write(base, tmp_path / name, "F16")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_rows_in_the_wrong_order_are_noticed(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    wrong = families.GgufFamily(families.MODEL_ARCH.LLAMA, pairs=False, free_heads=True)
    monkeypatch.setitem(families.FAMILIES, "llama", wrong)
    write(base, tmp_path / "m.gguf")
    found = agreement(base, tmp_path / "m.gguf")
    assert not any(found.holds(kind) for kind in llama_cpp.TOLERANCES if kind != "Q8_0")


def sentencepiece_model(folder: Path, kind: Any = LlamaTokenizer, **settings: Any) -> Path:
    """A tiny model with a SentencePiece tokenizer, as a class of transformers loads it."""
    make_model(folder, "mistral", vocab_size=420)
    for old in folder.glob("tokenizer*"):
        old.unlink()
    text = folder.with_suffix(".txt")
    text.write_text("\n".join(sentences(200)))
    wanted = {
        "vocab_size": 380,
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        hard_vocab_limit=False,
        minloglevel=2,
        **(wanted | settings),
    )
    kind.from_pretrained(folder).save_pretrained(folder)
    return folder


def change_tokenizer(folder: Path, **parts: Any) -> None:
    content = read_json(folder / "tokenizer.json")
    content["model"] |= parts.pop("model", {})
    write_json(folder / "tokenizer.json", content | parts)


def in_sequence(key: str, step: dict[str, Any]) -> dict[str, Any]:
    """A step inside two sequences."""
    return {"type": "Sequence", key: [{"type": "Sequence", key: [step]}]}


def put_around(folder: Path, before: bool, after: bool, times: int = 1, **config: Any) -> None:
    """Let a byte-pair tokenizer put its first token before or after each text."""
    token = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(0)
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"id": "A", "type_id": 0}
    around = [special] * times
    single = around * before + [{"Sequence": text}] + around * after
    change_tokenizer(
        folder,
        post_processor={
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
        },
    )
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | config)


def same_tokens_in_llama_cpp(folder: Path, texts: list[str], pre: str | None = None) -> bool:
    base, path = base_of(folder), folder.with_suffix(".gguf")
    write(base, path, pre=pre)
    found = llama_cpp._run(path, {"texts": texts, "contexts": [], "letter": 0})["tokenized"]
    return bool(found == [base.tokenizer(text)["input_ids"] for text in texts])


@pytest.mark.parametrize("kind", [LlamaTokenizer, AutoTokenizer], ids=["space first", "none"])
def test_a_sentencepiece_tokenizer(tmp_path: Path, kind: Any) -> None:
    folder = sentencepiece_model(tmp_path / "m", kind)
    base = base_of(folder)
    write(base, tmp_path / "m.gguf")
    found = agreement(base, tmp_path / "m.gguf")
    assert (found.same_tokenization, found.same_tokens) == (2, 24)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"tokenizer is BPE without a tokenizer\.model"):
        write(base_of(folder), tmp_path / "n.gguf")


@pytest.mark.parametrize("pieces", [True, False], ids=["sentencepiece", "byte pairs"])
def test_added_tokens(tmp_path: Path, pieces: bool) -> None:
    folder = tmp_path / "m"
    if pieces:
        sentencepiece_model(folder, user_defined_symbols=["<turn>"])
    else:
        make_model(folder, vocab_size=420)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<turn>"], special_tokens=True)
    tokenizer.add_tokens(["<own>"])
    tokenizer.save_pretrained(folder)
    base = base_of(folder)
    write(base, tmp_path / "m.gguf")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    found = {token: kinds[tokens.index(token)] for token in ("<|im_start|>", "<turn>", "<own>")}
    assert found == {"<|im_start|>": 3, "<turn>": 3, "<own>": 4}  # control, and user-defined
    text = ["the cat<own><turn><|im_start|><turn>"]
    model = load(folder, torch.float32)
    path = tmp_path / "m.gguf"
    compared = compare_with_llama_cpp(path, model, base.tokenizer, TEXTS, 4, text)
    assert (compared.same_tokenization, compared.texts, compared.tokens) == (3, 3, 8)
    assert compared.holds("F32")


@pytest.mark.parametrize("pieces", [True, False], ids=["sentencepiece", "byte pairs"])
def test_more_tokens_than_the_embedding_has_rows(tmp_path: Path, pieces: bool) -> None:
    folder = sentencepiece_model(tmp_path / "m") if pieces else make_model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{number}>" for number in range(60)])
    tokenizer.save_pretrained(folder)
    rows = base_of(folder).config.vocab_size
    with pytest.raises(InputError, match=rf"up to number \d+, its embedding has {rows} rows"):
        write(base_of(folder), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, r"something \(Lowercase\) that llama.cpp does not"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "NFC"}, {"type": "NFKC"}],
                }
            },
            r"normalizer of its tokenizer does something \(NFKC\)",
        ),
        ({"model": {"end_of_word_suffix": "</w>"}}, "has end_of_word_suffix, which llama.cpp"),
        (
            {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True, "add_prefix_space": True}},
            "a space before each text",
        ),
        ({"normalizer": {"type": "NFC"}}, ""),
        ({"normalizer": in_sequence("normalizers", {"type": "NFC"})}, ""),
        ({"pre_tokenizer": in_sequence("pretokenizers", BYTE_LEVEL | {"use_regex": True})}, ""),
    ],
)
def test_what_a_byte_pair_tokenizer_does_besides(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    change_tokenizer(make_model(tmp_path / "m"), **parts)
    for pre in (None, "gpt-2"):
        if message:
            with pytest.raises(InputError, match=message):
                write(base_of(tmp_path / "m"), tmp_path / "m.gguf", pre=pre)
        else:
            write(base_of(tmp_path / "m"), tmp_path / "m.gguf", pre=pre)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AutoTokenizer, {"model_type": "unigram"}, "SentencePiece model that is no byte-pair"),
        (LlamaTokenizer, {"model_type": "unigram"}, "SentencePiece model that is no byte-pair"),
        (AutoTokenizer, {"normalization_rule_name": "nmt_nfkc"}, r"something \(Precompiled\)"),
        (LlamaTokenizer, {"byte_fallback": False}, "no pieces for bytes"),
    ],
)
def test_what_llama_cpp_does_not_do_with_sentencepiece(
    tmp_path: Path, kind: Any, settings: dict[str, Any], message: str
) -> None:
    folder = sentencepiece_model(tmp_path / "m", kind, **settings)
    with pytest.raises(InputError, match=message):
        write(base_of(folder), tmp_path / "m.gguf")


@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_bos_token": True}])
@pytest.mark.parametrize("around", [(False, False), (True, False), (False, True), (True, True)])
def test_tokens_put_around_a_text_by_byte_pairs(
    tmp_path: Path, around: tuple[bool, bool], config: dict[str, bool]
) -> None:
    """What a config says besides is not asked: some classes of transformers do not either."""
    put_around(make_model(tmp_path / "m"), *around, **config)
    assert len(base_of(tmp_path / "m").tokenizer("")["input_ids"]) == sum(around)
    assert same_tokens_in_llama_cpp(tmp_path / "m", ["the cat sat"])


@pytest.mark.parametrize("saved_by", [LlamaTokenizer, AutoTokenizer])
@pytest.mark.parametrize("options", [{}, {"bos": True}, {"eos": True}, {"bos": True, "eos": True}])
def test_tokens_put_around_a_text_by_sentencepiece(
    tmp_path: Path, options: dict[str, bool], saved_by: Any
) -> None:
    folder = sentencepiece_model(tmp_path / "m", saved_by)
    added = {f"add_{kind}_token": value for kind, value in options.items()}
    LlamaTokenizer.from_pretrained(folder, **added).save_pretrained(folder)
    assert len(base_of(folder).tokenizer("")["input_ids"]) == len(options)
    assert same_tokens_in_llama_cpp(folder, ["the cat sat"])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("named", [None, "lfm2", "dbrx"])
@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_words_that_merges_do_not_make(
    tmp_path: Path, pre: str, named: str | None, whole: bool
) -> None:
    """Llama 3's tokenizer and LFM2's take them whole if they are tokens, GPT-2's and DBRX's not."""
    folder = make_model(tmp_path / "m", vocab_size=420)
    content = read_json(folder / "tokenizer.json")
    model = content["model"] | {"ignore_merges": whole}
    steps = [BYTE_LEVEL | rules for rules in tokenizer_checks.PRE_TOKENIZERS[pre]]
    change_tokenizer(
        folder, model=model, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}
    )
    assert same_tokens_in_llama_cpp(folder, ["the cat sat"], named)  # merges make all of these
    model["vocab"]["zyxw"] = len(model["vocab"])
    change_tokenizer(folder, model=model)
    if whole == ((named or pre) in ("llama-bpe", "lfm2")):
        assert same_tokens_in_llama_cpp(folder, ["zyxw", "the cat sat"], named)
    else:
        with pytest.raises(InputError, match=r"words whole that merges do not make \('zyxw'"):
            write(base_of(folder), tmp_path / "n.gguf", pre=named)


@pytest.mark.parametrize(
    ("lacking", "said"), [("", None), ("ÿÀõ", None), ("Ą", "1 bytes"), ("ô¿Ą", "3 bytes")]
)
def test_bytes_without_a_token(tmp_path: Path, lacking: str, said: str | None) -> None:
    """Those that UTF-8 never has are not missed; a byte's letter is that of byte-level BPE."""
    folder = make_model(tmp_path / "m")
    vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
    assert {*lacking} <= vocabulary.keys()
    kept = {letter: number for letter, number in vocabulary.items() if letter not in {*lacking}}
    change_tokenizer(folder, model={"vocab": kept})
    base = base_of(folder)
    write(base, tmp_path / "m.gguf")
    notes = [
        note for note in tokenizer_notes(base.tokenizer, folder, "m") if "no token for" in note
    ]
    assert [said in note for note in notes] == ([True] if said else [])


def test_a_letter_that_was_added(tmp_path: Path) -> None:
    """Whether a space is put first is not asked of a text that is one added token."""
    folder = sentencepiece_model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["a"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert same_tokens_in_llama_cpp(folder, ["the dog", "the"])


@pytest.mark.parametrize("kind", ["byte pairs", "sentencepiece"])
def test_the_token_that_ends_a_text(tmp_path: Path, kind: str) -> None:
    """Another that is put after a text does not take its place; without one llama.cpp guesses."""
    folder = tmp_path / "m"
    sentencepiece_model(folder) if kind == "sentencepiece" else make_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other = tokenizer.convert_ids_to_tokens(5)
    if kind == "byte pairs":
        put_around(folder, before=False, after=True)
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | {"eos_token": other})
    base = base_of(folder)
    write(base, tmp_path / "m.gguf")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == base.tokenizer.eos_token_id
    assert not fields["tokenizer.ggml.add_eos_token"].contents()
    base.tokenizer.eos_token = None
    change_tokenizer(folder, post_processor=None)
    config = folder / "config.json"
    write_json(config, {k: v for k, v in read_json(config).items() if k != "eos_token_id"})
    write_json(path, {k: v for k, v in read_json(path).items() if k != "eos_token"})
    with pytest.raises(InputError, match="no token that ends a text"):
        write(base, tmp_path / "n.gguf")


def test_a_tokenizer_that_was_changed_beside_its_sentencepiece_model(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "m", AutoTokenizer)
    vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
    more = vocabulary | {"▁catdog": len(vocabulary)}
    change_tokenizer(folder, model={"vocab": more})
    with pytest.raises(InputError, match=r"'▁catdog' in its tokenizer and None in tokenizer.model"):
        write(base_of(folder), tmp_path / "m.gguf")
    first, second = [text for text in vocabulary if text.startswith("▁")][:2]
    swapped = vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    change_tokenizer(folder, model={"vocab": swapped})
    with pytest.raises(InputError, match=r"in tokenizer.model: one of the two was changed"):
        write(base_of(folder), tmp_path / "m.gguf")


def test_steps_before_sentencepiece_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "m")
    split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    for step, message in (
        ({"type": "Digits", "individual_digits": True}, r"pre_tokenizer .* does .* \(Digits\)"),
        (split, r"pre_tokenizer of its tokenizer does something \(Metaspace\)"),
        (None, "leaves spaces as they are"),
    ):
        change_tokenizer(folder, pre_tokenizer=step, normalizer=None)
        with pytest.raises(InputError, match=message):
            write(base_of(folder), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("opt", {}, "family 'opt' cannot be written as GGUF here; those of bloom, cohere"),
        ("llama", {"hidden_act": "gelu"}, "no llama whose hidden_act is 'gelu'; it computes with"),
        ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2}, "wants heads · head_dim"),
        ("gemma2", TIED | {"query_pre_attn_scalar": 4}, r"by query_pre_attn_scalar \(4\)"),
        ("gemma2", {}, "no place for the tensor 'lm_head.weight'"),
        ("gemma3_text", TIED | {"final_logit_softcapping": 2.0}, "final_logit_softcapping is 2.0"),
        ("phi", TIED, "no phi whose tie_word_embeddings is True"),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, "in every 4th layer, this model in others"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary positions of type 'dynamic' are not written",
        ),
        (
            "gemma3_text",
            TIED | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
            "attends to all positions in every 6th layer",
        ),
        ("qwen2", {"rope_parameters": LLAMA3}, "type 'llama3' are not written as GGUF for a qwen2"),
        (
            "gemma3_text",
            TIED
            | {"rope_parameters": {"full_attention": LLAMA3, "sliding_attention": DEFAULT_ROPE}},
            "type 'llama3' are not written as GGUF for a gemma3_text",
        ),
        (
            "gemma3_text",
            TIED
            | {"rope_parameters": {"full_attention": DEFAULT_ROPE, "sliding_attention": LINEAR}},
            "type 'linear' are not written as GGUF for a gemma3_text",
        ),
        (
            "gemma3_text",
            TIED | {"use_bidirectional_attention": True},
            "use_bidirectional_attention",
        ),
        ("smollm3", {"attention_bias": True}, "no smollm3 whose attention_bias is True"),
        ("cohere", TIED | {"attention_bias": True}, "no cohere whose attention_bias is True"),
        ("starcoder2", {"use_bias": False}, "no starcoder2 whose use_bias is False"),
        ("olmo2", TIED, "no olmo2 whose tie_word_embeddings is True"),
        ("olmoe", {"num_key_value_heads": 3}, "wants a key/value head for each query head"),
        (
            "llama",
            {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.5}},
            "rotates whole heads, this model a share of 0.5",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    tiny_base: TinyBase, tmp_path: Path, family: str, config: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(tiny_base(family, **config), tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))


# llama.cpp knows the largest model of these families by its number of layers.
LARGEST: dict[str, dict[str, Any]] = {
    "gemma2": CONFIGS["gemma2"] | {"num_hidden_layers": 46, "initializer_range": 0.05},
    "gemma3_text": TIED | {"num_hidden_layers": 62, "initializer_range": 0.03},
}


@pytest.mark.parametrize("family", LARGEST)
def test_queries_of_the_largest_of_a_family_are_scaled_by_another_rule(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    """By hidden size / heads (48 / 6), which changes with the number of heads; 6 is a head's."""
    base = tiny_base(family, **LARGEST[family], head_dim=6, query_pre_attn_scalar=8)
    write(base, tmp_path / "m.gguf")
    assert agreement(base, tmp_path / "m.gguf").holds("F32")
    with pytest.raises(InputError, match=r"by hidden_size / num_attention_heads \(8\), .* \(6\)"):
        write(tiny_base(family, **LARGEST[family], head_dim=6, query_pre_attn_scalar=6), tmp_path)
    plan = random_plan(base.dimensions, 1, ffn=32, groups=2)
    cut(base, tmp_path / "cut", plan)
    with pytest.raises(InputError, match=r"of a .* layers by .* \(12\), this model by .* \(8\)"):
        write(base_of(tmp_path / "cut"), tmp_path / "n.gguf")


def test_a_model_one_layer_short_of_the_largest_is_scaled_by_its_heads(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    config = LARGEST["gemma2"] | {"num_hidden_layers": 45}
    with pytest.raises(InputError, match=r"by head_dim \(6\), this model by .* \(8\)"):
        write(tiny_base("gemma2", **config, head_dim=6, query_pre_attn_scalar=8), tmp_path)
    base = tiny_base("gemma2", **config, query_pre_attn_scalar=8)
    cut(base, tmp_path / "cut", random_plan(base.dimensions, 1, groups=2))
    write(base_of(tmp_path / "cut"), tmp_path / "m.gguf")
    assert agreement(base_of(tmp_path / "cut"), tmp_path / "m.gguf").holds("F32")


def test_a_default_of_llama_cpp_is_not_relied_on(tiny_base: TinyBase, tmp_path: Path) -> None:
    folder = tmp_path / "uncapped"
    shutil.copytree(tiny_base("gemma2", **TIED).model.path, folder)
    path = folder / "config.json"
    write_json(path, read_json(path) | {"attn_logit_softcapping": None})
    with pytest.raises(InputError, match="no gemma2 without attn_logit_softcapping"):
        write(base_of(folder), tmp_path / "m.gguf")


def test_positions_end_with_a_window_that_llama_cpp_does_not_have(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    write(tiny_base("mistral", sliding_window=40), tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["llama.context_length"].contents() == 40


def test_a_window_that_llama_cpp_forgets_ends_the_positions_too(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("phi3", sliding_window=40)
    write(base, tmp_path / "m.gguf")
    assert GGUFReader(tmp_path / "m.gguf").fields["phi3.context_length"].contents() == 40
    assert agreement(base, tmp_path / "m.gguf").holds("F32")


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_is_stored_apart(tiny_base: TinyBase, tmp_path: Path, same: bool) -> None:
    """transformers computes with a stored head that differs, and the file has no place for it."""
    folder = tmp_path / "tied"
    shutil.copytree(tiny_base("qwen2", **TIED).model.path, folder)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = head if same else head + 0.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if same:
        write(base_of(folder), tmp_path / "m.gguf")
        assert agreement(base_of(folder), tmp_path / "m.gguf").holds("F32")
        return
    with pytest.raises(InputError, match="and its stored head is another"):
        write(base_of(folder), tmp_path / "m.gguf")


def test_tied_embeddings_under_the_name_of_the_head(tiny_base: TinyBase, tmp_path: Path) -> None:
    """As `safetensors.torch.save_model` leaves them: llama.cpp would find no embeddings."""
    folder = tmp_path / "tied"
    shutil.copytree(tiny_base("qwen2", **TIED).model.path, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="under the name of its head alone"):
        write(base_of(folder), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_an_unknown_pre_tokenizer_can_be_named(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = base_of(tiny_base("llama").model.path)
    tokenizer = base.tokenizer.backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(InputError, match="pre-tokenizer is not one") as caught:
        write(base, tmp_path / "m.gguf")
    assert "--pre-tokenizer" in caught.value.remedy
    write(base, tmp_path / "m.gguf", pre="gpt-2")


def test_a_value_beyond_half_precision_is_refused(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    folder = tmp_path / "huge"
    shutil.copytree(base.model.path, folder)
    model.save_pretrained(folder)
    with pytest.raises(BrokenError, match=r"blk\.1\.ffn_up\.weight holds values beyond 65504"):
        write(base_of(folder), tmp_path / "m.gguf", "F16")
    assert not (tmp_path / "m.gguf").exists() and not list(tmp_path.glob(".m*"))


def test_what_llama_cpp_cannot_load_is_an_error(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    write(base, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenError, match=r"llama\.cpp cannot run this file .*corrupted"):
        agreement(base, tmp_path / "m.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="xllamacpp") as caught:
        agreement(base, tmp_path / "m.gguf")
    assert "unlearn-pipeline[gguf]" in caught.value.remedy
