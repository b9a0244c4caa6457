"""`unlearn relearn` on a tiny model that has learned its two texts."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from command import Unlearn
from tiny_models import load

from pipeline.cache import read_json
from pipeline.evaluation.adapters import add_adapters
from pipeline.stages import relearning

SVG = "{http://www.w3.org/2000/svg}"
FEW = ("--steps", "12", "--every", "4", "--tokens", "320", "--judged", "200")
RATE = ("--learning-rate", "3e-3")
LARGE = "select.ffn.fraction=0.5"


@pytest.fixture
def cut(unlearn: Unlearn, learned_recipe: Path) -> Path:
    """A release of the recipe that lost much."""
    assert unlearn("run", learned_recipe, "--set", LARGE, "--quiet").code == 0
    return Path("out/tiny")


def result_of(unlearn: Unlearn, release: Path, recipe: Path, *options: str) -> dict[str, Any]:
    own = ("--recipe", str(recipe), "--set", LARGE)
    result = unlearn("relearn", release, "--json", *own, *FEW, *RATE, *options)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    return found


def test_a_pruned_model_regains_what_it_lost(
    unlearn: Unlearn, learned_recipe: Path, cut: Path
) -> None:
    found = result_of(unlearn, cut, learned_recipe)
    figures = found["figures"]
    assert list(figures) == ["base", "pruned", "random"]
    assert figures["base"]["forget_drop"] == 0 and figures["base"]["area"] == 0
    assert figures["base"]["steps_to_half"] is None  # there is nothing to regain
    pruned = figures["pruned"]
    assert pruned["forget_drop"] > 0.2
    assert pruned["forget_drop_after"] < pruned["forget_drop"] / 2
    assert 0 < pruned["steps_to_half"] <= 12 and pruned["area"] > 0
    assert pruned["parameters"] == figures["random"]["parameters"] < figures["base"]["parameters"]
    assert all(own["trained"] == own["parameters"] for own in figures.values())


def test_it_begins_where_the_curve_says(unlearn: Unlearn, learned_recipe: Path, cut: Path) -> None:
    """Checkpoints before the first step against masks on the base, judged on the same texts."""
    options = ("--settings", "recipe,random", "--fractions", "0.5", "--tokens", "200", "--json")
    result = unlearn("curve", learned_recipe, *options)
    points = json.loads(result.out.splitlines()[-1])["points"]
    found = result_of(unlearn, cut, learned_recipe)
    first = {row["model"]: row for row in found["points"] if row["step"] == 0}
    (point,) = [row for row in points if row["setting"] == "recipe"]
    for key in ("forget_drop", "retain_drop", "top1 code", "top1 prose"):
        assert first["pruned"][key] == pytest.approx(point[key], abs=1e-6)


def test_what_is_written_agrees(unlearn: Unlearn, learned_recipe: Path, cut: Path) -> None:
    found = result_of(unlearn, cut, learned_recipe)
    folder = Path(found["folder"])
    assert folder.resolve() == Path("out/tiny-relearn").resolve()
    assert found["files"] == ["relearn.csv", "relearn.json", "relearn.svg"]
    rows = list(csv.DictReader((folder / "relearn.csv").read_text().splitlines()))
    assert [(row["model"], int(row["step"])) for row in rows] == [
        (model, step) for model in ("base", "pruned", "random") for step in (0, 4, 8, 12)
    ]
    assert read_json(folder / "relearn.json")["figures"] == found["figures"]
    drawn = ElementTree.parse(folder / "relearn.svg").getroot()
    hints = [each.text for each in drawn.iterfind(f".//{SVG}circle/{SVG}title")]
    assert hints == [
        f"{row['model']}, {row['step']} steps: {1 - float(row['forget_drop']):.1%}" for row in rows
    ]
    words = [each.text for each in drawn.iterfind(f"{SVG}text")]
    assert words[:3] == ["base", "pruned", "random"] and {"0", "3", "6", "9", "12"} <= set(words)
    own = ("--recipe", learned_recipe, "--set", LARGE)
    shown = unlearn("relearn", cut, *own, *FEW, *RATE)
    assert shown.code == 0 and "nothing lost" in shown.out and "half regained after" in shown.out


def test_a_second_run_trains_nothing_and_another_model_only_itself(
    unlearn: Unlearn, learned_recipe: Path, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = result_of(unlearn, cut, learned_recipe)
    trained: list[str] = []
    tuned = relearning.tuned

    def noted(model: Any, *others: Any) -> Any:
        trained.append(model.name_or_path)
        return tuned(model, *others)

    monkeypatch.setattr(relearning, "tuned", noted)
    assert result_of(unlearn, cut, learned_recipe) == first
    assert trained == []
    other = Path(shutil.copytree(cut, "other"))
    model = load(cut, torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(other)
    found = result_of(unlearn, cut, learned_recipe, "--also", f"mine={other}")
    assert trained == [str(other)]
    assert list(found["figures"]) == ["base", "pruned", "random", "mine"]


def test_a_ragged_release_learns_as_it_is(
    unlearn: Unlearn, learned_recipe: Path, tmp_path: Path
) -> None:
    ragged = ("select.policy=ragged", "select.ffn.multiple_of=4")
    sets = [part for one in ragged for part in ("--set", one)]
    out = tmp_path / "ragged"
    made = unlearn("run", learned_recipe, "--out", out, "--quiet", "--set", LARGE, *sets)
    assert made.code == 0, made.err
    assert "ragged" in read_json(out / "tiny/config.json")
    found = result_of(unlearn, out / "tiny", learned_recipe, *sets)
    assert (
        found["figures"]["pruned"]["forget_drop_after"] < found["figures"]["pruned"]["forget_drop"]
    )


def test_adapters_alone_are_trained(unlearn: Unlearn, learned_recipe: Path, cut: Path) -> None:
    found = result_of(unlearn, cut, learned_recipe, "--lora")
    pruned = found["figures"]["pruned"]
    assert found["manner"]["adapters"] and 0 < pruned["trained"] < pruned["parameters"]
    assert pruned["forget_drop_after"] < pruned["forget_drop"]
    full = result_of(unlearn, cut, learned_recipe)
    assert full["points"] != found["points"]
    at_first = [row for row in found["points"] if row["step"] == 0]
    assert at_first == [row for row in full["points"] if row["step"] == 0]


def test_adapters_leave_the_weights(cut: Path) -> None:
    model = load(cut, torch.float32)
    add_adapters(model, seed=0)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--also", "mine"], "'mine' names no checkpoint"),
        (["--also", "pruned=."], "'pruned' is a model that is compared anyway"),
        (["--also", "mine=nowhere"], "there is no checkpoint in this folder"),
        (["--out", "out/tiny"], "nothing is written into a release"),
        (["--learning-rate", "1e30"], "train at a lower rate"),
        (["--set", "retain.0.use=scored"], "no retain text is held out"),
    ],
)
def test_bad_input(
    unlearn: Unlearn, learned_recipe: Path, cut: Path, options: list[str], words: str
) -> None:
    result = unlearn("relearn", cut, "--recipe", learned_recipe, *FEW, *options)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not Path("out/tiny-relearn").exists()


def test_strangers_in_the_output_folder_are_left_alone(
    unlearn: Unlearn, learned_recipe: Path, cut: Path
) -> None:
    note = Path("out/tiny-relearn/note.txt")
    note.parent.mkdir()
    note.write_text("mine")
    result = unlearn("relearn", cut, "--recipe", learned_recipe, *FEW)
    assert result.code == 2 and "it was not touched" in result.err
    assert note.read_text() == "mine"


def test_without_peft_the_remedy_is_named(
    unlearn: Unlearn, learned_recipe: Path, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *own: None if name == "peft" else find(name, *own)
    )
    result = unlearn("relearn", cut, "--recipe", learned_recipe, "--lora")
    assert result.code == 2 and 'pip install "unlearn-pipeline[relearn]"' in result.err
