"""The control: a cut of the same shape that knows nothing of the texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from released import Release
from safetensors.torch import load_file
from tiny_recipe import tiny_recipe, write_recipe

from pipeline.cache import Cache, read_json
from pipeline.progress import Progress
from pipeline.stages.base import Base
from pipeline.stages.cut import make_control
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import prepare

TinyBase = Callable[..., Base]
GATES: list[dict[str, Any]] = [
    {"task": "next_token_code", "metric": "loss", "drops_at_most": 9.0, "against": "control"},
    {
        "task": "next_token_code",
        "metric": "loss",
        "more_than": "next_token_prose",
        "drops_at_least": -9.0,
    },
]


def control_of(base: Base, folder: Path, cache: Cache, *overrides: str) -> Path:
    loaded = tiny_recipe(folder, base.model.path, *overrides, control={})
    progress = Progress("quiet")
    texts = prepare(base, loaded, cache, progress)
    measurer = Measurer(base, loaded.recipe, texts.sequences, cache, progress)
    folder, _ = make_control(base, loaded.recipe, measurer, cache, progress)
    return folder


def test_it_is_random_of_the_same_shape_and_made_once(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cache = tiny_base("llama"), Cache(tmp_path / "cache")
    heads = "select.attention.fraction=0.34"
    folder = control_of(base, tmp_path / "one", cache, heads)
    config = read_json(folder / "config.json")
    assert config["intermediate_size"] == base.dimensions.ffn * 3 // 4
    assert config["num_key_value_heads"] == base.dimensions.kv_heads - 1
    tensors = load_file(folder / "model.safetensors")
    real = ["select.ffn.score=ratio", "select.ffn.importance=abs", "select.steps=2"]
    assert control_of(base, tmp_path / "again", cache, heads, *real) == folder
    others = [
        control_of(base, tmp_path / name, cache, heads, f"control.{change}")
        for name, change in (("other", "seed=2"), ("small", "score=magnitude"))
    ]
    up = "model.layers.0.mlp.up_proj.weight"
    for other in others:
        assert not torch.equal(load_file(other / "model.safetensors")[up], tensors[up])


def test_it_is_evaluated_shown_and_judged(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe", tiny_base("llama").model.path, control={}, gates=GATES
    )
    code, out, _ = unlearn("run", recipe)
    assert code == 0
    assert "control" in out.splitlines()[2]
    assert "against the control" in out and "than next_token_prose" in out
    made = tmp_path / "out/tiny"
    evaluation = read_json(made / "evaluation.json")
    figures = [
        evaluation[model]["tasks"]["next_token_code"]["metrics"]["loss"]
        for model in ("base", "pruned", "control")
    ]
    assert len(set(figures)) == 3
    assert evaluation["gates"][0]["base"] == figures[2]
    assert (made / "samples/control/next_token_code.jsonl").is_file()
    card = (made / "README.md").read_text()
    assert "| change | control |" in card and "plain damage" in card
    assert f"{figures[2]:.3f} ±" in card
    assert len({line.count("|") for line in card.splitlines() if line.startswith("| forget")}) == 1


def test_a_validation_makes_its_own(release: Callable[..., Release]) -> None:
    made = release(control={}, gates=GATES)
    code, found = made.validate()
    assert (code, found["verdict"], found["findings"]) == (0, "PASS", [])
    claimed = read_json(made.folder / "evaluation.json")["control"]["tasks"]
    measured = found["evaluation"]["control"]["tasks"]
    assert measured["next_token_code"]["metrics"] == claimed["next_token_code"]["metrics"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["gates.0.against=control"], "gates.0.against: the recipe has no control"),
        (["gates.0.more_than=next_token_cod"], "did you mean `next_token_code`?"),
        (["gates.0.more_than=next_token_prose"], "must name another task"),
        (
            [f"gates.0.{one}" for one in ("more_than=x", "scale=above_chance", "chance=0.5")],
            "whose chances differ",
        ),
        (["control.score=best"], "control.score: expected random or magnitude"),
    ],
)
def test_what_is_wrong_is_said(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path, overrides: list[str], words: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe", tiny_base("llama").model.path)
    options = [part for one in overrides for part in ("--set", one)]
    code, _, err = unlearn("check", recipe, *options)
    assert code == 2
    assert words in err, err
