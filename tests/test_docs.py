"""What README and docs show: recipes and links. tests/documentation runs their commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from command import Unlearn
from tiny_recipe import write_recipe

from pipeline.cache import read_json
from pipeline.recipe_schema import node_at
from pipeline.recipe_yaml import read_yaml
from pipeline.stages.base import Base

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = [
    "scoring={forget_tokens: 600, retain_tokens: 900, sequence_length: 32}",
    "select.ffn.multiple_of=8",
    "statistics.min_documents=2",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_recipe_of_the_tutorial_is_the_file() -> None:
    (recipe,) = blocks(ROOT / "docs/tutorial.md", "yaml")
    assert recipe == (ROOT / "docs/tutorial/no-sql.yaml").read_text(encoding="utf-8")


def test_the_recipe_of_the_readme_runs(
    unlearn: Unlearn, tiny_base: Callable[..., Base], tmp_path: Path
) -> None:
    (recipe,) = [text for text in blocks(ROOT / "README.md", "yaml") if "name: no-poems" in text]
    write_recipe(tmp_path / "texts", tiny_base("llama").model.path)
    (tmp_path / "texts/code.jsonl").rename(tmp_path / "poems.jsonl")
    (tmp_path / "prose").mkdir()
    lines = (tmp_path / "texts/prose.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        (tmp_path / f"prose/{number}.txt").write_text(json.loads(line)["text"])
    path = tmp_path / "no-poems.yaml"
    path.write_text(recipe)
    model = f"model={{source: {{path: {tiny_base('llama').model.path}}}, dtype: float32}}"
    options = [part for one in [model, *SETTINGS] for part in ("--set", one)]
    code, _, err = unlearn("run", path, "--quiet", *options)
    assert code in (0, 1, 4), err
    manifest = read_json(Path("out/no-poems/pruning_manifest.json"))
    assert [gate["task"] for gate in manifest["evaluation"]["gates"]] == [
        "next_token_poems",
        "next_token_prose",
    ]


def test_every_key_of_a_recipe_that_is_shown_exists() -> None:
    shown = [read_yaml(text, page.name).value for page in PAGES for text in blocks(page, "yaml")]
    recipes = [each for each in shown if node_at(tuple(each)[:1]) is not None]
    assert len(recipes) >= 5
    for path in (path for recipe in recipes for path in keys(recipe)):
        assert node_at(path) is not None, path


def keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all keys of a section, those of sections below it too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from keys(item, (*path, number))


def test_every_page_and_heading_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            if "://" not in target:
                linked = page.parent / path if path else page
                assert linked.exists(), f"{page.name}: {target}"
                assert not heading or heading in headings(linked), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    fenced = r"^(`{3,})[^\n]*\n.*?^\1$"
    prose = re.sub(fenced, "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}
