"""Documents as token sequences for scoring, and as JSON lines for evaluation.

Shape suffixes: N sequences, S positions of a sequence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from pipeline.errors import InputError
from pipeline.recipe import Recipe
from pipeline.recipe.fields import Side
from pipeline.sources.corpora import Corpora, CorpusDocuments, Document, scored_tokens

TOKENISED_AT_ONCE = 32
HELD_OUT_TOKENS = 512  # of one document; many documents say more than a few long ones
DOCUMENT_SEPARATOR = "<|endoftext|>"


def pack_side(corpora: Corpora, side: Side, tokenizer: Any, recipe: Recipe) -> dict[str, Tensor]:
    """Pack the scored documents of one side's corpora, by their share of the tokens.

    Returns:
        Token ids [N, S] of each corpus that is scored, by its name.

    Raises:
        InputError: a corpus has not enough text for one sequence.
    """
    return {
        item.corpus.name: pack(
            [document.text for document in item.scored],
            tokenizer,
            tokens=scored_tokens(recipe, side, item.corpus),
            sequence_length=recipe.scoring.sequence_length,
            chat_template=recipe.scoring.chat_template,
            separator_id=separator_of(tokenizer),
            where=f"{side} corpus {item.corpus.name}",
        )
        for item in corpora.side(side)
        if item.scored
    }


def pack(
    documents: Sequence[str],
    tokenizer: Any,
    tokens: int,
    sequence_length: int,
    chat_template: bool,
    separator_id: int,
    where: str = "corpus",
) -> Tensor:
    """Cut documents, joined by a separator, into sequences that each begin with it.

    Args:
        documents: texts in their order.
        tokenizer: the model's tokenizer.
        tokens: how many tokens are wanted; rounded up to whole sequences.
        sequence_length: tokens in each sequence, the separator at its start included.
        chat_template: wrap each document in the chat template, as a user message.
        separator_id: token between documents and at the start of every sequence.
        where: what the documents are, for errors.

    Returns:
        Token ids [N, S]; fewer than wanted if the text ends before.

    Raises:
        InputError: there is not enough text for one sequence, or no chat template.
    """
    wanted = math.ceil(tokens / sequence_length)
    length = sequence_length - 1
    sequences: list[list[int]] = []
    rest: list[int] = []
    for ids in _token_ids(documents, tokenizer, chat_template, where):
        rest += [separator_id, *ids] if rest else ids
        while len(rest) >= length and len(sequences) < wanted:
            sequences.append([separator_id, *rest[:length]])
            rest = rest[length:]
        if len(sequences) == wanted:
            break
    if not sequences:
        raise InputError(
            f"its {len(documents)} documents hold {len(rest)} tokens, less than one sequence of "
            f"{sequence_length}",
            where=where,
            remedy="give more text, or lower scoring.sequence_length",
        )
    return torch.tensor(sequences, dtype=torch.long)


def as_chat(text: str, tokenizer: Any, where: str, setting: str = "scoring.chat_template") -> str:
    """Wrap a text in the model's chat template, as a user message.

    Raises:
        InputError: it has none, or the template is broken.
    """
    remedy = f"set {setting} to false"
    if not tokenizer.chat_template:
        raise InputError("the model has no chat template", where=where, remedy=remedy)
    message = [{"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(message, tokenize=False))
    except TemplateError as error:
        raise InputError(
            f"the model's chat template fails on a user message: {error}",
            where=where,
            remedy=f"repair the template in the model's folder, or {remedy}",
        ) from error


def separator_of(tokenizer: Any) -> int:
    """Token that stood between documents in pretraining.

    Chat models rename their beginning and end of text to turn markers but keep `<|endoftext|>`.

    Raises:
        InputError: the tokenizer has no token of this kind.
    """
    separator = tokenizer.get_vocab().get(DOCUMENT_SEPARATOR)
    for candidate in (separator, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    raise InputError("the tokenizer has neither a beginning nor an end of text token")


def write_jsonl(
    path: Path,
    item: CorpusDocuments,
    tokenizer: Any,
    tokens: int,
    documents: Sequence[Document] | None = None,
) -> int:
    """Write a corpus's held-out documents for evaluation, one JSON object a line.

    Rows have `text`, `source` and `digest`; a long document is cut after `HELD_OUT_TOKENS`.

    Args:
        path: file to write.
        item: the corpus.
        tokenizer: counts the tokens.
        tokens: stop after the document that reaches this many.
        documents: those of the corpus to write; those that judge by default.

    Returns:
        Tokens written.
    """
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        for row, count in held_out_rows(item, tokenizer, tokens, documents):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += count
    return written


def held_out_rows(
    item: CorpusDocuments, tokenizer: Any, tokens: int, documents: Sequence[Document] | None = None
) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the rows that `write_jsonl` writes, and the tokens of each."""
    written = 0
    for document in item.held_out if documents is None else documents:
        text, count = _beginning(document.text, tokenizer)
        yield {"text": text, "source": item.corpus.name, "digest": document.digest}, count
        written += count
        if written >= tokens:
            return


def _beginning(text: str, tokenizer: Any) -> tuple[str, int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= HELD_OUT_TOKENS:
        return text, len(ids)
    beginning = tokenizer.decode(ids[:HELD_OUT_TOKENS], clean_up_tokenization_spaces=False)
    # A character may be cut in half, and some decoders lose white space: keep what is the text's.
    same = 0
    for ours, theirs in zip(text, beginning, strict=False):
        if ours != theirs:
            break
        same += 1
    return text[:same], HELD_OUT_TOKENS


def _token_ids(
    documents: Sequence[str], tokenizer: Any, chat_template: bool, where: str
) -> Iterator[list[int]]:
    for start in range(0, len(documents), TOKENISED_AT_ONCE):
        texts = list(documents[start : start + TOKENISED_AT_ONCE])
        if chat_template:
            texts = [as_chat(text, tokenizer, where) for text in texts]
        yield from tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
