"""Validation: the release is verified, measured anew by the validator's recipe, and judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from released import Change, Release, edit, edit_tensors, renew_manifest, retell, untell
from tiny_recipe import PASSING

import pipeline.evaluation.run
from pipeline.cache import digest_of_file, read_json, write_json
from pipeline.evaluation.gates import Drop, in_words
from pipeline.evaluation.results import MEAN, Evaluation, TaskResult
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.maps import NAME as MAPS
from pipeline.recipe.judging import Gate
from pipeline.release.checks.claims import check_evaluation

Make = Callable[..., Release]
FAILING = [{"task": "next_token_code", "metric": "loss", "drops_at_least": 9.0}]
UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


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
    monkeypatch.setenv("UNLEARN_RECIPES", str(made.folder))
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


def claim(change: Callable[[dict[str, Any]], object]) -> Change:
    """What a forger does who knows that manifest, evaluation and card are compared."""

    def apply(folder: Path) -> None:
        edit(MANIFEST, lambda m: change(m["evaluation"]))(folder)
        manifest = read_json(folder / MANIFEST)
        manifest["verdict"] = manifest["evaluation"].get("verdict")
        write_json(folder / MANIFEST, manifest)
        write_json(folder / "evaluation.json", manifest["evaluation"])
        retell(folder)

    return apply


def loss_of(model: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda e: e[model]["tasks"]["next_token_code"]["metrics"].update(loss=value)


@pytest.mark.parametrize("value", [99.0, None], ids=str)
@pytest.mark.parametrize("model", ["base", "pruned"])
def test_a_figure_that_was_not_measured_is_named(release: Make, model: str, value: Any) -> None:
    made = release(gates=PASSING)
    claim(loss_of(model, value))(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (1, "FAIL")
    (finding,) = found["findings"]
    said = f"says loss of {model} on next_token_code is {value and 99}, measured"
    assert said in finding["what"]


@pytest.mark.parametrize("value", [10**400, "0", True, [1]], ids=["huge", "text", "true", "list"])
def test_a_figure_of_nonsense_fails(release: Make, value: Any) -> None:
    made = release(gates=PASSING)
    edit(MANIFEST, lambda m: loss_of("pruned", value)(m["evaluation"]))(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"], found["evaluation"]) == (1, "FAIL", None)
    (finding,) = found["verification"]["findings"]
    assert "does not follow its schema" in finding["what"]


def test_results_of_other_items_are_counted(release: Make) -> None:
    """Whoever says that his figures are of other documents is believed in nothing."""
    made = release(gates=PASSING)

    def other(evaluation: dict[str, Any]) -> None:
        for task in evaluation["pruned"]["tasks"].values():
            task["documents"] = "0" * 64
        tasks = evaluation["pruned"]["tasks"]
        tasks["mmlu"] = tasks["next_token_code"]
        evaluation["base"]["tasks"]["mmlu"] = evaluation["base"]["tasks"]["next_token_code"]

    claim(other)(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"], found["findings"]) == (0, "PASS", [])
    assert any("of other items: mmlu" in note for note in found["notes"])
    assert "2 of 6 results of the release could be compared" in found["notes"]


CODE = "next_token_code"


def of_code(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda e: change(e["pruned"]["tasks"][CODE])


def of_gate(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda e: e["gates"][0].update(values)


def add_metric(task: dict[str, Any]) -> None:
    task["metrics"]["acc"] = 0.0
    task["higher_is_better"]["acc"] = True


def say_more_in_words(evaluation: dict[str, Any]) -> None:
    gate = evaluation["gates"][0]
    gate["sentence"] = gate["sentence"].replace("loss", "loss of all that is evil")


def shrink_in_words(evaluation: dict[str, Any]) -> None:
    """Another limit in the words than in the gate."""
    gate = evaluation["gates"][0]
    gate["sentence"] = gate["sentence"].replace("at most 900 %", "at most 1 %")


def add_gate(evaluation: dict[str, Any]) -> None:
    """The same gate on the forget text, and passed."""
    gate = evaluation["gates"][0]
    evaluation["gates"].append({**gate, "task": CODE, "sentence": f"{CODE} loss rose 95 %"})


def of_other_documents(evaluation: dict[str, Any]) -> None:
    """What nobody here measures: documents of other names."""
    for model in ("base", "pruned"):
        for task in evaluation[model]["tasks"].values():
            task["documents"] = "0" * 64


def claims_on_other_documents(**values: Any) -> Callable[[dict[str, Any]], object]:
    def change(evaluation: dict[str, Any]) -> None:
        of_other_documents(evaluation)
        evaluation["gates"][0].update(values)

    return change


INVENTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another side": (of_code(lambda t: t.update(side="retain")), "side of pruned"),
    "more documents": (of_code(lambda t: t.update(n=5000)), "n of pruned"),
    "more tokens": (of_code(lambda t: t.update(tokens=10**6)), "tokens of pruned"),
    "a smaller error": (of_code(lambda t: t["stderr"].update(loss=1e-6)), "the error of loss"),
    "no error": (of_code(lambda t: t["stderr"].update(loss=None)), "the error of loss"),
    "an error more": (of_code(lambda t: t["stderr"].update(acc=0.1)), "which was not measured"),
    "a metric more": (of_code(add_metric), "acc of pruned on next_token_code is 0, which was not"),
    "worse is better": (
        of_code(lambda t: t["higher_is_better"].update(loss=True)),
        "higher_is_better of pruned",
    ),
    "another estimator": (of_code(lambda t: t["estimator"].update(loss="mean")), "estimator of"),
    "a gate more": (add_gate, "its gates are not those of its recipe"),
    "a gate less": (lambda e: e["gates"].clear(), "its gates are not those of its recipe"),
    "an easier gate": (of_gate(drops_at_most=99.0), "its gates are not those of its recipe"),
    "another level": (lambda e: e.update(level_of_each_gate=0.4), "the level of its gates"),
    "another base": (of_gate(base=1.0), "base of its gate on task next_token_prose"),
    "another drop": (of_gate(drop=0.0), "drop of its gate on task next_token_prose"),
    "a closer bound": (of_gate(drop_high=0.0001), "says drop_high is 0.0001"),
    "no bound": (of_gate(drop_low=None), "says drop_low is None"),
    "another decision": (of_gate(decision="INCONCLUSIVE"), "says INCONCLUSIVE, measured PASS"),
    "another verdict": (lambda e: e.update(verdict="UNJUDGED"), "its verdict UNJUDGED is not that"),
    "more words": (say_more_in_words, "says in words"),
    "another limit in words": (shrink_in_words, "says in words"),
    "a decision that its interval does not give": (
        claims_on_other_documents(drop_low=49.0, drop_high=50.0),
        "the decision of its gate on task next_token_prose",
    ),
    "an interval without its drop": (
        claims_on_other_documents(drop_low=-2.0, drop_high=-1.0),
        "the interval of its gate on task next_token_prose",
    ),
    "words that no gate says": (
        claims_on_other_documents(sentence="nothing was lost"),
        "the sentence of its gate on task next_token_prose",
    ),
    "a reason for nothing": (
        claims_on_other_documents(sentence="next_token_prose loss fell; all is well"),
        "the sentence of its gate on task next_token_prose",
    ),
}


@pytest.mark.parametrize("name", INVENTIONS)
def test_an_invention_about_the_results_is_named(release: Make, name: str) -> None:
    """By a forger who makes evaluation, manifest and card say the same."""
    made = release(gates=PASSING)
    change, words = INVENTIONS[name]
    claim(change)(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (1, "FAIL")
    assert found["verification"]["findings"] == []
    assert any(words in finding["what"] for finding in found["findings"]), found["findings"]


def invent(manifest: dict[str, Any]) -> None:
    """A gate on the forget text that its interval passes, in the recipe and in the results."""
    fields = {"task": CODE, "metric": "loss", "drops_at_most": 0.5}
    manifest["recipe"]["gates"].append(fields)
    evaluation = manifest["evaluation"]
    base, pruned = (
        evaluation[model]["tasks"][CODE]["metrics"]["loss"] for model in ("base", "pruned")
    )
    gate, drop = Gate.model_validate(fields), (pruned - base) / base
    words = in_words(gate, [Drop(base, pruned, drop, False)], drop - 1e-4, drop + 1e-4)
    evaluation["gates"].append(
        {
            **gate.model_dump(exclude_none=True),
            **{"base": base, "pruned": pruned, "drop": drop},
            **{"drop_low": drop - 1e-4, "drop_high": drop + 1e-4},
            **{"decision": "PASS", "sentence": words},
        }
    )
    evaluation["level_of_each_gate"] /= 2


@pytest.mark.parametrize("power", [0.8, 0.81])
def test_a_gate_that_only_the_release_has_is_judged_anew(release: Make, power: float) -> None:
    """On the validator's measurements, at the level that the release says."""
    made = release(gates=PASSING)
    edit(MANIFEST, invent)(made.folder)
    edit(MANIFEST, lambda m: m["recipe"]["statistics"].update(power=power))(made.folder)
    write_json(made.folder / "evaluation.json", read_json(made.folder / MANIFEST)["evaluation"])
    untell(made.folder)
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (1, "FAIL")
    wrong = [each["what"] for each in found["findings"]]
    assert any(f"its gate on {CODE} loss says drop_low is" in what for what in wrong), wrong


