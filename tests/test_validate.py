"""Validation: the release is verified, measured anew by the validator's recipe, and judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from released import Release, edit, edit_tensors, renew_manifest

import pipeline.evaluation.run
from pipeline.cache import digest_of_file, read_json
from pipeline.export.manifest import NAME as MANIFEST

Make = Callable[..., Release]
PASSING = [{"task": "next_token_prose", "metric": "loss", "drops_at_most": 9.0}]
FAILING = [{"task": "next_token_code", "metric": "loss", "drops_at_least": 9.0}]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("gates", "expected"), [(PASSING, (0, "PASS")), (FAILING, (1, "FAIL")), ([], (0, "UNJUDGED"))]
)
def test_the_verdict_is_that_of_the_gates(
    release: Make, gates: list[Any], expected: tuple[int, str]
) -> None:
    made = release(gates=gates)
    code, found = made.validate()
    assert (code, found["verdict"]) == expected
    assert found["verification"]["verdict"] == "VERIFIED"
    assert (found["findings"], found["notes"]) == ([], [])
    claimed = read_json(made.folder / "evaluation.json")
    for model in ("base", "pruned"):
        tasks = found["evaluation"][model]["tasks"]
        assert {name: task["metrics"] for name, task in tasks.items()} == {
            name: task["metrics"] for name, task in claimed[model]["tasks"].items()
        }
    assert found["seconds"].keys() == {"evaluation", "total"}


def test_the_validators_recipe_judges_and_differences_are_named(release: Make) -> None:
    """A release that brings lax gates of its own is judged by the validator's."""
    made = release(gates=PASSING)
    options = ["--set", "gates.0.drops_at_most=-5", "--set", "evaluate.next_token_tokens=150"]
    code, found = made.validate(*options)
    assert (code, found["verdict"]) == (1, "FAIL")
    notes = "\n".join(found["notes"])
    assert "recipe, evaluate.next_token_tokens: 200 in the release, 150 here" in notes
    assert "recipe, gates" in notes
    assert "are of other items: next_token_code" in notes


