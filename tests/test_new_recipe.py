"""`unlearn new`: recipes that are taken as they are, and folders of one's own."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Result, Unlearn
from hub_address import point_hub_at
from ruamel.yaml import YAML

from pipeline.recipe_file import load_recipe, shipped_recipe
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]
WORDS = {
    "poems": "def return print x y z ( ) : 1 2",
    "prose": "the cat sat on a mat while seven dogs ran home and",
}


def texts(kind: str, number: int = 120) -> list[str]:
    choose = random.Random(kind)
    return [" ".join(choose.choices(WORDS[kind].split(), k=40)) for _ in range(number)]


def write_jsonl(path: Path, kind: str, column: str = "text") -> None:
    rows = [json.dumps({"id": i, column: text}) for i, text in enumerate(texts(kind))]
    path.write_text("\n".join(rows))


def write_csv(path: Path, kind: str) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["who", "what said"], *(["me", t] for t in texts(kind))])


def write_folder(path: Path, kind: str) -> None:
    path.mkdir()
    for number, text in enumerate(texts(kind)):
        (path / f"{number}.txt").write_text(text)


WRITERS: dict[str, Callable[[Path, str], object]] = {
    "x.jsonl": write_jsonl,
    "x.json": lambda path, kind: path.write_text(json.dumps(texts(kind))),
    "x.csv": write_csv,
    "x.parquet": lambda path, kind: pq.write_table(pa.table({"body": texts(kind)}), path),
    "x.txt": lambda path, kind: path.write_text("\n\n".join(texts(kind))),
    "A folder": write_folder,
}


@pytest.fixture
def new(unlearn: Unlearn, tmp_path: Path, tiny_base: TinyBase) -> Callable[..., Result]:
    """Make a recipe around two texts of one's own and a tiny model."""
    write_jsonl(tmp_path / "poems.jsonl", "poems")
    write_jsonl(tmp_path / "prose.jsonl", "prose")

    def make(name: str, *more: str | Path, **given: Any) -> Result:
        forget, retain = given.get("forget", "poems.jsonl"), given.get("retain", "prose.jsonl")
        model = given.get("model", tiny_base("llama").model.path)
        options = ["--forget", forget, "--retain", retain, "--model", model]
        return unlearn("new", name, *options, *more)

    return make


def checked(unlearn: Unlearn, name: str | Path) -> dict[str, Any]:
    code, out, err = unlearn("check", name, "--json", "--quiet")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_of_all_kinds_make_a_recipe_that_check_takes(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path, kind: str
) -> None:
    WRITERS[kind](tmp_path / kind, "poems")
    code, out, err = new("no-poems", forget=kind)
    assert code == 0, err
    assert "Wrote recipes/no-poems.yaml" in out
    assert "`unlearn check no-poems` and `unlearn run no-poems`" in out
    forecast = checked(unlearn, "no-poems")
    forget, retain = forecast["corpora"]
    assert forget["name"] == ("a-folder" if kind == "A folder" else "x")
    assert forget["scored_documents"] and forget["held_out_documents"]
    assert retain["name"] == "prose"
    assert [gate.split()[:4] for gate in forecast["gates"]] == [
        [f"next_token_{forget['name'].replace('-', '_')}", "top1", "drops", "at"],
        ["next_token_prose", "top1", "drops", "at"],
    ]


def test_a_new_recipe_runs_as_it_is(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path
) -> None:
    assert new("no-poems").code == 0
    code, out, err = unlearn("run", "no-poems", "--quiet")
    assert code in (0, 1, 4), err
    assert "next_token_poems top1" in out
    assert (tmp_path / "out/no-poems/pruning_manifest.json").is_file()


def test_a_newcomer_sees_what_is_to_be_filled_in(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path
) -> None:
    new("no-poems")
    text = (tmp_path / "recipes/no-poems.yaml").read_text()
    assert text.count("TODO: ") == 5  # description, and genre and licence of both texts
    for section in ("model", "forget", "retain", "scoring", "select", "evaluate", "gates"):
        before, _, _ = text.partition(f"\n{section}:")
        assert before.splitlines()[-1].startswith("# "), section
    assert max(len(line) for line in text.splitlines() if "path:" not in line) <= 100
    assert "  \n" not in text and "\n\n\n" not in text
    (warning,) = checked(unlearn, "no-poems")["warnings"]
    assert "fill in description, forget.poems.genre, forget.poems.licence, retain" in warning
    path = tmp_path / "recipes/no-poems.yaml"
    path.write_text(text.replace("TODO: ", ""))
    assert checked(unlearn, "no-poems")["warnings"] == []


