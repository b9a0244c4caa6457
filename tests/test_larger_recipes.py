"""Recipes for models of the Hub, each checked against a tiny model of its family on a Hub here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Unlearn
from hub_address import point_hub_at
from sources.loopback_hub import LoopbackHub

from pipeline.recipe.texts import HubSource
from pipeline.recipe_file import load_recipe, shipped_recipes_folder
from pipeline.stages.base import Base

FAMILIES = {
    "no-code-llama": "llama",
    "no-code-qwen": "qwen2",
    "no-code-gemma": "gemma2",
    "no-code-pythia": "gpt_neox",
    "no-code-opt": "opt",
    "no-code-galactica": "opt",
    "no-biology": "mistral",
}
LICENCE = "---\nlicense: {}\n---\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    point_hub_at(hub.url, monkeypatch, tmp_path / "hub-cache")
    yield hub
    hub.stop()


def test_all_of_them_are_here() -> None:
    files = shipped_recipes_folder().glob("*.yaml")
    of_the_hub = {
        path.stem
        for path in files
        if isinstance(load_recipe(str(path)).recipe.model.source, HubSource)
    }
    assert of_the_hub == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_can_be_checked(
    name: str,
    hub: LoopbackHub,
    unlearn: Unlearn,
    tiny_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    """All of it but the size of the model, and WMDP's questions, which are lm-eval's own."""
    recipe = load_recipe(name).recipe
    assert isinstance(recipe.model.source, HubSource)
    folder = tmp_path / "model"
    shutil.copytree(tiny_base(FAMILIES[name], intermediate_size=512).model.path, folder)
    (folder / "README.md").write_text(LICENCE.format(recipe.model.licence))
    hub.folders[f"models/{recipe.model.source.hub}"] = folder
    lines = [
        {"question": f"What of {number}?", "long_answer": f"It is {kind} number {number}. " * 9}
        for number in range(400)
        for kind in ("a virus", "a bone")
    ]
    texts = tmp_path / "abstracts.jsonl"
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    here = {"path": str(texts)}
    own = [
        f"{side}.{corpus.name}.source={json.dumps(here)}"
        for side, corpus in recipe.corpora
        if isinstance(corpus.source, HubSource)
    ]
    if name == "no-biology":
        own += ["evaluate.tasks=[]", "gates=[]"]
    options = [part for each in own for part in ("--set", each)]
    result = unlearn("check", name, *options)
    assert result.code == 0, result.err
    assert f"({'hub'}, {FAMILIES[name]})" in result.out


@pytest.mark.parametrize("name", FAMILIES)
def test_it_says_that_it_was_not_run(name: str) -> None:
    assert (shipped_recipes_folder() / f"{name}.yaml").read_text().startswith("# NOT RUN YET")
