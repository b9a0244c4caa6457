"""`unlearn curve` on a tiny model that has learned its two texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command import Unlearn
from tiny_models import make_model
from tiny_recipe import write_recipe

from pipeline.cache import read_json
from pipeline.recipe_file import load_recipe
from pipeline.release.report.curves import Place, curves_figure
from pipeline.release.report.svg import WIDTH
from pipeline.stages.cuts import changed_recipes
from pipeline.stages.settings import SETTINGS

SVG = "{http://www.w3.org/2000/svg}"


def result_of(unlearn: Unlearn, recipe: Path, *options: str) -> dict[str, Any]:
    result = unlearn(
        "curve", recipe, "--json", "--fractions", "0.25,0.5", "--tokens", "200", *options
    )
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    return found


def test_every_setting_is_drawn(unlearn: Unlearn, learned_recipe: Path) -> None:
    found = result_of(unlearn, learned_recipe, "--settings", "all")
    rows = list(csv.DictReader(Path(found["folder"], "points.csv").read_text().splitlines()))
    assert {row["setting"] for row in rows} == set(found["figures"])
    assert read_json(Path(found["folder"], "figures.json"))["figures"] == found["figures"]
    for setting, figures in found["figures"].items():
        own = set() if setting == "random" else {"selectivity"}
        assert set(figures) == {"headline", "at_0.01", "at_0.02", "at_0.05", "area"} | own, setting
        for figure in figures.values():
            assert figure["low"] <= figure["high"]


def test_baselines_know_nothing_of_forget_text(learned_recipe: Path) -> None:
    """No unit is chosen by it, of no kind, and no map is learned by it."""
    learning = ("compensate.learning={}", "select.attention.fraction=0.5")
    loaded = load_recipe(learned_recipe, learning)
    for name in ("random", "magnitude"):
        (recipe,) = changed_recipes(loaded, [SETTINGS[name]])
        assert {recipe.select.ffn.score, recipe.select.attention.score} == {name}
        assert recipe.compensate.learning is None and recipe.compensate.enabled
    (recipe,) = changed_recipes(loaded, [SETTINGS["heads"]])
    assert recipe.select.ffn.fraction == recipe.select.experts.fraction == 0


def test_selectivity_stands_in_the_table_beside_random_cuts(
    unlearn: Unlearn, learned_recipe: Path
) -> None:
    options = (learned_recipe, "--fractions", "0.25,0.5", "--tokens", "200", "--settings")
    assert "selectivity" in unlearn("curve", *options, "recipe,random").out
    assert "selectivity" not in unlearn("curve", *options, "recipe").out


def test_a_second_run_asks_nothing_and_another_setting_only_its_own(
    unlearn: Unlearn, learned_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = result_of(unlearn, learned_recipe, "--settings", "recipe,random")
    asked: list[str] = []
    monkeypatch.setattr(
        "pipeline.stages.points.predict", lambda lm, documents: asked.append(lm.label)
    )
    second = result_of(unlearn, learned_recipe, "--settings", "recipe,random")
    for found in (first, second):  # choosing is done again
        assert all(cost.pop("seconds") > 0 for cost in found["costs"].values())
    assert second == first
    assert asked == []


def test_the_cost_of_a_setting_is_that_of_all_its_scorings(
    unlearn: Unlearn, learned_recipe: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    options = ("--settings", "recipe,uncompensated,taker-abs", "--cache-dir", str(cache))
    first, again = (result_of(unlearn, learned_recipe, *options)["costs"] for _ in range(2))
    room = {setting: cost["bytes"] for setting, cost in first.items()}
    assert room["recipe"] > room["taker-abs"]  # second moments
    assert room == {setting: cost["bytes"] for setting, cost in again.items()}
    scorings = [read_json(path)["seconds"] for path in cache.glob("scoring/*/cost.json")]
    for costs in (first, again):  # what is cached keeps what it cost
        assert sum(cost["seconds"] for cost in costs.values()) > sum(scorings) > 0


def test_a_setting_of_ones_own_is_what_the_recipe_would_select(
    unlearn: Unlearn, learned_recipe: Path
) -> None:
    found = result_of(
        unlearn,
        learned_recipe,
        "--settings",
        "magnitude",
        "--also",
        "mine:select.ffn.score=magnitude",
    )
    rows = [{**row, "setting": ""} for row in found["points"]]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    assert found["figures"]["mine"] == found["figures"]["magnitude"]


def test_settings_score_as_much_as_they_say_and_are_judged_alike(
    unlearn: Unlearn, learned_recipe: Path
) -> None:
    few = "few:scoring.forget_tokens=256,scoring.retain_tokens=256"
    found = result_of(unlearn, learned_recipe, "--settings", "recipe", "--also", few)
    first, second = (
        [row["forget_drop"] for row in found["points"] if row["setting"] == name]
        for name in ("recipe", "few")
    )
    assert first != second
    result = unlearn("curve", learned_recipe, "--also", "all:forget.0.use=scored", "--quiet")
    assert result.code == 2 and "changes which text is scored" in result.err


def test_a_setting_is_scored_as_it_says(unlearn: Unlearn, learned_recipe: Path) -> None:
    """What a setting changes beside the selection counts too, and costs a scoring of its own."""
    own = ("--also", "silent:compensate.forget_weight=5")
    found = result_of(unlearn, learned_recipe, "--settings", "recipe", *own)
    assert unlearn("run", learned_recipe, "--quiet", "--set", own[1].partition(":")[2]).code == 0
    (point,) = (
        row for row in found["points"] if (row["setting"], row["fraction"]) == ("silent", 0.25)
    )
    tasks = read_json(Path("out/tiny/evaluation.json"))["pruned"]["tasks"]
    loss = tasks["next_token_code"]["metrics"]["loss"]
    assert point["loss code"] == pytest.approx(loss, abs=1e-4)
    plain = next(row for row in found["points"] if row["fraction"] == 0.25)
    assert plain["loss code"] != pytest.approx(loss, abs=1e-4)


def test_masks_give_what_the_checkpoint_gives(unlearn: Unlearn, learned_recipe: Path) -> None:
    """A point against an ordinary run of the same fraction, evaluated by lm-eval."""
    found = result_of(unlearn, learned_recipe, "--settings", "recipe")
    point = next(row for row in found["points"] if row["fraction"] == 0.25)
    assert unlearn("run", learned_recipe, "--quiet").code == 0
    tasks = read_json(Path("out/tiny/evaluation.json"))["pruned"]["tasks"]
    for name in ("code", "prose"):
        metrics = tasks[f"next_token_{name}"]["metrics"]
        assert point[f"top1 {name}"] == pytest.approx(metrics["top1"], abs=1e-6)
        assert point[f"loss {name}"] == pytest.approx(metrics["loss"], abs=1e-4)


def test_drops_of_texts_make_up_those_of_sides(unlearn: Unlearn, learned_recipe: Path) -> None:
    found = result_of(unlearn, learned_recipe, "--settings", "recipe,random")
    for row in found["points"]:
        for side in ("forget", "retain"):
            drops = [row[f"drop {text}"] for text, its in found["texts"].items() if its == side]
            assert row[f"{side}_drop"] == pytest.approx(sum(drops) / len(drops), abs=1e-5)


def test_steps_are_scored_again(unlearn: Unlearn, learned_recipe: Path) -> None:
    found = result_of(unlearn, learned_recipe, "--settings", "taker-abs")
    fractions = [row["fraction"] for row in found["points"]]
    assert fractions[:3] == pytest.approx([0.02, 0.04, 0.06])
    drops = [row["retain_drop"] for row in found["points"]]
    assert all(drop <= 0.3 for drop in drops[:-1])  # and stops behind the limit


def test_the_figure_shows_every_point(unlearn: Unlearn, learned_recipe: Path) -> None:
    found = result_of(unlearn, learned_recipe, "--settings", "recipe,random", "--png")
    assert found["files"] == ["curve.png", "curve.svg", "figures.json", "points.csv"]
    folder = Path(found["folder"])
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(folder / "curve.svg").getroot()
    hints = [each.text for each in drawn.iterfind(f".//{SVG}circle/{SVG}title")]
    assert hints == [
        f"{row['fraction']:.1%}: forgotten {row['forget_drop']:.1%}, cost {row['retain_drop']:.1%}"
        for row in found["points"]
    ]
    words = [each.text for each in drawn.iterfind(f"{SVG}text")]
    assert words[:2] == ["recipe", "random"]


def test_a_figure_can_hold_any_curve() -> None:
    """Better than the base, worse than nothing, no point at all: all lie within the canvas."""
    lines = {
        "": [],
        "a": [Place(-0.1, 1.2, "<b>"), Place(0.9, -0.3, "")],
        **{f"line {number}": [Place(0.0, 0.0, "")] for number in range(9)},
    }
    for own in ({}, lines):
        drawing = curves_figure(own, Place(0.1, 0.5, "here"))
        root = ElementTree.fromstring(drawing.file())
        for circle in root.iterfind(f"{SVG}circle"):
            assert 0 <= float(circle.get("cx", "")) <= WIDTH
            assert 0 <= float(circle.get("cy", "")) <= drawing.height


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--settings", "takr"], "there is no setting 'takr'"),
        (["--also", "mine"], "'mine' is no setting"),
        (["--also", "mine:select.ffn.scor=ratio"], "did you mean `score`"),
        (["--fractions", "0.1,ten"], "are no fractions"),
        (["--fractions", "1.5"], "are no fractions"),
        (["--set", "retain.0.use=scored"], "no retain text is held out"),
    ],
)
def test_bad_input(unlearn: Unlearn, learned_recipe: Path, options: list[str], words: str) -> None:
    result = unlearn("curve", learned_recipe, *options)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not Path("out").exists()


def test_a_base_that_knows_nothing(unlearn: Unlearn, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", make_model(tmp_path / "random"))
    result = unlearn("curve", recipe, "--tokens", "20")
    assert result.code == 2 and "no drop is a share of that" in result.err
