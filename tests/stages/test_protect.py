"""Protected corpora: what one of them needs stays, though retain text as a whole does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_recipe import tiny_recipe, write_recipe

from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.recipe_file import LoadedRecipe
from pipeline.scoring.importance import unit_importance
from pipeline.selection import scores, uniform
from pipeline.stages.base import Base
from pipeline.stages.choose import choose
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import prepare, protected

TinyBase = Callable[..., Base]
VERSE = ["rose", "moon", "dew", "thou", "sigh", "sea"]
PLAIN = ("select.ffn.importance=abs", "select.ffn.score=ratio", "select.ffn.epsilon=0.01")


def corpora(folder: Path, protect: bool) -> list[dict[str, Any]]:
    """Much prose, and a little verse."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(VERSE[i % 6 :] + VERSE[: i % 5]) + f" {i}" for i in range(60)]
    (folder / "verse.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    common = {"genre": "any", "licence": "CC0"}
    return [
        {"name": "prose", "source": {"path": "prose.jsonl"}, "weight": 8, **common},
        {"name": "verse", "source": {"path": "verse.jsonl"}, "protect": protect, **common},
    ]


def recipe_of(base: Base, folder: Path, protect: bool) -> LoadedRecipe:
    return tiny_recipe(folder, base.model.path, *PLAIN, retain=corpora(folder, protect))


def test_a_unit_counts_as_much_as_where_it_is_needed_most(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base, progress = tiny_base("llama"), Progress("quiet")
    loaded, cache = recipe_of(base, tmp_path / "one", True), Cache(tmp_path / "cache")
    texts = prepare(base, loaded, cache, progress)
    assert {*texts.sequences} == {"forget", "retain", protected("verse")}

    measurer = Measurer(base, loaded.recipe, texts.sequences, cache, progress)
    chosen = choose(base, loaded.recipe, measurer, progress)
    measured = chosen.measurement
    (alone,) = measured.protected
    assert alone.tokens < measured.retain.tokens
    forget_LU, retain_LU, verse_LU = (
        unit_importance(each.ffn, each.tokens, "abs")
        for each in (measured.forget, measured.retain, alone)
    )
    most_LU = torch.maximum(retain_LU, verse_LU)
    assert (verse_LU > retain_LU).any() and (retain_LU > verse_LU).any()
    kept = uniform.keep_lowest(scores.ratio(forget_LU, most_LU, 0.01), 48)
    assert [list(layer.ffn) for layer in chosen.plan.layers] == kept

    plain = recipe_of(base, tmp_path / "two", False)
    texts = prepare(base, plain, cache, progress)
    measurer = Measurer(base, plain.recipe, texts.sequences, cache, progress)
    assert choose(base, plain.recipe, measurer, progress).plan != chosen.plan


def test_it_runs_and_verifies(unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path) -> None:
    model = tiny_base("llama").model.path
    path = write_recipe(tmp_path / "r", model, retain=corpora(tmp_path / "r", True))
    more = ("--set", "select.attention.fraction=0.34", "--set", "select.steps=2")
    assert unlearn("run", path, "--quiet", *more).code == 0
    assert unlearn("verify", "out/tiny", "--base", model, "--quiet").code == 0


@pytest.mark.parametrize("override", ["forget.code.protect=true", "retain.verse.use=held_out"])
def test_what_cannot_be_protected(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path, override: str
) -> None:
    model = tiny_base("llama").model.path
    path = write_recipe(tmp_path / "r", model, retain=corpora(tmp_path / "r", True))
    result = unlearn("check", path, "--set", override)
    assert result.code == 2 and "only a retain text that is scored" in result.err