def test_gates_of_an_earlier_format_are_read(release: Make) -> None:
    """Format 1 knew nothing but the base to compare with."""
    made = release(gates=PASSING)

    def forget(manifest: dict[str, Any]) -> None:
        for gates in (manifest["recipe"]["gates"], manifest["evaluation"]["gates"]):
            for gate in gates:
                gate.pop("against", None)

    edit(MANIFEST, forget)(made.folder)
    write_json(made.folder / "evaluation.json", read_json(made.folder / MANIFEST)["evaluation"])
    untell(made.folder)
    renew_manifest(made.folder)
    assert made.validate()[1]["findings"] == []


def test_a_document_that_falls_otherwise_elsewhere_is_no_invention() -> None:
    """Of a metric that is 0 on all documents there is no error; generation differs by machine."""
    metric = "pass@1"
    measured = TaskResult(
        task="mbpp",
        side="forget",
        metrics={metric: 0.0},
        stderr={metric: 0.0},
        higher_is_better={metric: True},
        estimator={metric: MEAN},
        n=12,
        documents="d",
        tokens=100,
        seconds=1.0,
    )
    evaluations = {"pruned": Evaluation({"mbpp": measured}, Path())}
    for hits, wrong in ((1, 0), (2, 1)):
        claim = asdict(measured) | {"metrics": {metric: hits / 12}, "stderr": {metric: 0.08}}
        findings, _ = check_evaluation({"pruned": {"tasks": {"mbpp": claim}}}, evaluations)
        assert (len(findings) > 0) is bool(wrong), findings


