"""`unlearn compare` on a tiny model that has learned its two texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command import Unlearn

from pipeline.cache import read_json
from pipeline.stages import trained

QUICK = ("--minutes", "0.05", "--every", "2", "--judged", "200", "--retain-drop", "0.3")
LARGE = ("--set", "select.ffn.fraction=0.5")


def result_of(unlearn: Unlearn, recipe: Path, *options: str) -> dict[str, Any]:
    result = unlearn("compare", recipe, "--json", *QUICK, *LARGE, *options)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    return found


def test_every_way_is_judged_and_learns_again(unlearn: Unlearn, learned_recipe: Path) -> None:
    found = result_of(unlearn, learned_recipe, "--steps", "4", "--tokens", "256")
    assert list(found["ways"]) == ["pruning", "ga", "gd", "npo", "rmu"]
    pruning = found["ways"]["pruning"]
    assert pruning["forget_drop"] > 0.2 and pruning["learning_rate"] is None
    for name, tried in found["tried"].items():
        own = found["ways"][name]
        rates = [point["learning_rate"] for point in tried]
        assert rates == sorted(rates, reverse=True) and len(set(rates)) >= 2, name
        if own["forget_drop"] is None:
            continue
        assert own["parameters"] > pruning["parameters"]
        within = [p for p in tried if p["retain_drop"] <= 0.3]
        best = max(within, key=lambda point: point["forget_drop"])
        assert (own["learning_rate"], own["step"]) == (best["learning_rate"], best["step"])
        assert own["area"] is not None
    folder = Path(found["folder"])
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [row["way"] for row in rows] == list(found["ways"])
    assert read_json(folder / "compare.json")["ways"] == found["ways"]


def test_what_is_known_is_not_trained_again(
    unlearn: Unlearn, learned_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = ("--set", "seed=3")  # which no other test has trained with
    first = result_of(unlearn, learned_recipe, "--ways", "ga", "--no-relearn", *seed)
    assert first["ways"]["ga"]["forget_drop"] is not None
    assert "steps_to_half" not in first["ways"]["ga"]
    used: list[str] = []
    descend = trained.descend

    def noted(*arguments: Any, **keywords: Any) -> Any:
        used.append("trained")
        return descend(*arguments, **keywords)

    monkeypatch.setattr(trained, "descend", noted)
    again = result_of(unlearn, learned_recipe, "--ways", "ga", "--no-relearn", *seed)
    assert used == []
    assert again["ways"]["ga"] == first["ways"]["ga"]
    assert again["ways"]["pruning"]["scoring_was_cached"]
    more = result_of(unlearn, learned_recipe, "--ways", "ga,gd", "--no-relearn", *seed)
    assert used and more["ways"]["ga"] == first["ways"]["ga"]


def test_it_is_shown(unlearn: Unlearn, learned_recipe: Path) -> None:
    result = unlearn("compare", learned_recipe, "--ways", "ga", "--no-relearn", *QUICK, *LARGE)
    assert result.code == 0, result.err
    assert "pruning" in result.out and "forget drop" in result.out
    assert "half regained" not in result.out
    assert sorted(each.name for each in Path("out/tiny-compare").iterdir()) == [
        "compare.csv",
        "compare.json",
    ]


def test_what_judges_is_not_what_selects(
    unlearn: Unlearn, learned_recipe: Path, warm_cache: Path
) -> None:
    result_of(unlearn, learned_recipe, "--ways", "ga", "--no-relearn")
    folders = [path.parent for path in (warm_cache / "texts").glob("*/selection")]
    assert folders
    for path in (folder / f"{name}.jsonl" for folder in folders for name in ("code", "prose")):
        judging, selecting = (
            set(each.read_text().splitlines())
            for each in (path, path.parent / "selection" / path.name)
        )
        assert judging and selecting and not judging & selecting


def test_a_trained_model_can_be_learned_again_by_relearn(
    unlearn: Unlearn, learned_recipe: Path, warm_cache: Path
) -> None:
    """The checkpoint in the cache is an ordinary one."""
    result_of(unlearn, learned_recipe, "--ways", "ga", "--no-relearn")
    (folder, *_) = (warm_cache / "trained").glob("*/model")
    assert unlearn("run", learned_recipe, *LARGE, "--quiet").code == 0
    few = ("--steps", "2", "--every", "1", "--tokens", "128", "--judged", "100")
    own = ("--recipe", learned_recipe, *LARGE)
    result = unlearn("relearn", "out/tiny", "--also", f"ga={folder}", "--json", *own, *few)
    assert result.code == 0, result.err
    assert "ga" in json.loads(result.out.splitlines()[-1])["figures"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ways", "ga,gdd"], "there is no way to unlearn called 'gdd'"),
        (["--set", "retain.0.use=scored"], "no retain text is held out"),
    ],
)
def test_bad_input(unlearn: Unlearn, learned_recipe: Path, options: list[str], words: str) -> None:
    result = unlearn("compare", learned_recipe, *QUICK, *options)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not Path("out").exists()
