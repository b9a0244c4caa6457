"""A tokenizer as GGUF keys: tokens with types, merges or scores, special ones, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from gguf.vocab import SentencePieceVocab

from pipeline.errors import InputError

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "use_regex": True}
PLAIN_BYTES = {"type": "ByteLevel", "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


# llama.cpp's names (`tokenizer.ggml.pre`) of what comes before byte-pair encoding.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTES],
    "llama-bpe": [_split(LLAMA3), PLAIN_BYTES],
    "qwen2": [_split(LLAMA3.replace("{1,3}", "")), PLAIN_BYTES],
}


def add_tokenizer(
    writer: GGUFWriter, tokenizer: Any, folder: Path, size: int, pre: str | None
) -> None:
    """Write the tokenizer of a checkpoint folder.

    Args:
        writer: GGUF file that is being written.
        tokenizer: the checkpoint's tokenizer, as transformers loads it.
        folder: checkpoint folder.
        size: rows of the embedding; rows without a token get a name that no text has.
        pre: llama.cpp's name of the pre-tokenizer; default: recognised by its rules.

    Raises:
        InputError: llama.cpp has no such tokenizer, or its pre-tokenizer is not recognised.
    """
    content = _rules(tokenizer, folder)
    byte_pairs = content["model"]["type"] == "BPE" and not content["model"].get("byte_fallback")
    if byte_pairs:
        _add_byte_pairs(writer, content, size, pre or _recognised(content, folder))
    elif (folder / SENTENCEPIECE).is_file():
        _add_sentencepiece(writer, tokenizer, folder, size)
    else:
        raise InputError(
            f"its tokenizer is {content['model']['type']} without a {SENTENCEPIECE}, which cannot "
            "be written as GGUF",
            where=str(folder / TOKENIZER),
            remedy=f"put the family's {SENTENCEPIECE} beside it",
        )
    SpecialVocab(folder, load_merges=byte_pairs, n_vocab=size).add_to_gguf(writer, quiet=True)


def _rules(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """What the loaded tokenizer does: some families' classes replace what their file says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            "its tokenizer is written in Python, of which a GGUF file can say nothing",
            where=str(folder),
            remedy="save the family's fast tokenizer beside the checkpoint",
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def _add_byte_pairs(writer: GGUFWriter, content: dict[str, Any], size: int, pre: str) -> None:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for text, number in content["model"]["vocab"].items():
        tokens[number], types[number] = text, TokenType.NORMAL
    for added in content.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _add_sentencepiece(writer: GGUFWriter, tokenizer: Any, folder: Path, size: int) -> None:
    found = list(SentencePieceVocab(folder).all_tokens())
    padding = range(len(found), size)
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    writer.add_add_space_prefix(first[0].startswith("▁"))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in found] + [f"[PAD{n}]".encode() for n in padding])
    writer.add_token_scores([score for _, score, _ in found] + [-10000.0 for _ in padding])
    writer.add_token_types([kind for _, _, kind in found] + [TokenType.UNUSED for _ in padding])


def _recognised(content: dict[str, Any], folder: Path) -> str:
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    # Adding a space, or trimming offsets, is not part of what splits the text.
    plain = [
        {k: v for k, v in step.items() if k not in ("add_prefix_space", "trim_offsets")}
        for step in steps
    ]
    for name, rules in PRE_TOKENIZERS.items():
        if plain == rules and not any(step.get("add_prefix_space") for step in steps):
            return name
    raise InputError(
        f"its pre-tokenizer is not one whose name in llama.cpp is known: {json.dumps(plain)[:200]}",
        where=str(folder / TOKENIZER),
        remedy="name it with --pre-tokenizer, as llama.cpp's list of them does (LLM_PRE names in "
        "src/llama-vocab.cpp)",
    )