def test_what_rounding_may_do_is_no_invention(release: Make) -> None:
    """Figures of another machine: the same, up to a fraction of their errors."""
    made = release(gates=PASSING)

    def nudge(evaluation: dict[str, Any]) -> None:
        task = evaluation["pruned"]["tasks"]["next_token_prose"]
        gate = evaluation["gates"][0]
        before = gate["base"]
        task["metrics"]["loss"] += task["stderr"]["loss"] / 10
        task["stderr"]["loss"] *= 1.02
        moved = task["metrics"]["loss"] - gate["pruned"]
        gate["pruned"] = task["metrics"]["loss"]
        gate["drop"] = -(before - gate["pruned"]) / before
        for key in ("drop_low", "drop_high"):
            gate[key] += moved / before
        figures = [abs(gate["drop"]), gate["drop_low"], gate["drop_high"]]
        words = gate["sentence"].split()
        for index, figure in zip(
            [i for i, word in enumerate(words) if word[0].isdigit() or word[0] == "-"],
            figures,
            strict=False,
        ):
            words[index] = f"{100 * figure:.1f}"
        assert " ".join(words) != gate["sentence"]
        gate["sentence"] = " ".join(words)

    claim(nudge)(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"], found["findings"]) == (0, "PASS", [])


def test_results_that_nobody_here_measures_are_counted(release: Make, tmp_path: Path) -> None:
    """A control, prompts and gates of the release alone: named, and believed in nothing."""
    made = release(gates=PASSING)

    edit(MANIFEST, lambda m: m["evaluation"].update(control=m["evaluation"]["pruned"]))(made.folder)
    write_json(made.folder / "evaluation.json", read_json(made.folder / MANIFEST)["evaluation"])
    prompts = [{"prompt": "hack:", "before": "yes", "after": "I refuse."}]
    edit(MANIFEST, lambda m: m["prompts"][0].update(after="I refuse."))(made.folder)
    edit(MANIFEST, lambda m: m["prompts"].extend(prompts))(made.folder)
    untell(made.folder)
    renew_manifest(made.folder)
    junit = tmp_path / "junit.xml"
    code, found = made.validate("--set", "gates.0.drops_at_most=8", "--junit", junit)
    assert (code, found["verdict"], found["findings"]) == (0, "PASS", [])
    notes = "\n".join(found["notes"])
    assert "which are of other items: next_token_code" in notes
    assert "4 of 6 results of the release could be compared" in notes
    assert "the pruned model goes on otherwise here after 'the cat'" in notes
    assert "the base model goes on" not in notes
    assert "not compared: what the models write after 'hack:'" in notes
    assert "where they could be compared" in junit.read_text()
    assert "after 'hack:'" in junit.read_text()


def edit_text(name: str, old: str, new: str) -> Change:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return apply


TWO_VOICES: dict[str, tuple[Change, str]] = {
    "card": (lambda folder: (folder / "README.md").write_text("HumanEval 0.0 %"), "README.md"),
    "figures": (edit("evaluation.json", lambda e: e["pruned"].clear()), "evaluation.json"),
    "no figures": (lambda folder: (folder / "evaluation.json").write_text("{"), "evaluation.json"),
    "deep figures": (
        lambda folder: (folder / "evaluation.json").write_text("[" * 200_000),
        "evaluation.json",
    ),
    "verdict": (edit(MANIFEST, lambda m: m.update(verdict="UNJUDGED")), MANIFEST),
    "report": (
        edit_text("report.html", "<strong>PASS</strong>", "<strong>BEST</strong>"),
        "report.html",
    ),
    "figure": (edit_text("figures/gates.svg", "PASS", "BEST"), "figures/gates.svg"),
    "another figure": (
        lambda folder: shutil.copy(
            folder / "figures/gates.svg", folder / "figures/scores-experts.svg"
        ),
        "figures/scores-experts.svg",
    ),
}


@pytest.mark.parametrize("name", TWO_VOICES)
def test_a_release_that_speaks_in_two_voices_fails(release: Make, name: str) -> None:
    made = release(gates=PASSING)
    change, where = TWO_VOICES[name]
    change(made.folder)
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"]) == (1, "FAIL")
    assert where in [finding["where"] for finding in found["findings"]]


def test_what_another_version_made_is_said_not_to_be_compared(release: Make) -> None:
    made = release(gates=PASSING)
    (made.folder / "README.md").write_text("HumanEval 0.0 %")
    edit(MANIFEST, lambda m: m["environment"].update({"unlearn-pipeline": "0"}))(made.folder)
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["findings"]) == (0, [])
    for what in ("card", "report"):
        words = f"not compared: the {what}, which version 0"
        assert any(words in note for note in found["notes"])


