from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Corpus
from pipeline.sources.corpora import CorpusDocuments, Document, load_corpora
from pipeline.sources.documents import Counts, Piece
from pipeline.sources.packing import pack, pack_side, separator_of, write_jsonl

SEPARATOR = 0


def test_packs_whole_sequences(tokenizer: Any) -> None:
    ids = pack(["abcd", "efgh", "ijkl"], tokenizer, 10, 5, False, SEPARATOR)
    text = ["".join(tokenizer.convert_ids_to_tokens(row)) for row in ids.tolist()]
    assert text == ["<|endoftext|>abcd", "<|endoftext|>efgh"]


def test_documents_are_separated_within_a_sequence(tokenizer: Any) -> None:
    ids = pack(["ab", "cd", "ef"], tokenizer, 1, 6, False, SEPARATOR)
    assert "".join(tokenizer.convert_ids_to_tokens(ids[0])) == "<|endoftext|>ab<|endoftext|>cd"


def test_too_little_text_gives_fewer_sequences_or_an_error(tokenizer: Any) -> None:
    assert pack(["abcdefgh"], tokenizer, 1000, 5, False, SEPARATOR).shape == (2, 5)
    with pytest.raises(InputError, match="hold 2 tokens, less than one sequence of 5"):
        pack(["ab"], tokenizer, 1000, 5, False, SEPARATOR)


def test_chat_template(tokenizer: Any) -> None:
    ids = pack(["hello"], tokenizer, 12, 12, True, SEPARATOR)
    assert tokenizer.decode(ids[0][:2]) == "<|endoftext|><|im_start|>"
    assert tokenizer.decode(ids[0][2:]) == "user\nhello"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        pack(["hello"], tokenizer, 12, 12, True, SEPARATOR)


def test_separator(tokenizer: Any) -> None:
    assert separator_of(tokenizer) == SEPARATOR


def test_held_out_documents_are_cut_and_capped(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["é" * 600, "short", *[f"text {number}" for number in range(100)]]
    corpus = Corpus.model_validate(
        {"name": "c", "source": {"path": "x"}, "genre": "g", "licence": "l"}
    )
    documents = tuple(Document.of(Piece(text, text)) for text in texts)
    item = CorpusDocuments(corpus, "retain", (), documents, Counts())
    written = write_jsonl(tmp_path / "c.jsonl", item, tokenizer, 530)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert 530 <= written < 545
    assert rows[0]["text"] == "é" * 256  # two tokens each
    assert rows[1] == {"text": "short", "source": "c", "digest": documents[1].digest}
    assert len(rows) < 10


def test_pack_side_shares_tokens_by_weight(
    tmp_path: Path, make_recipe: Any, tokenizer: Any, quiet: Progress
) -> None:
    def write(name: str, **fields: Any) -> dict[str, Any]:
        texts = [f"Number {number} of all {name}, which are many." for number in range(200)]
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
        return {"name": name, "source": {"path": f"{name}.json"}, **fields}

    recipe = make_recipe(
        [write("cats")],
        [write("dogs", weight=3.0), write("cows"), write("owls", use="held_out")],
        scoring={"forget_tokens": 160, "retain_tokens": 640, "sequence_length": 16},
    )
    corpora = load_corpora(recipe, tmp_path, quiet)
    packed = pack_side(corpora, "retain", tokenizer, recipe)
    assert {name: ids.shape for name, ids in packed.items()} == {"dogs": (30, 16), "cows": (10, 16)}
