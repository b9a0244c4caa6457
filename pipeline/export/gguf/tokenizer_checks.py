"""What llama.cpp would cut into other tokens is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType
from gguf.vocab import SentencePieceVocab
from tokenizers.models import BPE

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
# Names with which llama.cpp takes a word that is a token without looking at merges.
WHOLE_WORDS = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("tekken", "youtu"),
)
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
    {"type": "Metaspace", "replacement": "▁", "split": False},
    {"type": "Split", "pattern": {"String": " "}},  # of which the normaliser has left none
)
Piece = tuple[bytes, float, TokenType]


def rules_of(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """What the loaded tokenizer does: some families' classes replace what their file says.

    Raises:
        InputError: it is written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            "its tokenizer is written in Python, of which a GGUF file can say nothing",
            where=str(folder),
            remedy="save the family's fast tokenizer beside the checkpoint",
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def is_byte_pairs(content: dict[str, Any]) -> bool:
    """Whether a tokenizer, by its rules, merges bytes; else it merges pieces of text."""
    return content["model"]["type"] == "BPE" and not content["model"].get("byte_fallback")


def check_byte_pairs(content: dict[str, Any], size: int, pre: str | None, folder: Path) -> str:
    """Check a tokenizer of byte pairs, and return llama.cpp's name of its pre-tokenizer.

    Args:
        content: its rules.
        size: rows of the embedding.
        pre: the name that the user gave.
        folder: where it lies.

    Raises:
        InputError: llama.cpp has no such tokenizer, or its pre-tokenizer is not recognised.
    """
    _check_steps(content, "normalizer", NORMALISERS, folder)
    if used := [key for key in UNKNOWN_OPTIONS if content["model"].get(key)]:
        raise InputError(
            f"its tokenizer has {used[0]}, which llama.cpp does not have",
            where=str(folder / TOKENIZER),
        )
    if any(step.get("add_prefix_space") for step in _steps(content["pre_tokenizer"])):
        raise InputError(
            "its tokenizer puts a space before each text, which llama.cpp does not do with byte "
            "pairs",
            where=str(folder / TOKENIZER),
            remedy="if the model reads texts without it as well, set add_prefix_space to false",
        )
    _check_rows([*content["model"]["vocab"].values()], content, size, folder)
    name = pre or _recognised(content, folder)
    _check_whole_words(content, name, folder)
    return name


def pieces_of(content: dict[str, Any], size: int, folder: Path) -> list[Piece]:
    """What the SentencePiece model holds, if the tokenizer does what llama.cpp does with it.

    Args:
        content: the tokenizer's rules.
        size: rows of the embedding.
        folder: where it lies.

    Raises:
        InputError: llama.cpp would cut texts otherwise.
    """
    if not (folder / SENTENCEPIECE).is_file():
        raise InputError(
            f"its tokenizer is {content['model']['type']} without a {SENTENCEPIECE}, which cannot "
            "be written as GGUF",
            where=str(folder / TOKENIZER),
            remedy=f"put the family's {SENTENCEPIECE} beside it",
        )
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
    if sum(kind == TokenType.BYTE for _, _, kind in pieces) < 256:
        raise InputError(
            "its SentencePiece model has no pieces for bytes (byte_fallback), without which "
            "llama.cpp cannot cut every text",
            where=str(folder / SENTENCEPIECE),
        )
    _check_steps(content, "normalizer", SPACES, folder)
    _check_steps(content, "pre_tokenizer", SPACES_APART, folder)
    steps = [*_steps(content.get("normalizer")), *_steps(content.get("pre_tokenizer"))]
    if not any(step["type"] in ("Replace", "Metaspace") for step in steps):
        raise InputError(
            "its tokenizer leaves spaces as they are, and llama.cpp writes ▁ for each",
            where=str(folder / TOKENIZER),
        )
    _check_rows([len(pieces) - 1], content, size, folder)
    _check_same_pieces(content, pieces, folder)
    return pieces


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, those of nested sequences too."""
    for key in PARTS.values():
        if step and key in step:
            for each in step[key]:
                yield from _steps(each)
            return
    if step:
        yield step


def _check_steps(
    content: dict[str, Any], key: str, known: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Refuse what a tokenizer does to a text that llama.cpp would leave out."""
    for step in _steps(content.get(key)):
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


def _check_whole_words(content: dict[str, Any], pre: str, folder: Path) -> None:
    """Refuse words that one takes whole and the other by merges, if merges do not make them."""
    own = bool(content["model"].get("ignore_merges"))
    if own == (pre in WHOLE_WORDS):
        return
    model = content["model"]
    merging = BPE(model["vocab"], [tuple(pair) for pair in model["merges"]])
    added = {token["content"] for token in content.get("added_tokens", [])}
    for word in model["vocab"]:
        if word not in added and len(merging.tokenize(word)) != 1:
            raise InputError(
                f"its tokenizer {'takes' if own else 'does not take'} words whole that merges do "
                f"not make ({word!r}; ignore_merges), and llama.cpp's {pre!r} does "
                f"{'not' if own else 'so'}",
                where=str(folder / TOKENIZER),
            )


def _check_same_pieces(content: dict[str, Any], pieces: list[Piece], folder: Path) -> None:
    """Refuse a tokenizer that was changed beside an old SentencePiece model."""
    vocabulary = {number: text for text, number in content["model"]["vocab"].items()}
    added = {token["id"] for token in content.get("added_tokens", [])}
    written = {n: text.decode() for n, (text, _, _) in enumerate(pieces)}
    for number in sorted((vocabulary.keys() | written.keys()) - added):
        if vocabulary.get(number) != written.get(number):
            raise InputError(
                f"token {number} is {vocabulary.get(number)!r} in its tokenizer and "
                f"{written.get(number)!r} in {SENTENCEPIECE}: one of the two was changed",
                where=str(folder),
                remedy="put the two files of one tokenizer beside the checkpoint",
            )


def _recognised(content: dict[str, Any], folder: Path) -> str:
    # Trimming offsets is not part of what splits the text.
    plain = [
        {k: v for k, v in step.items() if k not in ("add_prefix_space", "trim_offsets")}
        for step in _steps(content.get("pre_tokenizer"))
    ]
    for name, rules in PRE_TOKENIZERS.items():
        if plain == rules:
            return name
    raise InputError(
        f"its pre-tokenizer is not one whose name in llama.cpp is known: {json.dumps(plain)[:200]}",
        where=str(folder / TOKENIZER),
        remedy="name it with --pre-tokenizer, as llama.cpp's list of them does (LLM_PRE names in "
        "src/llama-vocab.cpp)",
    )