def test_a_release_without_figures_can_be_judged(release: Make) -> None:
    made = release(gates=PASSING)
    untell(made.folder)
    (made.folder / "evaluation.json").unlink()
    shutil.rmtree(made.folder / "samples")
    renew_manifest(made.folder)
    code, found = made.validate()
    assert (code, found["verdict"], found["findings"]) == (0, "PASS", [])


@pytest.mark.parametrize("verb", ["verify", "validate"])
def test_a_name_in_a_release_finds_nothing_in_the_working_folder(
    release: Make, tmp_path: Path, verb: str
) -> None:
    """`git clone` of an uploader's repository brings `recipes/` and the code of its tasks."""
    made = release(gates=PASSING)
    shutil.copytree(made.recipe.parent, tmp_path / "recipes")
    assert made.unlearn("check", "tiny").code == 0  # what a person names by hand is found there
    result = made.unlearn(verb, made.folder, "--quiet")
    assert result.code == 2
    assert "you have no recipe 'tiny'" in result.err and "--recipe" in result.err


@pytest.mark.parametrize("verb", ["verify", "validate"])
def test_a_recipe_in_the_working_folder_does_not_stand_for_a_shipped_one(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    made = release(gates=PASSING)
    monkeypatch.setattr("pipeline.recipe_file.shipped_recipes_folder", lambda: made.recipe.parent)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.yaml").write_text("pwned: true\n")
    result = made.unlearn(verb, made.folder, "--quiet")
    assert result.code == 0, result


def test_a_release_cannot_choose_a_recipe_without_gates(
    release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=[])
    monkeypatch.setattr("pipeline.recipe_file.shipped_recipes_folder", lambda: made.recipe.parent)
    edit(MANIFEST, lambda m: m.update(name=made.recipe.stem))(made.folder)
    result = made.check("validate")
    assert result.code == 2
    assert "which the release names, has no gates" in result.err
    assert "--recipe" in result.err


def remove_maps(folder: Path, factor: float = 1.01) -> None:
    """What a forger does who wants other output projections: nothing is left to check them by."""
    shutil.rmtree((folder / MAPS).parent)
    edit_tensors(lambda tensors: tensors[DOWN].mul_(factor))(folder)
    retell(folder)


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        (PASSING, (5, "UNVERIFIED COMPENSATION")),
        ([], (5, "UNVERIFIED COMPENSATION")),
        (FAILING, (1, "FAIL")),
    ],
)
def test_projections_that_nothing_checks_do_not_pass(
    release: Make, tmp_path: Path, gates: list[Any], expected: tuple[int, str]
) -> None:
    made = release(gates=gates)
    remove_maps(made.folder)
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    code, found = made.validate("--junit", junit, "--markdown", summary)
    assert (code, found["verdict"]) == expected
    assert found["accepted"] is False and "3 output projections could be" in found["unchecked"]
    cases = ElementTree.parse(junit).getroot().findall("*/testcase[@classname='release']")
    assert [len(case.findall("failure")) for case in cases] == [0, 1]
    assert "**Not checked:** 3 output projections could be anything" in summary.read_text()


