"""How two releases differ, as `unlearn diff` says it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Unlearn
from released import Change, Release, edit, renew_manifest
from rich.console import Console

from pipeline.cache import read_json
from pipeline.difference import _differing, _units
from pipeline.evaluation.paired import Paired
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.show_difference import show_difference
from pipeline.selection.plan import LayerPlan, Plan

Make = Callable[..., Release]
Pair = tuple[Path, Path]
EARLIER = Path(__file__).parent / "export/manifests"
FRACTION = "select.ffn.fraction=0.5"


@pytest.fixture
def pair(release: Make, tmp_path: Path) -> Pair:
    """A release, and one of the same recipe that removes twice as much."""
    one = release("llama")
    one.folder.rename(tmp_path / "one")
    other = release("llama", FRACTION)
    other.folder.rename(tmp_path / "other")
    return tmp_path / "one", tmp_path / "other"


def differ(unlearn: Unlearn, *folders: Path | str) -> dict[str, Any]:
    code, out, err = unlearn("diff", *folders, "--json", "--quiet")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
    return found


def test_a_release_differs_in_nothing_from_itself(unlearn: Unlearn, pair: Pair) -> None:
    found = differ(unlearn, pair[0], pair[0])
    assert all(found["same"].values())
    assert not found["base"] + found["recipe"] + found["environment"]
    assert found["files"]["same"] == sorted(read_json(pair[0] / MANIFEST)["files"])
    for row in found["results"]:
        assert (row["difference"], row["standard_error"], row["unpaired"]) == (0.0, 0.0, "")
    _, out, _ = unlearn("diff", pair[0], pair[0])
    assert "same base, same plan, same weights, same recipe" in out
    assert "Recipe: no difference" in out and "the same documents in all" in out


def test_what_two_cuts_of_a_model_differ_in(unlearn: Unlearn, pair: Pair) -> None:
    found = differ(unlearn, *pair)
    assert found["same"] == {"base": True, "plan": False, "weights": False, "recipe": False}
    ffn, heads, _ = found["units"]
    assert ffn["removed"] == [48, 96] and ffn["total"] == [192, 192]
    assert ffn["overlap"] == pytest.approx(0.5)  # the same score: all 48 are among the 96
    assert ffn["overlap_of_layers"] == pytest.approx([0.5] * 3)
    assert heads["removed"] == [0, 0] and heads["overlap"] is None
    assert found["recipe"] == [{"key": "select.ffn.fraction", "one": 0.25, "other": 0.5}]
    assert {"README.md", "config.json", "model.safetensors"} <= set(found["files"]["different"])
    assert {"tokenizer.json", "samples/base/next_token_code.jsonl"} <= set(found["files"]["same"])
    code, out, err = unlearn("diff", *pair)
    assert (code, err) == (0, "")
    for words in (
        "another plan, other weights",
        "48 of 192",
        "96 of 192",
        "50.0%",
        "▅▅▅",
        "next_token_prose",
    ):
        assert words in out, words
    assert "\x1b[" not in out


def test_the_error_of_a_difference_is_that_of_the_documents_differences(
    unlearn: Unlearn, pair: Pair
) -> None:
    rows = {(row["task"], row["metric"]): row for row in differ(unlearn, *pair)["results"]}
    row = rows["next_token_prose", "loss"]
    figures = []
    for folder in pair:
        lines = (folder / "samples/pruned/next_token_prose.jsonl").read_text().splitlines()
        figures.append(np.array([json.loads(line)["loss"] for line in lines]))
    one, other = (each[:, 0].sum() / each[:, 1].sum() for each in figures)
    assert row["difference"] == pytest.approx(other - one)
    left_out = []
    for number in range(len(figures[0])):
        rest = [np.delete(each, number, axis=0).sum(axis=0) for each in figures]
        left_out.append(rest[1][0] / rest[1][1] - rest[0][0] / rest[0][1])
    n = len(left_out)
    jackknife = np.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert row["standard_error"] == pytest.approx(jackknife, rel=0.05)


def test_the_difference_of_means_has_the_error_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(40), rng.random(40)
    difference, error = Paired(*(np.stack([x, np.ones(40)], 1) for x in (one, other))).difference()
    assert difference == pytest.approx((other - one).mean())
    assert error == pytest.approx((other - one).std(ddof=1) / np.sqrt(40))


# ── where there is nothing to pair ───────────────────────────────────────────────────────────────

SAMPLES = "samples/pruned/next_token_prose.jsonl"
RESULT = ("evaluation", "pruned", "tasks", "next_token_prose")


def set_in_result(key: str, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for name in RESULT:
            place = place[name]
        place[key] = value

    return edit(MANIFEST, change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: (f / SAMPLES).unlink(), "a release has no samples of it"),
        (lambda f: (f / SAMPLES).write_text("{"), "the samples are not those of its documents"),
        (lambda f: (f / SAMPLES).write_text("7\n"), "the samples are not those of its documents"),
        (lambda f: (f / SAMPLES).write_text(""), "the samples are not those of its documents"),
        (set_in_result("documents", "others"), "other documents"),
        (set_in_result("estimator", {}), "computed in another way"),
        (set_in_result("metrics", {"loss": 1.0}), "the samples say something else"),
    ],
)
def test_a_difference_without_pairs_has_no_error_and_says_why(
    unlearn: Unlearn, pair: Pair, change: Change, why: str
) -> None:
    change(pair[1])
    found = differ(unlearn, *pair)
    (row,) = (r for r in found["results"] if r["task"] == RESULT[-1] and r["metric"] == "loss")
    assert (row["standard_error"], row["unpaired"]) == (None, why)
    assert row["difference"] is not None
    _, out, _ = unlearn("diff", *pair)
    assert f"no paired error, {why}: next_token_prose" in out


def test_a_task_of_one_alone_has_no_difference(unlearn: Unlearn, pair: Pair) -> None:
    edit(MANIFEST, lambda m: m["evaluation"]["pruned"]["tasks"].pop("next_token_prose"))(pair[0])
    rows = [r for r in differ(unlearn, *pair)["results"] if r["task"] == "next_token_prose"]
    assert len(rows) == 3
    for row in rows:
        assert row["one"] is None and row["difference"] is None
        assert row["unpaired"] == "only one has it"
    assert unlearn("diff", *pair).code == 0


# ── manifests ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["manifest-1.json", "manifest-2.json"])
def test_earlier_manifests_are_compared_too(unlearn: Unlearn, pair: Pair, name: str) -> None:
    earlier = pair[0].parent / "earlier"
    earlier.mkdir()
    shutil.copy(EARLIER / name, earlier / MANIFEST)
    found = differ(unlearn, earlier, pair[0])
    assert not found["same"]["recipe"]
    assert found["files"]["only_one"] or found["files"]["different"]
    assert unlearn("diff", earlier, pair[0]).code == 0


def test_what_is_no_release_is_refused(unlearn: Unlearn, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = unlearn("diff", pair[0], "empty")
    assert code == 2 and "no pruning manifest that can be read" in err and "empty" in err
    (tmp_path / "empty" / MANIFEST).write_text('{"format": 1, "files": {}}')
    code, _, err = unlearn("diff", "empty", pair[0])
    assert code == 2 and "incomplete or wrong" in err and "Traceback" not in err
    (tmp_path / "empty" / MANIFEST).write_text('{"format": 9, "files": {}}')
    code, _, err = unlearn("diff", "empty", pair[0])
    assert code == 2 and "format 9" in err and "newer version" in err
    edit(MANIFEST, lambda m: m["plan"]["layers"][1].update(ffn=[5, 99]))(pair[1])
    code, _, err = unlearn("diff", *pair)
    assert code == 2 and "impossible ffn in layer 1" in err


def test_a_release_cannot_steer_the_terminal(unlearn: Unlearn, pair: Pair) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["name"] = "\x1b[31m[red]x"
        manifest["environment"]["torch"] = "\x1b[2J[bold]2"
        manifest["recipe"]["\x1b]0;title"] = "[/]"
        tasks = manifest["evaluation"]["pruned"]["tasks"]
        tasks["\x1b[1m[/bold]"] = tasks.pop("next_token_prose")

    edit(MANIFEST, change)(pair[1])
    (pair[1] / "\x1b[5m[blink]").write_text("")
    renew_manifest(pair[1])
    code, out, err = unlearn("diff", *pair)
    assert code == 0, err
    assert "\x1b" not in out
    assert "[red]x" in out and "[bold]2" in out and "[blink]" in out


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def plan_of(*kept: tuple[int, ...], total: int = 4) -> Plan:
    return Plan(total, 2, 1, tuple(LayerPlan(layer, (0, 1), (0,)) for layer in kept))


def test_layers_have_their_own_overlap() -> None:
    row = _units(plan_of((0, 1), (0, 1, 2, 3)), plan_of((0, 2), (0, 1, 2, 3)))[0]
    assert row["overlap_of_layers"] == [pytest.approx(1 / 3), None]
    assert row["overlap"] == pytest.approx(1 / 3)
    assert row["removed"] == [2, 2] and row["total"] == [8, 8]


def test_units_of_models_of_other_shapes_are_not_matched() -> None:
    for other in (plan_of((0,)), plan_of((0, 1), (0, 1), total=5)):
        row = _units(plan_of((0, 1), (0, 1)), other)[0]
        assert row["overlap"] is None and row["overlap_of_layers"] is None


def test_differing_keys_are_those_of_overrides() -> None:
    one = {"a": 1, "t": [{"task": "x", "limit": 1}, {"task": "y"}], "n": None, "l": [1, 2]}
    other = {"a": 1, "t": [{"task": "y"}, {"task": "x", "limit": 2}], "l": [1, 3], "b": None}
    assert list(_differing(one, other)) == [
        {"key": "t.x.limit", "one": 1, "other": 2},
        {"key": "n", "one": None},
        {"key": "l", "one": [1, 2], "other": [1, 3]},
        {"key": "b", "other": None},
    ]


def test_a_narrow_terminal_loses_no_figure(unlearn: Unlearn, pair: Pair, tmp_path: Path) -> None:
    found = differ(unlearn, *pair)
    with (tmp_path / "shown").open("w") as stream:
        show_difference(found, Console(file=stream, width=60, force_terminal=True))
    shown = (tmp_path / "shown").read_text()
    for row in found["results"]:
        assert f"{row['other']:.3f}" in shown
