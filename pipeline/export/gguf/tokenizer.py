"""A tokenizer as GGUF keys: tokens with types, merges or scores, special ones, chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from gguf.vocab import SentencePieceVocab

from pipeline.errors import InputError
from pipeline.sources.explained import explained

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
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}  # of a sequence
# llama.cpp normalises nothing. NFC is let pass, as its own converter does with all of them: what
# has been typed or read from a file is nearly always composed already.
NORMALISERS = ({"type": "NFC"},)
UNKNOWN_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
# What SentencePiece does with spaces, in the words of the tokenizers library.
SPACES = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)
SPACES_APART = (
    {"type": "Metaspace", "replacement": "▁"},
    {"type": "Split", "pattern": {"String": " "}},  # of which the normaliser has left none
)
ADDED_SCORE = -1000.0  # as llama.cpp's own converter has it
Piece = tuple[bytes, float, TokenType]


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
        _check_byte_pairs(content, size, folder)
        _add_byte_pairs(writer, content, size, pre or _recognised(content, folder))
    elif (folder / SENTENCEPIECE).is_file():
        pieces = _pieces(content, size, folder)
        _add_sentencepiece(writer, tokenizer, content, pieces, size)
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


def _check_byte_pairs(content: dict[str, Any], size: int, folder: Path) -> None:
    _check_steps(content, "normalizer", NORMALISERS, folder)
    if used := [key for key in UNKNOWN_OPTIONS if content["model"].get(key)]:
        raise InputError(
            f"its tokenizer has {used[0]}, which llama.cpp does not have",
            where=str(folder / TOKENIZER),
        )
    _check_rows([*content["model"]["vocab"].values()], content, size, folder)


def _check_steps(
    content: dict[str, Any], key: str, known: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Refuse what a tokenizer does to a text that llama.cpp would leave out."""
    whole = content.get(key)
    for step in whole.get(PARTS[key], [whole]) if whole else []:
        if not any(step.items() >= each.items() for each in known):
            raise InputError(
                f"the {key} of its tokenizer does something ({step['type']}) that llama.cpp does "
                "not do",
                where=str(folder / TOKENIZER),
            )


def _check_rows(numbers: Sequence[int], content: dict[str, Any], size: int, folder: Path) -> None:
    highest = max([*numbers, *(added["id"] for added in content.get("added_tokens", []))])
    if highest >= size:
        raise InputError(
            f"its tokenizer has tokens up to number {highest}, its embedding has {size} rows: of "
            "the others llama.cpp knows nothing",
            where=str(folder),
            remedy="put the model's own tokenizer beside it, or give it more rows with "
            "resize_token_embeddings()",
        )


def _pieces(content: dict[str, Any], size: int, folder: Path) -> list[Piece]:
    """What the SentencePiece model holds, if the tokenizer does what llama.cpp does with it."""
    with explained("tokenizer", folder):
        pieces = list(SentencePieceVocab(folder).sentencepiece_tokens())
    # Byte pairs are scored by rank, pieces of a unigram model by the logarithm of a frequency.
    ranked = all(score.is_integer() for _, score, kind in pieces if kind == TokenType.NORMAL)
    if content["model"]["type"] != "BPE" or not ranked:
        raise InputError(
            "its tokenizer is a SentencePiece model that is no byte-pair encoding, and llama.cpp "
            "would cut texts otherwise",
            where=str(folder / SENTENCEPIECE),
        )
    _check_steps(content, "normalizer", SPACES, folder)
    _check_steps(content, "pre_tokenizer", SPACES_APART, folder)
    _check_rows([len(pieces) - 1], content, size, folder)
    return pieces


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


def _add_sentencepiece(
    writer: GGUFWriter, tokenizer: Any, content: dict[str, Any], pieces: list[Piece], size: int
) -> None:
    padding = range(len(pieces), size)
    rows = pieces + [(f"[PAD{n}]".encode(), -10000.0, TokenType.UNUSED) for n in padding]
    for added in content.get("added_tokens", []):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        text, score, stored = rows[added["id"]]
        if text != added["content"].encode():
            rows[added["id"]] = added["content"].encode(), ADDED_SCORE, kind
        elif stored == TokenType.NORMAL:
            rows[added["id"]] = text, score, kind
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    writer.add_add_space_prefix(first[0].startswith("▁"))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in rows])
    writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([kind for _, _, kind in rows])


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