def test_recomputing_settles_what_no_map_does(release: Make) -> None:
    made = release(gates=PASSING)
    honest = shutil.copytree(made.folder, made.folder.with_name("honest"))
    remove_maps(made.folder, 2.0)
    code, found = made.validate("--recompute")
    assert (code, found["verdict"]) == (1, "FAIL")
    assert DOWN in [finding["where"] for finding in found["verification"]["findings"]]
    made.folder = honest
    shutil.rmtree((honest / MAPS).parent)
    renew_manifest(honest)
    code, found = made.validate("--recompute")
    assert (code, found["verdict"], found["unchecked"]) == (0, "PASS", "")


def test_a_recipe_that_publishes_no_maps_accepts_none_and_says_so(
    release: Make, tmp_path: Path
) -> None:
    made = release("llama", "compensate.publish_maps=false", gates=PASSING)
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    options = ["--junit", junit, "--markdown", summary]
    own = ["--set", "compensate.publish_maps=false"]
    code, found = made.validate(*own, *options)
    assert (code, found["verdict"], found["accepted"]) == (0, "PASS", True)
    assert found["verification"]["verdict"] == "UNVERIFIED COMPENSATION"
    assert "ACCEPTED UNCHECKED" in junit.read_text()
    assert "**Accepted unchecked:** 3 output projections" in summary.read_text()
    result = made.check("validate", "--recipe", made.recipe, *own)
    assert "ACCEPTED UNCHECKED" in result.out and "checked by nothing" in result.out
    for other in ([], [*own, "--set", "compensate.enabled=false"]):
        code, found = made.validate(*other)
        assert (code, found["verdict"], found["accepted"]) == (5, "UNVERIFIED COMPENSATION", False)


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


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--store-base-results"])
@pytest.mark.parametrize("place", ["/proc/x/y.xml", "file/y.xml", "folder"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str
) -> None:
    made = release(gates=PASSING)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("pipeline.verify.open_release", pytest.fail)
    result = made.check("validate", "--recipe", made.recipe, option, place)
    assert (result.code, result.out) == (2, "")
    assert option in result.err and place in result.err


def test_a_report_that_is_not_to_be_written_is_not_touched(release: Make, tmp_path: Path) -> None:
    made = release(gates=PASSING)
    edit_tensors(lambda tensors: tensors[UP].mul_(2))(made.folder)
    stored = tmp_path / "new/base.json"
    code, _ = made.validate("--store-base-results", stored)  # nothing is measured
    assert code == 1 and not stored.exists()


def test_the_verdict_is_there_although_a_report_fails(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.release.reports.write_junit", fail)
    result = made.check("validate", "--recipe", made.recipe, "--junit", tmp_path / "x.xml")
    assert result.code == 3
    assert "Validation: PASS" in result.out
    assert "could not be written (No space left on device)" in result.err
    assert "something broke" not in result.err


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
    assert "a?\\|\\`\\<b>&?.py" in summary.read_text()
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


def test_a_recipe_cannot_break_the_summary(release: Make, tmp_path: Path) -> None:
    made = release(gates=PASSING)
    untell(made.folder)  # half a surrogate cannot be written into a page
    renew_manifest(made.folder)
    evil = {f"<img src=x>\x1b[31m\ud800![a](b){'y' * 5000}": 1} | {f"k{n}": n for n in range(500)}
    text = (made.folder / MANIFEST).read_text()
    (made.folder / MANIFEST).write_text(
        text.replace('"recipe": {', '"recipe": ' + json.dumps(evil)[:-1] + ", ", 1)
    )
    summary = tmp_path / "summary.md"
    result = made.check("validate", "--recipe", made.recipe, "--markdown", summary)
    assert result.code == 0
    written = summary.read_text()
    assert "\\<img" in written and "[a]\\(b" in written
    assert "\x1b" not in written + result.out
    assert "401 more differences" in written
    assert len(written) < 30_000


def test_stored_results_of_another_model_are_not_used(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of the pruned model in the base's file would decide its gates."""
    made = release(gates=PASSING)
    stored = tmp_path / "base.json"
    made.validate("--store-base-results", stored)
    entries = read_json(stored)
    entries[0]["key"]["weights_sha256"] = read_json(made.folder / MANIFEST)["pruned"][
        "weights_sha256"
    ]
    write_json(stored, entries)
    options = ["--base-results", stored, "--base-results-sha256", digest_of_file(stored)]
    result = made.check("validate", "--recipe", made.recipe, *options)
    assert result.code == 2
    assert "of other weights than the base's; nothing of it was used" in result.err


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