def test_paths_are_relative_to_the_recipe_within_the_working_folder(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path, tmp_path_factory: Any
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    assert new("here").code == 0
    assert new("deep", "--out", "a/b").code == 0
    code, out, _ = new("there", "--out", place)
    assert code == 0 and f"`unlearn check {place / 'there.yaml'}`" in out
    for path, expected in (
        ("recipes/here.yaml", "../poems.jsonl"),
        ("a/b/deep.yaml", "../../poems.jsonl"),
        (place / "there.yaml", str(tmp_path / "poems.jsonl")),
    ):
        values = YAML(typ="safe").load(tmp_path / path)
        assert values["forget"][0]["source"] == {"path": expected}
        checked(unlearn, tmp_path / path)


def test_text_files_of_a_side_are_one_source(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    names = [f"p{number}.txt" if number % 2 else f"sub/p{number}.txt" for number in range(40)]
    for name, text in zip(names, texts("prose", 40), strict=True):
        (tmp_path / name).write_text(text)
    more = [part for name in names[1:] for part in ("--retain", name)]
    code, _, err = new("many", *more, "--retain", "prose.jsonl", retain=names[0])
    assert code == 0, err
    assert "40 rows read" in err
    first, second = load_recipe("many").recipe.retain
    assert second.name == "prose" and first.name != "prose"
    checked(unlearn, "many")
    (tmp_path / "odd{1}.txt").write_text("x")
    code, _, err = new("odd", "--retain", "p1.txt", retain="odd{1}.txt")
    assert code == 2 and "signs of a pattern" in err and "odd{1}.txt" in err


def test_texts_of_the_same_name_get_names_of_their_own(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "poems.jsonl").rename(tmp_path / "sub/prose.jsonl")
    assert new("same", forget="sub/prose.jsonl").code == 0
    recipe = load_recipe("same").recipe
    assert [corpus.name for _, corpus in recipe.corpora] == ["prose", "prose-2"]
    checked(unlearn, "same")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("No-Poems", "is no name of a recipe"),
        (".x", "is no name of a recipe"),
        ("a/b", "is no name of a recipe"),
        ("../x", "is no name of a recipe"),
        ("", "is no name of a recipe"),
        ("x.yaml", "without .yaml"),
        ("no-code", "came with this tool"),
    ],
)
def test_a_name_that_is_not_legal_or_taken_is_refused(
    new: Callable[..., Result], tmp_path: Path, name: str, words: str
) -> None:
    code, out, err = new(name)
    assert code == 2 and out == "" and words in err
    assert not (tmp_path / "recipes").exists()


def test_nothing_is_overwritten(new: Callable[..., Result], tmp_path: Path) -> None:
    for existing in ("recipes/a.yaml", "recipes/b.yml", "recipes/c.x.jsonl"):
        (tmp_path / existing).parent.mkdir(exist_ok=True)
        (tmp_path / existing).write_text("mine")
    WRITERS["x.txt"](tmp_path / "x.txt", "poems")
    for name in "abc":
        code, _, err = new(name, forget="x.txt")
        assert code == 2 and "it was not touched" in err, name
    assert {path.name for path in (tmp_path / "recipes").iterdir()} == {
        "a.yaml",
        "b.yml",
        "c.x.jsonl",
    }
    assert all(path.read_text() == "mine" for path in (tmp_path / "recipes").iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"\0\1", "this is a binary file"),
        (b"a few words", "too short to be scored and judged"),
    ],
)
def test_a_text_that_does_not_do_leaves_nothing(
    new: Callable[..., Result], tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    code, _, err = new("no-poems", forget="x.txt")
    assert code == 2 and words in err, err
    assert not list((tmp_path / "recipes").glob("*"))


def test_a_text_that_is_too_short_to_be_scored_is_refused(
    new: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'"word {number}"\n' for number in range(30)))
    code, _, err = new("no-poems", forget="x.jsonl")
    assert code == 2 and "too few to score a model on" in err and "forget text x" in err
    assert not list((tmp_path / "recipes").glob("*"))


