"""Gates of a recipe: learned on its scored text, for a share that is to go, and cached."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_models import DENSE
from tiny_recipe import tiny_recipe, write_recipe

from pipeline.cache import Cache, read_json
from pipeline.errors import InputError
from pipeline.forecast import learning_tokens
from pipeline.progress import Progress
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice, choose
from pipeline.stages.drawn import drawn_recipes
from pipeline.stages.learning import check_learning, training_rows
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import prepare, protected

TinyBase = Callable[..., Base]
LEARNED = ("select.ffn.score=learned", "select.ffn.gates.steps=3")


@pytest.fixture
def measurer(tmp_path: Path, quiet: Progress) -> Callable[..., Measurer]:
    def make(base: Base, store: Cache, *overrides: str) -> Measurer:
        loaded = tiny_recipe(tmp_path / "recipe", base.model.path, *LEARNED, *overrides)
        texts = prepare(base, loaded, store, quiet)
        return Measurer(base, loaded.recipe, texts.sequences, store, quiet)

    return make


def chosen(measurer: Measurer) -> Choice:
    return choose(measurer.base, measurer.recipe, measurer, measurer.progress)


def test_the_same_gates_are_learned_again(
    tiny_base: TinyBase, tmp_path: Path, measurer: Any
) -> None:
    base = tiny_base("llama")
    one, other = (chosen(measurer(base, Cache(tmp_path / name))) for name in ("one", "other"))
    assert one.plan.to_json() == other.plan.to_json()
    assert {len(layer.ffn) for layer in one.plan.layers} == {48}
    plain = chosen(measurer(base, Cache(tmp_path / "one"), "select.ffn.score=contribution"))
    assert plain.plan.to_json() != one.plan.to_json()
    assert one.cost.seconds > plain.cost.seconds


def test_they_are_learned_once(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    first = measurer(base, cache)
    found = chosen(first)
    again = measurer(base, cache)
    assert chosen(again).plan == found.plan
    assert first.has_run and not again.has_run
    for change in ("seed=1", "select.ffn.fraction=0.5", "select.ffn.gates.retain_weight=1.0"):
        other = measurer(base, cache, change)
        chosen(other)
        assert other.has_run, change


@pytest.mark.parametrize("family", DENSE)
def test_every_layout_has_gates(
    tiny_base: TinyBase, cache: Cache, measurer: Any, family: str
) -> None:
    choice = chosen(measurer(tiny_base(family), cache))
    assert len({len(layer.ffn) for layer in choice.plan.layers}) == 1


def test_the_model_is_as_it_was(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    own = measurer(base, cache)
    model = own.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    *_, _last = [chosen(own)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_learning_serves_every_fraction(
    tiny_base: TinyBase, cache: Cache, measurer: Any
) -> None:
    base, once = tiny_base("llama"), "select.ffn.gates.fraction=0.25"
    plans = []
    for fraction in (0.125, 0.25, 0.5):
        own = measurer(base, cache, once, f"select.ffn.fraction={fraction}")
        plans.append(chosen(own).plan)
        assert own.has_run == (fraction == 0.125)
    for less, more in pairwise(plans):
        for layer in range(len(less.layers)):
            assert {*less.removed_ffn(layer)} < {*more.removed_ffn(layer)}
    own = measurer(base, cache)  # for its own fraction, which is the same
    assert chosen(own).plan == plans[1]
    assert not own.has_run


def test_a_shared_scoring_learns_for_each_fraction(
    tiny_base: TinyBase, tmp_path: Path, cache: Cache, measurer: Any
) -> None:
    base = tiny_base("llama")
    shared, own = (measurer(base, cache, f"select.ffn.fraction={x}") for x in (0.25, 0.5))
    asked = own.recipe
    assert choose(base, asked, shared, shared.progress).plan == chosen(own).plan
    assert shared.has_run and not own.has_run


def test_rows_of_protected_corpora_come_in_turn(
    tiny_base: TinyBase, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    base = tiny_base("llama")
    folder = tmp_path / "recipe"
    folder.mkdir()
    verses = [f"rose {number} moon dew {number + 1} thou sigh" for number in range(60)]
    lines = "".join(json.dumps({"text": verse}) + "\n" for verse in verses)
    (folder / "verse.jsonl").write_text(lines)
    common = {"genre": "any", "licence": "CC0", "use": "scored"}
    retain = [
        {"name": "much", "source": {"path": "prose.jsonl"}, "weight": 8, **common},
        {"name": "verse", "source": {"path": "verse.jsonl"}, "protect": True, **common},
    ]
    settings = ("select.ffn.gates.rows=4", "select.ffn.gates.row_tokens=16", "gates=[]")
    loaded = tiny_recipe(folder, base.model.path, *LEARNED, *settings, retain=retain)
    texts = prepare(base, loaded, cache, quiet)
    own = Measurer(base, loaded.recipe, texts.sequences, cache, quiet)
    protected_NT = torch.cat(texts.sequences[protected("verse")].split(16, dim=1))
    every = {tuple(row.tolist()) for row in protected_NT}
    batches = list(training_rows(own, own.recipe.select.ffn.gates, seed=0))
    assert len(batches) == 3
    for forget_NT, retain_NT in batches:
        assert forget_NT.shape == retain_NT.shape == (4, 16)
        assert all(tuple(row.tolist()) in every for row in retain_NT[1::2])
    firsts = [tuple(row.tolist()) for _, retain_NT in batches for row in retain_NT[::2]]
    assert sum(row in every for row in firsts) < len(firsts) / 2


def test_no_more_rows_than_there_are(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    own = measurer(tiny_base("llama"), cache, "select.ffn.gates.rows=1000000000")
    forget_NT, _ = next(iter(training_rows(own, own.recipe.select.ffn.gates, seed=0)))
    assert len(forget_NT) == len(own.sequences["forget"])


def test_rows_of_retain_text_may_be_more(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base, settings = tiny_base("llama"), ("select.ffn.gates={steps: 2, rows: 1, row_tokens: 16}",)
    alike = measurer(base, cache, *settings)
    more = measurer(base, cache, *settings, "select.ffn.gates.retain_rows=3")
    assert chosen(alike).plan != chosen(more).plan
    for own, number in ((alike, 1), (more, 3)):
        for forget_NT, retain_NT in training_rows(own, own.recipe.select.ffn.gates, seed=0):
            assert (len(forget_NT), len(retain_NT)) == (1, number)


def test_what_is_impossible_is_not_learned_for(
    tiny_base: TinyBase, cache: Cache, measurer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def massive(rms_LU: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.ones_like(rms_LU, dtype=torch.bool)

    monkeypatch.setattr("pipeline.selection.scores.massive", massive)
    own = measurer(tiny_base("llama"), cache)
    own.measure()
    own.has_run = False
    with pytest.raises(InputError, match="protect"):
        chosen(own)
    assert not own.has_run


def test_layers_together(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    options = ("select.policy=padded", "select.ffn.multiple_of=1")
    plan = chosen(measurer(tiny_base("llama"), cache, *options)).plan
    removed = sum(64 - len(layer.ffn) for layer in plan.layers)
    assert removed == pytest.approx(0.25 * 3 * 64, abs=8)


def test_what_gates_cannot_be_learned_of(tiny_base: TinyBase, tmp_path: Path) -> None:
    mixture = tiny_base("mixtral")
    loaded = tiny_recipe(tmp_path / "a", mixture.model.path, *LEARNED, "select.ffn.multiple_of=16")
    with pytest.raises(InputError, match="neurons of experts"):
        check_learning(loaded.recipe, mixture.architecture)
    dense = tiny_base("llama")
    loaded = tiny_recipe(
        tmp_path / "b", dense.model.path, *LEARNED, 'model.max_memory={cpu: "1GB"}'
    )
    with pytest.raises(InputError, match="all weights must be in memory"):
        check_learning(loaded.recipe, dense.architecture)
    with pytest.raises(InputError, match="take no steps"):
        tiny_recipe(tmp_path / "c", dense.model.path, *LEARNED, "select.steps=2")


def test_check_refuses_what_a_run_refuses(
    tiny_base: TinyBase, tmp_path: Path, unlearn: Unlearn
) -> None:
    mixture = tiny_base("mixtral").model.path
    recipe = write_recipe(tmp_path / "a", mixture)
    options = ("--set", "select.ffn.multiple_of=16", "--set")
    for how in ("select.ffn.score=learned", "curve={settings: [learned]}"):
        for verb in ("check", "run"):
            result = unlearn(verb, recipe, *options, how, "--quiet")
            assert result.code == 2
            assert "nothing is learned by gradients of the neurons of experts" in result.err
    result = unlearn("curve", recipe, *options[:2], "--settings", "learned", "--quiet")
    assert result.code == 2
    assert "nothing is learned by gradients of the neurons of experts" in result.err


@pytest.mark.parametrize("much", ["retain_weight=1e39", "learning_rate=1e38", "fraction=1"])
def test_nonsense_is_refused(tiny_base: TinyBase, tmp_path: Path, much: str) -> None:
    with pytest.raises(InputError, match=f"select.ffn.gates.{much.split('=')[0]}"):
        tiny_recipe(tmp_path, tiny_base("llama").model.path, f"select.ffn.gates.{much}")


def test_what_learning_is_forecast_to_take(tiny_base: TinyBase, tmp_path: Path) -> None:
    def tokens(*overrides: str) -> int:
        gates = ("select.ffn.gates={steps: 10, rows: 2, row_tokens: 64}", *overrides)
        loaded = tiny_recipe(tmp_path / "r", tiny_base("llama").model.path, *gates)
        return learning_tokens(loaded.recipe, drawn_recipes(loaded))

    once = 10 * 2 * 32 * 7  # sequences have 32 tokens
    curve = "curve={settings: [recipe, learned, random, uncompensated], fractions: [0.25, 0.5]}"
    assert tokens() == 0
    assert tokens(curve) == 2 * once
    assert tokens(LEARNED[0]) == once
    more_retain_text = 10 * 32 * (2 * 3 + 5 * 4)
    assert tokens(LEARNED[0], "select.ffn.gates.retain_rows=5") == more_retain_text
    assert tokens(LEARNED[0], curve) == 2 * once  # one of them is the recipe's own
    assert tokens(LEARNED[0], curve, "select.ffn.gates.fraction=0.5") == once
    until = "select.until={retain_drop: 0.1}"
    assert tokens(LEARNED[0], until) == 7 * once
    assert tokens(LEARNED[0], until, "select.ffn.gates.fraction=0.5") == once


def test_a_run_forgets_more_than_a_random_cut_does(unlearn: Unlearn, learned_recipe: Path) -> None:
    """Of a model that knows both texts."""
    settings = ("learned", "random")
    result = unlearn(
        *("curve", learned_recipe, "--settings", ",".join(settings), "--fractions", "0.5"),
        *("--set", "compensate.enabled=false", "--quiet"),
    )
    assert result.code == 0, result.err
    rows = {row["setting"]: row for row in read_json(Path("out/tiny-curve/figures.json"))["points"]}
    learned, random = (rows[name]["forget_drop"] - rows[name]["retain_drop"] for name in settings)
    assert learned > random + 0.1
