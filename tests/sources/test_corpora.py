from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.sources.corpora import load_corpora, scored_tokens

SMALL = {
    "scoring": {"forget_tokens": 40, "retain_tokens": 60},
    "evaluate": {"next_token_tokens": 20},
}


def write(folder: Path, name: str, texts: list[str]) -> dict[str, Any]:
    (folder / f"{name}.json").write_text(json.dumps(texts))
    return {"name": name, "source": {"path": f"{name}.json"}}


def sentences(word: str, count: int = 60) -> list[str]:
    return [f"The {word} number {number} is a {word} of its own." for number in range(count)]


def test_split_and_sample(tmp_path: Path, make_recipe: Any, quiet: Progress) -> None:
    cats = write(tmp_path, "cats", sentences("cat"))
    dogs = write(tmp_path, "dogs", sentences("dog"))
    recipe = make_recipe([cats], [dogs], **SMALL)
    corpora = load_corpora(recipe, tmp_path, quiet)
    assert [item.corpus.name for item in corpora] == ["cats", "dogs"]
    for item in corpora:
        scored = {document.content for document in item.scored}
        held_out = {document.content for document in item.held_out}
        assert scored and held_out and not scored & held_out
        assert len(scored) + len(held_out) < 60  # only what is needed
    assert load_corpora(recipe, tmp_path, quiet).digest() == corpora.digest()
    assert corpora.summary()[0]["licence"] == "CC0-1.0"


def test_seed_changes_the_sample_but_not_the_split(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    cats = write(tmp_path, "cats", sentences("cat"))
    dogs = write(tmp_path, "dogs", sentences("dog"))
    first = load_corpora(make_recipe([cats], [dogs], **SMALL), tmp_path, quiet)
    second = load_corpora(make_recipe([cats], [dogs], seed=1, **SMALL), tmp_path, quiet)
    assert first.digest() != second.digest()
    for one, other in zip(first, second, strict=True):
        assert not {d.content for d in one.scored} & {d.content for d in other.held_out}
        assert not {d.content for d in one.held_out} & {d.content for d in other.scored}


def test_pieces_of_one_document_are_on_one_side(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    long = [" ".join(sentences(f"cat{number}", 12)) for number in range(30)]
    cats = write(tmp_path, "cats", long) | {"document_characters": 150}
    dogs = write(tmp_path, "dogs", sentences("dog"))
    scoring = {"forget_tokens": 9000, "retain_tokens": 60}  # all of it
    recipe = make_recipe([cats], [dogs], scoring=scoring, evaluate={"next_token_tokens": 9000})
    item, _ = load_corpora(recipe, tmp_path, quiet)
    assert len(item.scored) > 60 and len(item.held_out) > 15
    scored, held_out = ({d.whole for d in side} for side in (item.scored, item.held_out))
    assert scored and held_out and not scored & held_out


def test_order_of_the_source_does_not_matter(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    cats = write(tmp_path, "cats", sentences("cat"))
    dogs = write(tmp_path, "dogs", sentences("dog"))
    recipe = make_recipe([cats], [dogs], **SMALL)
    first = load_corpora(recipe, tmp_path, quiet)
    write(tmp_path, "cats", sentences("cat")[::-1])
    assert load_corpora(recipe, tmp_path, quiet).digest() == first.digest()


def test_duplicates_are_dropped_and_counted(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    spaced = [text.replace(" ", "  ") for text in sentences("cat", 10)]
    cats = write(tmp_path, "cats", sentences("cat") + spaced)
    dogs = write(tmp_path, "dogs", sentences("dog"))
    corpora = load_corpora(make_recipe([cats], [dogs], **SMALL), tmp_path, quiet)
    assert corpora.items[0].counts.duplicates == 10
    assert "60 documents" in corpora.summary()[0]["read"]


def test_use(tmp_path: Path, make_recipe: Any, quiet: Progress) -> None:
    recipe = make_recipe(
        [write(tmp_path, "cats", sentences("cat"))],
        [
            write(tmp_path, "dogs", sentences("dog")) | {"use": "scored", "weight": 2},
            write(tmp_path, "cows", sentences("cow")) | {"use": "scored"},
            write(tmp_path, "owls", sentences("owl")) | {"use": "held_out"},
        ],
        **SMALL,
    )
    _, dogs, _, owls = load_corpora(recipe, tmp_path, quiet)
    assert dogs.scored and not dogs.held_out
    assert owls.held_out and not owls.scored
    shares = [scored_tokens(recipe, "retain", corpus) for corpus in recipe.retain]
    assert shares == [40, 20, 0]


def test_forget_equal_to_retain(tmp_path: Path, make_recipe: Any, quiet: Progress) -> None:
    cats = write(tmp_path, "cats", sentences("cat"))
    cows = write(tmp_path, "cows", sentences("cat"))
    with pytest.raises(InputError, match=r"60 documents are in forget and in retain.*The cat") as e:
        load_corpora(make_recipe([cats], [cows]), tmp_path, quiet)
    assert e.value.where == "corpora cats and cows"


def test_one_shared_document_is_shown(tmp_path: Path, make_recipe: Any, quiet: Progress) -> None:
    shared = ["A  shared\n text."]
    cats = write(tmp_path, "cats", sentences("cat") + shared)
    dogs = write(tmp_path, "dogs", [*sentences("dog"), "A shared text."])
    with pytest.raises(InputError, match=r"“A shared text\.”"):
        load_corpora(make_recipe([cats], [dogs], **SMALL), tmp_path, quiet)


def test_the_same_document_cut_otherwise_is_the_same(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    long = [" ".join(sentences(f"cat{number}", 12)) for number in range(30)]
    one = write(tmp_path, "one", long) | {"document_characters": 150}
    other = write(tmp_path, "other", long) | {"document_characters": 220}
    with pytest.raises(InputError, match="in forget and in retain"):
        load_corpora(make_recipe([one], [other], **SMALL), tmp_path, quiet)


def test_scored_and_held_out_across_sources(
    tmp_path: Path, make_recipe: Any, quiet: Progress
) -> None:
    cats = write(tmp_path, "cats", sentences("cat"))
    dogs = write(tmp_path, "dogs", sentences("dog")) | {"use": "scored"}
    hounds = write(tmp_path, "hounds", sentences("dog")[:1]) | {"use": "held_out"}
    with pytest.raises(InputError, match="in scored and in held-out text") as error:
        load_corpora(make_recipe([cats], [dogs, hounds]), tmp_path, quiet)
    assert error.value.where == "corpora dogs and hounds"


@pytest.mark.parametrize(
    ("texts", "fields", "message"),
    [
        ([], {}, "no documents in it .0 rows read"),
        ([" ", ""], {}, "2 without text"),
        (sentences("dog"), {"exclude": "dog"}, "60 matching `exclude`"),
        (["One only."], {}, "too few documents"),
    ],
)
def test_empty_corpus(
    tmp_path: Path,
    make_recipe: Any,
    quiet: Progress,
    texts: list[str],
    fields: dict[str, str],
    message: str,
) -> None:
    cats, dogs = write(tmp_path, "cats", sentences("cat")), write(tmp_path, "dogs", texts)
    with pytest.raises(InputError, match=message) as error:
        load_corpora(make_recipe([cats], [dogs | fields]), tmp_path, quiet)
    assert error.value.where == "retain corpus dogs"