def test_a_table_without_text_says_which_columns_it_has(
    new: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1, "b": [2]}\n')
    code, _, err = new("no-poems", forget="x.jsonl")
    assert code == 2 and "no column holds text: a, b" in err


def test_a_model_that_is_none_is_refused(new: Callable[..., Result], tmp_path: Path) -> None:
    code, _, err = new("no-poems", model="gone.gguf")
    assert code == 2 and "there is no such model" in err
    (tmp_path / "model").mkdir()
    assert new("no-poems", model="model").code == 2
    assert not list((tmp_path / "recipes").glob("*"))


def test_what_the_recipe_follows_of_its_model(
    new: Callable[..., Result], unlearn: Unlearn, tmp_path: Path, tiny_base: TinyBase
) -> None:
    assert new("fixed", model=tiny_base("bloom").model.path).code == 0
    assert "policy: padded" in (tmp_path / "recipes/fixed.yaml").read_text()
    checked(unlearn, "fixed")
    short = tiny_base("llama", max_position_embeddings=64).model.path
    assert new("short", model=short).code == 0
    assert load_recipe("short").recipe.scoring.sequence_length == 64
    checked(unlearn, "short")


def test_the_model_of_the_default_recipe_is_the_default(unlearn: Unlearn, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", "poems")
    write_jsonl(tmp_path / "b.jsonl", "prose")
    code, out, _ = unlearn("new", "x", "--forget", "a.jsonl", "--retain", "b.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["written"] == ["recipes/x.yaml"]
    assert load_recipe("x").recipe.model == load_recipe("no-code").recipe.model


def test_a_hub_that_is_out_of_reach_is_a_note(
    new: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_hub_at("http://127.0.0.1:9", monkeypatch, tmp_path / "hub")
    code, out, err = new("far", model="org/model@v1")
    assert code == 0, err
    assert "Note: the model was not looked at: the Hub cannot be reached" in out
    source = load_recipe("far").recipe.model.source
    assert source.model_dump() == {"hub": "org/model", "revision": "v1"}


# ── folders of one's own ─────────────────────────────────────────────────────────────────────────


def test_own_folders_are_found_by_name(
    new: Callable[..., Result],
    unlearn: Unlearn,
    tmp_path: Path,
    tmp_path_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = [tmp_path_factory.mktemp("own") for _ in "ab"]
    for folder, name in zip(folders, ("first", "second"), strict=True):
        assert new(name, "--out", folder).code == 0
    code, _, err = unlearn("check", "second")
    assert code == 2 and "there is no recipe 'second'" in err
    monkeypatch.setenv("UNLEARN_RECIPES", f"{folders[0]}:{folders[1]}:{tmp_path / 'gone'}")
    for name in ("first", "second"):
        checked(unlearn, name)
    _, out, _ = unlearn("recipes")
    assert "no-code" in out and str(folders[1] / "second.yaml") in out.replace("\n", "")
    listed = {each["name"]: each["path"] for each in json.loads(unlearn("recipes", "--json").out)}
    assert listed["first"] == str(folders[0] / "first.yaml")
    assert "`unlearn check third`" in new("third", "--out", folders[1]).out


def test_the_nearest_folder_wins_and_verification_looks_in_none(
    new: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_RECIPES", str(tmp_path / "own"))
    assert new("mine", "--out", "own").code == 0
    assert load_recipe("mine").path == tmp_path / "own/mine.yaml"
    assert new("mine").code == 0
    assert load_recipe("mine").path == tmp_path / "recipes/mine.yaml"
    (tmp_path / "own/mine.yaml").rename(tmp_path / "own/no-code.yaml")
    assert load_recipe("no-code").path == tmp_path / "own/no-code.yaml"
    shipped = shipped_recipe("no-code")
    assert shipped is not None and not shipped.is_relative_to(tmp_path)
    assert shipped_recipe("mine") is None
