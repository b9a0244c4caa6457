"""A tokenizer as GGUF keys: tokens with types, merges or scores, special ones, chat template."""

from __future__ import annotations

import re
from pathlib import Path
from string import ascii_letters
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers.pre_tokenizers import ByteLevel

from pipeline.errors import InputError
from pipeline.export.gguf.tokenizer_checks import (
    Piece,
    check_byte_pairs,
    is_byte_pairs,
    pieces_of,
    rules_of,
)

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADDED_SCORE = -1000.0  # as llama.cpp's own converter has it
SPACE_BETWEEN = (
    "llama.cpp puts a space between a control token and the text after it, and this tokenizer does "
    "not: there the two read other tokens"
)
SPACE_BEFORE = (
    "llama.cpp puts a space before a text that begins with one too, and this tokenizer does not: "
    "there the two read other tokens"
)
# The models, by `general.name`, in which llama.cpp lets added tokens take the space after them,
# one that must be there, and those that do not but must be there too (src/llama-vocab.cpp).
TAKING_SPACE = re.compile("phi-?3", re.IGNORECASE)
ENDING = "</s>"
NOT_TAKING_SPACE = ("<unk>", "<s>", "<|endoftext|>")


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
    content = rules_of(tokenizer, folder)
    if is_byte_pairs(content):
        name = check_byte_pairs(content, size, pre, folder)
        _add_byte_pairs(writer, content, size, name)
    else:
        _add_sentencepiece(writer, tokenizer, content, pieces_of(content, size, folder), size)
    special = SpecialVocab(folder, n_vocab=size)
    # The library reads files, in which some classes of transformers see something else.
    for kind in SPECIAL:
        if (number := getattr(tokenizer, f"{kind}_token_id", None)) is not None:
            special.special_token_ids[kind] = number
    if (end := special.special_token_ids.get("eos")) is None:
        raise InputError(
            "its tokenizer has no token that ends a text, and llama.cpp would take another for it",
            where=str(folder),
            remedy="set its eos_token",
        )
    before, after = _put_around(tokenizer)
    # At the end llama.cpp can put the token that ends what it writes, and no other.
    special.add_special_token = {"bos": bool(before), "eos": after[:1] == [end]}
    if before:
        special.special_token_ids["bos"] = before[0]
    special.add_to_gguf(writer, quiet=True)


def loadable_name(name: str, tokenizer: Any) -> str:
    """Return `general.name` for a model; by the name alone llama.cpp expects some tokens of it."""
    lacking = {ENDING, *NOT_TAKING_SPACE} - tokenizer.get_vocab().keys()
    return TAKING_SPACE.sub("Phi 3", name) if lacking else name


def tokenizer_notes(tokenizer: Any, folder: Path, name: str) -> list[str]:
    """What the two read differently at the edge of a text or of an added token.

    Args:
        tokenizer: the checkpoint's tokenizer, as transformers loads it.
        folder: checkpoint folder.
        name: `general.name` of the file, by which llama.cpp knows one family.
    """
    notes = []
    if space_between(tokenizer):
        notes.append(SPACE_BETWEEN)
    if space_before(tokenizer):
        notes.append(SPACE_BEFORE)
    before, after = _put_around(tokenizer)
    if len(before) > 1 or after not in ([], [tokenizer.eos_token_id]):
        around = " ".join(tokenizer.convert_ids_to_tokens([*before, *after]))
        notes.append(
            f"this tokenizer puts {around} around each text, of which a GGUF file can say one "
            "token before and the ending one after: put the others into the prompt"
        )
    if moved := _sought_elsewhere(tokenizer):
        notes.append(
            f"this tokenizer finds {', '.join(moved[:3])} after a space only (added with "
            f"normalized=True; such tokens: {len(moved)}), llama.cpp everywhere"
        )
    if lacking := _bytes_without_token(rules_of(tokenizer, folder)):
        notes.append(
            f"this tokenizer has no token for {len(lacking)} bytes of which texts are made "
            f"({', '.join(f'{byte:#04x}' for byte in lacking[:4])}, …): beside them llama.cpp "
            "merges otherwise"
        )
    taking = bool(TAKING_SPACE.search(name))
    differing = [
        str(token)
        for token in tokenizer.added_tokens_decoder.values()
        if token.lstrip
        or token.single_word
        or token.rstrip != (taking and str(token) not in NOT_TAKING_SPACE)
    ]
    if differing:
        notes.append(
            f"llama.cpp reads spaces beside {', '.join(differing[:3])} otherwise than this "
            f"tokenizer (lstrip, rstrip or single_word; such tokens: {len(differing)})"
        )
    return notes


def space_between(tokenizer: Any) -> bool:
    """Whether llama.cpp puts a space between a control token and a text where this one does not."""
    controls = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not controls or not _puts_space(tokenizer):
        return False
    _, *after = _tokens(tokenizer, f"{controls[0]}{_letter(tokenizer)}")
    return not any(token.startswith("▁") for token in after[:1])


def space_before(tokenizer: Any) -> bool:
    """Whether llama.cpp puts a space before one that is there, where this tokenizer does not."""
    letter = _letter(tokenizer)
    same = _tokens(tokenizer, letter) == _tokens(tokenizer, f" {letter}")
    return _puts_space(tokenizer) and same


def _puts_space(tokenizer: Any) -> bool:
    return any(token.startswith("▁") for token in _tokens(tokenizer, _letter(tokenizer))[:1])


def _letter(tokenizer: Any) -> str:
    """A text of which nothing is special: some tokenizers have a letter as an added token.

    Others have letters without a token at all.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    letters = (letter for letter in ascii_letters if letter not in added)
    return next((letter for letter in letters if _tokens(tokenizer, letter)), "a")


def _bytes_without_token(content: dict[str, Any]) -> list[int]:
    """Bytes of UTF-8 that a byte-pair tokenizer leaves out; none of a tokenizer of pieces."""
    if not is_byte_pairs(content):
        return []
    splitter = ByteLevel(add_prefix_space=False, use_regex=False)
    lacking = []
    for code in _one_of_each_byte():
        (written, _), *_ = splitter.pre_tokenize_str(code)
        lacking += [
            byte
            for byte, letter in zip(code.encode(), written, strict=True)
            if letter not in content["model"]["vocab"]
        ]
    return sorted({*lacking})


def _one_of_each_byte() -> list[str]:
    """Characters whose UTF-8 holds every byte that UTF-8 can."""
    short, surrogates = range(0x800), range(0xD800, 0xE000)
    firsts = (*range(0x800, 0x10000, 0xFFF), *range(0x10000, 0x110000, 0xFFFF))
    return [chr(code) for code in (*short, *firsts) if code not in surrogates]


def _sought_elsewhere(tokenizer: Any) -> list[str]:
    """Added tokens that are sought in the normalised text, where normalising puts a space first."""
    normaliser = tokenizer.backend_tokenizer.normalizer
    if normaliser is None:
        return []
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.normalized]
    return [str(token) for token in added if normaliser.normalize_str(str(token)) != str(token)]


def _tokens(tokenizer: Any, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids)
    return tokens


def _put_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that are put before and after a text."""
    letter = _letter(tokenizer)
    whole, alone = (
        tokenizer(letter, add_special_tokens=special)["input_ids"] for special in (True, False)
    )
    start = next(n for n in range(len(whole) + 1) if whole[n : n + len(alone)] == alone)
    return whole[:start], whole[start + len(alone) :]


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
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])


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
    writer.add_add_space_prefix(_puts_space(tokenizer))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in rows])
    writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([kind for _, _, kind in rows])