def test_a_recipe_beside_the_release_is_not_used(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    monkeypatch.chdir(made.folder)
    for name in ("tiny.yaml", str(made.recipe)):
        (made.folder / "tiny.yaml").write_text(made.recipe.read_text())
        edit(MANIFEST, lambda m, n=name: m.update(name=n.removesuffix(".yaml")))(made.folder)
        result = made.check("validate")
        assert result.code == 2
        assert "you have no recipe" in result.err


def test_what_is_not_verified_is_not_evaluated(
    release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    edit_tensors(lambda tensors: tensors[UP].mul_(2))(made.folder)
    renew_manifest(made.folder)
    monkeypatch.setattr("pipeline.validate.evaluate_and_judge", pytest.fail)
    code, found = made.validate()
    assert (code, found["verdict"], found["evaluation"]) == (1, "FAIL", None)
    assert found["verification"]["findings"][0]["where"] == UP


@pytest.mark.parametrize("model", ["base", "pruned"])
def test_a_figure_that_was_not_measured_is_named(release: Make, model: str) -> None:
    made = release(gates=PASSING)
    edit(
        "evaluation.json",
        lambda e: e[model]["tasks"]["next_token_code"]["metrics"].update(loss=99.0),
    )(made.folder)
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (1, "FAIL")
    (finding,) = found["findings"]
    assert f"says loss of {model} on next_token_code is 99, measured" in finding["what"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"base": 3, "pruned": {"tasks": []}}'])
def test_a_release_without_figures_can_be_judged(release: Make, text: str) -> None:
    made = release(gates=PASSING)
    (made.folder / "evaluation.json").write_text(text)
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (0, "PASS")
    assert any("next_token_prose" in note for note in found["notes"])


def test_a_compensation_that_cannot_be_checked_is_said(release: Make) -> None:
    made = release("llama", "compensate.publish_maps=false", gates=PASSING)
    code, found = made.validate("--set", "compensate.publish_maps=false")
    assert (code, found["verdict"]) == (0, "PASS")
    assert found["verification"]["verdict"] == "UNVERIFIED COMPENSATION"


@pytest.mark.parametrize(("gates", "failures"), [(PASSING, "0"), (FAILING, "1")])
def test_reports_for_a_job(release: Make, tmp_path: Path, gates: list[Any], failures: str) -> None:
    made = release(gates=gates)
    junit, summary = tmp_path / "reports/junit.xml", tmp_path / "summary.md"
    summary.write_text("# Job\n\n")
    result = made.check(
        "validate", "--recipe", made.recipe, "--junit", junit, "--markdown", summary
    )
    assert result.code == int(failures)
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", failures)
    assert [case.get("classname") for case in suite] == ["release", "evaluation", "gates"]
    assert [len(case.findall("failure")) for case in suite] == [0, 0, int(failures)]
    text = summary.read_text()
    assert text.startswith("# Job\n\n## tiny: " + ("FAIL" if int(failures) else "PASS"))
    assert "next_token_prose" in text and "nothing else" in text
    assert "Validation:" in result.out


def test_a_release_cannot_break_the_reports(release: Make, tmp_path: Path) -> None:
    made = release(gates=PASSING)
    (made.folder / "a\x1b|`<b>&\n.py").write_text("x")
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    options = ["--recipe", made.recipe, "--junit", junit, "--markdown", summary]
    result = made.check("validate", *options)
    assert result.code == 1
    assert "\x1b" not in result.out
    (failure,) = (
        ElementTree.parse(junit).getroot().findall("*/testcase[@classname='release']/failure")
    )
    assert "a?|`<b>&?.py" in (failure.text or "")
    assert all(
        line.count("|") - line.count("\\|") in (0, 4, 8)
        for line in summary.read_text().splitlines()
    )


def test_stored_results_of_the_base_are_used_with_their_digest_alone(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    stored, elsewhere = tmp_path / "base.json", tmp_path / "cache of another machine"
    code, first = made.validate("--store-base-results", stored)
    assert code == 0
    loads: list[Path] = []
    load = pipeline.evaluation.run.load_lm
    monkeypatch.setattr(
        pipeline.evaluation.run, "load_lm", lambda *a, **k: (loads.append(a[0]), load(*a, **k))[1]
    )
    monkeypatch.setenv("UNLEARN_CACHE", str(elsewhere))
    options = ["--base-results", stored, "--base-results-sha256", digest_of_file(stored)]
    code, second = made.validate(*options)
    assert code == 0
    assert loads == [made.folder]  # the base was not evaluated
    assert second["evaluation"]["base"] == first["evaluation"]["base"]

    loads.clear()
    shutil.rmtree(elsewhere)
    stored.write_text(stored.read_text().replace("0.", "0.1", 1))
    for wrong, words in ((options, "nothing of it was used"), (options[:2], "with a digest")):
        result = made.check("validate", "--recipe", made.recipe, *wrong)
        assert result.code == 2 and words in result.err, result
    assert loads == []
    stored.write_text("[{}]")
    digest = digest_of_file(stored)
    result = made.check("validate", "--recipe", made.recipe, *options[:3], digest)
    assert result.code == 2 and "cannot be read as stored results" in result.err


def test_stored_results_of_other_settings_are_not_used(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    stored = tmp_path / "base.json"
    made.validate("--store-base-results", stored)
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "other"))
    options = ["--base-results", stored, "--base-results-sha256", digest_of_file(stored)]
    code, found = made.validate(*options, "--set", "evaluate.next_token_tokens=150")
    assert code == 0
    other = found["evaluation"]["base"]["tasks"]["next_token_code"]["tokens"]
    claimed = read_json(made.folder / "evaluation.json")["base"]["tasks"]["next_token_code"]
    assert other != claimed["tokens"]
