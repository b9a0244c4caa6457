"""`select.until`: how much is removed is searched for; and `curve`, which draws it for the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from command import Unlearn

from pipeline.cache import read_json
from pipeline.recipe.judging import SettingName
from pipeline.recipe_file import load_recipe
from pipeline.stages.search import PORTIONS, scaled
from pipeline.stages.settings import SETTINGS

WIDE = ("--set", "select.ffn.fraction=0.9", "--set", "evaluate.prompts=[]")


def manifest_of(unlearn: Unlearn, recipe: Path, *until: str) -> dict[str, Any]:
    options = [part for each in until for part in ("--set", each)]
    result = unlearn("run", recipe, "--quiet", *WIDE, *options)
    assert result.code == 0, result.err
    found: dict[str, Any] = read_json(Path("out/tiny/pruning_manifest.json"))
    return found


def chosen(manifest: dict[str, Any]) -> dict[str, float]:
    search = manifest["search"]
    (probe,) = (each for each in search["probes"] if each["portion"] == search["portion"])
    kept = manifest["units"]["ffn"]
    assert probe["removed"] == pytest.approx(1 - kept["kept"] / kept["total"])
    return dict(probe)


def test_as_much_goes_as_retain_text_may_pay_for(unlearn: Unlearn, learned_recipe: Path) -> None:
    manifest = manifest_of(unlearn, learned_recipe, "select.until={retain_drop: 0.1}")
    search, probe = manifest["search"], chosen(manifest)
    assert probe["retain_drop"] <= 0.1
    beyond = [each for each in search["probes"] if each["portion"] > search["portion"]]
    assert beyond and all(each["retain_drop"] > 0.1 for each in beyond)
    assert min(each["portion"] for each in beyond) == search["portion"] + 1 / PORTIONS
    assert "more than 0.1" in search["reason"]
    assert manifest["recipe"]["select"]["ffn"]["fraction"] == 0.9  # as it was asked


def test_no_more_goes_than_forgetting_takes(unlearn: Unlearn, learned_recipe: Path) -> None:
    until = "select.until={forget: {accuracy: 0.5}}"
    manifest = manifest_of(unlearn, learned_recipe, until)
    search, probe = manifest["search"], chosen(manifest)
    assert probe["accuracy"] <= 0.5
    less = [each for each in search["probes"] if each["portion"] < search["portion"]]
    assert less and all(each["accuracy"] > 0.5 for each in less)
    assert search["reason"] == "forget accuracy is 0.5 or less"


def test_both(unlearn: Unlearn, learned_recipe: Path) -> None:
    """The wish is granted within the budget; else the budget is used up."""
    wish = manifest_of(unlearn, learned_recipe, "select.until={forget: {accuracy: 0.5}}")
    cost = chosen(wish)["retain_drop"]
    rich = f"select.until={{forget: {{accuracy: 0.5}}, retain_drop: {cost + 0.01}}}"
    assert (
        manifest_of(unlearn, learned_recipe, rich)["search"]["portion"]
        == (wish["search"]["portion"])
    )
    if cost > 0.02:
        poor = f"select.until={{forget: {{accuracy: 0.5}}, retain_drop: {cost - 0.01}}}"
        found = manifest_of(unlearn, learned_recipe, poor)["search"]
        assert found["portion"] < wish["search"]["portion"]
        assert "more than" in found["reason"]


def test_the_fractions_are_the_most(unlearn: Unlearn, learned_recipe: Path) -> None:
    small = "select.ffn.fraction=0.25"
    manifest = manifest_of(
        unlearn, learned_recipe, small, "select.until={forget: {accuracy: 0.001}}"
    )
    assert manifest["search"]["portion"] == 1.0
    assert manifest["search"]["reason"] == "the fractions end before forget accuracy is 0.001"


def test_what_searches_never_judges(unlearn: Unlearn, learned_recipe: Path) -> None:
    until = ("--set", "select.until={retain_drop: 0.1, tokens: 300}")
    assert unlearn("run", learned_recipe, *WIDE, *until, "--cache-dir", "cache").code == 0
    (texts,) = Path("cache/texts").glob("*[0-9a-f]")
    for name in ("code", "prose"):
        apart = {*(texts / "selection" / f"{name}.jsonl").read_text().splitlines()}
        judges = {*(texts / f"{name}.jsonl").read_text().splitlines()}
        assert apart and judges and not apart & judges


def test_the_release_is_judged_like_any_other(unlearn: Unlearn, learned_recipe: Path) -> None:
    gates = (
        "gates=[{task: next_token_prose, metric: loss, drops_at_most: 9.0, against: control}]",
        "control={}",
        "select.until={retain_drop: 0.1}",
    )
    manifest_of(unlearn, learned_recipe, *gates)
    options = [part for each in gates for part in ("--set", each)]
    result = unlearn("validate", "out/tiny", "--recipe", learned_recipe, "--quiet", *WIDE, *options)
    assert result.code == 0, result.out + result.err


def test_scaled() -> None:
    recipe = load_recipe("no-code-heads").recipe
    half = scaled(recipe, 0.5).select
    assert half.ffn.fraction == pytest.approx(recipe.select.ffn.fraction / 2)
    assert half.attention.fraction == pytest.approx(recipe.select.attention.fraction / 2)


def test_a_curve_is_on_card_and_report(
    unlearn: Unlearn, learned_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    manifest = manifest_of(
        unlearn, learned_recipe, "curve={fractions: [0.25, 0.26, 0.5]}", "select.ffn.fraction=0.25"
    )
    curve = manifest["curve"]
    assert len([*(tmp_path / "cache/scoring").iterdir()]) == 2  # of both sides: the run's own
    widths = [point["removed"] for point in curve["settings"]["recipe"]]
    assert len(widths) == len({*widths}) == 2  # a quarter and a little more are one width
    assert {*curve["settings"]} == {"recipe", "random"}
    assert curve["chosen"] == curve["settings"]["recipe"][0]  # the released cut is one of them
    card = Path("out/tiny/README.md").read_text()
    assert "## Forgetting against its cost" in card
    assert f"| {100 * curve['chosen']['forget_drop']:.1f} %" in card
    assert 'id="curve"' in Path("out/tiny/report.html").read_text()
    assert Path("out/tiny/figures/curve.svg").is_file()
    assert unlearn("verify", "out/tiny", "--recipe", learned_recipe, "--quiet").code == 0


def test_the_recipe_knows_the_settings() -> None:
    assert get_args(SettingName) == tuple(SETTINGS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("select.until={}", "set retain_drop, forget or both"),
        ("select.until={retain_drop: 1.5}", "a number > 0 and < 1"),
        ("select.until={retain_drop: 0.1, portion: 2}", "portion"),
        ("curve={fractions: [0.5, 0.2]}", "fractions must ascend"),
        ("curve={settings: [takr]}", "taker-abs"),
    ],
)
def test_bad_input(unlearn: Unlearn, learned_recipe: Path, override: str, words: str) -> None:
    result = unlearn("run", learned_recipe, *WIDE, "--set", override)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err, result.err
    assert not Path("out/tiny").exists()


def test_the_least_costs_too_much(unlearn: Unlearn, learned_recipe: Path) -> None:
    coarse = ("--set", "select.ffn.multiple_of=32", "--set", "select.until={retain_drop: 0.001}")
    result = unlearn("run", learned_recipe, *WIDE, *coarse)
    assert result.code == 2, result.err
    assert "50.0% removed cost retain text" in result.err and "less cannot be" in result.err


@pytest.mark.parametrize("override", ["select.until={retain_drop: 0.1}", "curve={}"])
def test_nothing_is_held_out(unlearn: Unlearn, learned_recipe: Path, override: str) -> None:
    result = unlearn("run", learned_recipe, "--set", override, "--set", "retain.0.use=scored")
    assert result.code == 2 and "no retain text is held out" in result.err
