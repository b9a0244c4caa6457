from __future__ import annotations

import atexit
import itertools
import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.cache import plain_json
from pipeline.errors import BrokenError, InputError
from pipeline.evaluation.gates import drop_of, judge
from pipeline.evaluation.results import MEAN, RATIO, Evaluation, TaskResult
from pipeline.recipe.judging import Gate, Statistics

values = st.floats(0.01, 100)
MODELS = itertools.count(1)
NOISE = 1e-7  # documents that all differ alike would say nothing of those that were not asked
ROOM = tempfile.mkdtemp()
atexit.register(shutil.rmtree, ROOM)


def measured(
    value: float,
    metric: str = "top1",
    n: int = 20,
    documents: str = "d",
    spread: float = 0.0,
    task: str = "code",
) -> Evaluation:
    """An evaluation with n documents around a value; without spread, its interval is a point."""
    folder = Path(tempfile.mkdtemp(dir=ROOM))
    model = next(MODELS)
    with (folder / f"{task}.jsonl").open("w") as lines:
        for number in range(n):
            noise = NOISE * value * math.cos(number * model)
            figure = [2 * value + spread * (-1) ** number + noise, 2]
            row = {"doc_id": number, "document": f"{documents}{number}", metric: figure}
            lines.write(json.dumps(plain_json(row)) + "\n")
    higher = {metric: metric != "loss"}
    result = TaskResult(
        task, "forget", {metric: value}, {metric: None}, higher, {metric: RATIO}, n, documents,
        1, 1.0,
    )  # fmt: skip
    return Evaluation({task: result}, folder)


def together(one: Evaluation, other: Evaluation) -> Evaluation:
    """Two tasks of one model."""
    for name in other.tasks:
        shutil.copy(other.samples_folder / f"{name}.jsonl", one.samples_folder)
    return Evaluation({**one.tasks, **other.tasks}, one.samples_folder)


def solved(shares: list[float], value: float | None = None) -> Evaluation:
    """An evaluation whose metric is the mean of documents between 0 and 1."""
    folder = Path(tempfile.mkdtemp(dir=ROOM))
    rows = [
        json.dumps({"doc_id": number, "document": str(number), "top1": share}) + "\n"
        for number, share in enumerate(shares)
    ]
    (folder / "code.jsonl").write_text("".join(rows))
    metrics = {"top1": sum(shares) / len(shares) if value is None else value}
    result = TaskResult(
        "code", "forget", metrics, {"top1": None}, {"top1": True}, {"top1": MEAN}, len(shares),
        "d", 1, 1.0,
    )  # fmt: skip
    return Evaluation({"code": result}, folder)


def gate(metric: str = "top1", **fields: Any) -> Gate:
    return Gate.model_validate({"task": "code", "metric": metric, **fields})


@pytest.mark.parametrize(
    ("fields", "base", "pruned", "passed", "sentence"),
    [
        ({"drops_at_least": 0.5}, 0.5, 0.1895, True,
         "code top1 dropped 62.1 %, from 62.1 % to 62.1 % (at least 50 %)"),
        ({"drops_at_least": 0.5}, 0.5, 0.3, False,
         "code top1 dropped 40 %, from 40 % to 40 % (at least 50 %)"),
        ({"drops_at_most": 0.08}, 0.5, 0.55, True,
         "code top1 rose 10 %, from -10 % to -10 % (at most 8 %)"),
        (
            {"drops_at_most": 0.05, "scale": "absolute"},
            0.7,
            0.66,
            True,
            "code top1 dropped 0.04, from 0.04 to 0.04 (at most 0.05)",
        ),
        (
            {"drops_at_least": 0.5, "scale": "above_chance", "chance": 0.2},
            0.8,
            0.44,
            True,
            "code top1 lost 60 % of its distance to chance, from 60 % to 60 % (at least 50 %)",
        ),
        ({"drops_at_least": 0.5, "metric": "loss"}, 2.0, 5.0, True,
         "code loss rose 150 %, from 150 % to 150 % (at least 50 %)"),
        ({"drops_at_most": 0.1, "metric": "loss"}, 2.0, 1.0, True,
         "code loss fell 50 %, from -50 % to -50 % (at most 10 %)"),
    ],
)  # fmt: skip
def test_gates(
    fields: dict[str, Any], base: float, pruned: float, passed: bool, sentence: str
) -> None:
    one = gate(**fields)
    verdict = judge([one], measured(base, one.metric), measured(pruned, one.metric))
    (result,) = verdict.gates
    assert (result.decision == "PASS", result.sentence) == (passed, sentence)
    assert verdict.decision == result.decision == ("PASS" if passed else "FAIL")
    json.dumps(verdict.as_dict())


def test_one_failed_gate_fails_and_none_are_unjudged() -> None:
    gates = [gate(drops_at_least=0.5), gate(drops_at_most=0.5)]
    assert judge(gates, measured(1.0), measured(0.2)).decision == "FAIL"
    assert judge([], measured(1.0), measured(0.2)).decision == "UNJUDGED"


@pytest.mark.parametrize("bound", ["drops_at_least", "drops_at_most"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_what_is_not_a_number_never_passes(bound: str, bad: float, scale: str, metric: str) -> None:
    """Of the pruned model it is a failure; of the base, it says nothing of the pruned model."""
    one = gate(metric, scale=scale, **{bound: 0.1})
    for base, pruned in ((1.0, bad), (bad, bad)):
        verdict = judge([one], measured(base, metric), measured(pruned, metric))
        assert verdict.decision == "FAIL"
        assert verdict.gates[0].sentence.endswith("; the pruned model is broken")
    verdict = judge([one], measured(bad, metric), measured(1.0, metric))
    assert verdict.decision == "INCONCLUSIVE"
    assert verdict.gates[0].sentence.endswith("; a figure is not finite")


@pytest.mark.parametrize("fields", [{"drops_at_least": 0.0}, {"drops_at_most": 0.1}])
@pytest.mark.parametrize("pruned", [0.0, 0.4, 50.0])
def test_of_a_base_that_has_nothing_to_lose_nothing_is_shown(
    fields: dict[str, float], pruned: float
) -> None:
    (result,) = judge([gate(**fields)], measured(0.0), measured(pruned)).gates
    assert result.decision == "INCONCLUSIVE"
    assert f"code top1 went from 0 to {pruned:g} " in result.sentence
    assert "the base is 0" in result.sentence
    assert (result.low, result.high) == (None, None)
    above = gate(scale="above_chance", chance=0.5, **fields)
    for base in (0.4, 0.5):
        (result,) = judge([above], measured(base), measured(pruned)).gates
        assert result.decision == "INCONCLUSIVE"
        assert "the base is not better than chance (0.5)" in result.sentence
    json.dumps(judge([above], measured(0.4), measured(pruned)).as_dict())


def test_a_base_that_is_hardly_better_than_chance_shows_nothing() -> None:
    """23 of 30 is better than 0.75, but not shown to be."""
    above = gate(scale="above_chance", chance=0.75, drops_at_most=0.1)
    for right in (20, 23, 30):
        pair = solved([1.0] * 23 + [0.0] * 7), solved([1.0] * right + [0.0] * (30 - right))
        (result,) = judge([above], *pair).gates
        assert result.decision == "INCONCLUSIVE"
        assert result.sentence.endswith("; the base is not shown to be better than chance (0.75)")
        assert (result.low, result.high) == (None, None)


def test_a_few_documents_that_agree_decide_nothing() -> None:
    """Pass@1 of ten samples, and one problem that both models solve in three of them."""
    same = solved([0.0] * 19 + [0.3])
    for margin in (0.001, 0.05, 0.13):
        one = gate(scale="absolute", drops_at_most=margin)
        (result,) = judge([one], same, same).gates
        assert result.decision == "INCONCLUSIVE"
        assert "20 documents cannot decide it, about " in result.sentence
    assert judge([gate(scale="absolute", drops_at_most=0.15)], same, same).decision == "PASS"
    many = solved([0.0] * 60 + [0.3])
    assert judge([gate(scale="absolute", drops_at_most=0.05)], many, many).decision == "PASS"


def test_documents_without_bounds_must_differ() -> None:
    same = measured(2.0, "loss")
    (result,) = judge([gate("loss", drops_at_most=0.1)], same, same).gates
    assert result.decision == "INCONCLUSIVE"
    assert result.sentence.endswith("; 0 of 20 documents differ from the rest, 10 are needed")
    (result,) = judge(
        [gate("loss", drops_at_most=0.1)], same, same, Statistics(min_documents=5)
    ).gates
    assert result.sentence.endswith("; 0 of 20 documents differ from the rest, 3 are needed")


def test_what_cannot_be_told_is_inconclusive_and_says_how_much_would() -> None:
    for bound in ("drops_at_least", "drops_at_most"):
        one = gate(**{bound: 0.1})
        verdict = judge([one], measured(0.5), measured(0.44, spread=0.3))
        assert verdict.decision == "INCONCLUSIVE"
        (result,) = verdict.gates
        assert result.low is not None and result.high is not None
        assert result.low < 0.1 < result.high
        assert "20 documents cannot decide it, about " in result.sentence
    needed = int(result.sentence.split("about ")[1].split(" ")[0].replace(",", ""))
    assert judge([one], measured(0.5, n=20), measured(0.38, n=20, spread=0.3)).decision != "PASS"
    many = measured(0.5, n=20 * needed), measured(0.44, n=20 * needed, spread=0.3)
    assert judge([one], *many).decision == "FAIL"


def test_too_few_documents_decide_nothing() -> None:
    few = measured(0.5, n=19), measured(0.1, n=19)
    (result,) = judge([gate(drops_at_least=0.5)], *few).gates
    assert result.decision == "INCONCLUSIVE"
    assert result.sentence.endswith("; 19 documents, 20 are needed")
    fewer = Statistics(min_documents=19)
    assert judge([gate(drops_at_least=0.5)], *few, fewer).decision == "PASS"


def test_a_metric_without_documents_decides_nothing() -> None:
    one = measured(0.5)
    other = replace(one.tasks["code"], estimator={"top1": None})
    verdict = judge([gate(drops_at_most=0.5)], replace(one, tasks={"code": other}), one)
    assert (verdict.decision, "no test" in verdict.gates[0].sentence) == ("INCONCLUSIVE", True)


def test_the_level_is_shared_among_the_gates() -> None:
    one, pair = gate(drops_at_most=0.1), (measured(0.5), measured(0.48, spread=0.1))
    alone, of_five = judge([one], *pair), judge([one] * 5, *pair)
    assert (alone.level, of_five.level) == (0.05, pytest.approx(0.01))
    assert alone.gates[0].high is not None and of_five.gates[0].high is not None
    assert of_five.gates[0].high > alone.gates[0].high
    strict = judge([one], *pair, Statistics(level=0.01)).gates[0]
    assert strict.high == pytest.approx(of_five.gates[0].high)


def test_a_failed_gate_outweighs_an_inconclusive_one() -> None:
    pair = measured(0.5), measured(0.44, spread=0.3)
    unclear, failed, passed = (gate(drops_at_most=bound) for bound in (0.1, -9.0, 9.0))
    assert judge([unclear, passed], *pair).decision == "INCONCLUSIVE"
    assert judge([unclear, failed, passed], *pair).decision == "FAIL"


def test_gates_on_what_was_not_measured_list_what_was() -> None:
    with pytest.raises(InputError) as caught:
        judge([gate("acc", drops_at_most=0.1)], measured(1.0), measured(1.0))
    assert "top1" in caught.value.remedy
    other = Gate.model_validate({"task": "other", "metric": "top1", "drops_at_most": 0.1})
    with pytest.raises(InputError) as caught:
        judge([other], measured(1.0), measured(1.0))
    assert "code" in caught.value.remedy


def test_different_documents_are_not_compared() -> None:
    for pruned in (measured(1.0, n=19), measured(1.0, documents="e")):
        with pytest.raises(BrokenError, match="different documents"):
            judge([gate(drops_at_most=0.1)], measured(1.0), pruned)


@given(values, values, st.sampled_from(["absolute", "relative"]), st.floats(-2, 2))
def test_at_least_and_at_most_are_complements_off_the_bound(
    base: float, pruned: float, scale: str, bound: float
) -> None:
    drop = drop_of(gate(scale=scale, drops_at_most=bound), base, pruned, higher_is_better=True)
    assume(abs(drop - bound) > 100 * NOISE * (base + pruned) / min(base, 1))
    passed = [
        judge([gate(scale=scale, **{name: bound})], measured(base), measured(pruned)).decision
        for name in ("drops_at_least", "drops_at_most")
    ]
    assert sorted(passed) == ["FAIL", "PASS"]


@given(values, values)
def test_a_worse_model_has_a_positive_drop(base: float, pruned: float) -> None:
    for scale in ("absolute", "relative"):
        one = gate(scale=scale, drops_at_most=0.0)
        better_when_higher = drop_of(one, base, pruned, higher_is_better=True)
        assert better_when_higher == -drop_of(one, base, pruned, higher_is_better=False)
        assert (better_when_higher > 0) == (pruned < base)


@given(values, values, values)
def test_a_deeper_drop_never_fails_a_forget_gate(base: float, one: float, two: float) -> None:
    for scale in ("absolute", "relative"):
        asked = gate(scale=scale, drops_at_least=0.3)
        higher, lower = (
            judge([asked], measured(base), measured(x)) for x in sorted((one, two))[::-1]
        )
        decisions = ["FAIL", "INCONCLUSIVE", "PASS"]
        assert decisions.index(higher.decision) <= decisions.index(lower.decision)


SELECTIVITY = {"more_than": "prose", "drops_at_least": 0.3}


@pytest.mark.parametrize(
    ("code", "prose", "decision", "words"),
    [
        (
            0.2,
            0.45,
            "PASS",
            "dropped 60 %, 50 % more than prose, from 50 % to 50 % (at least 30 %)",
        ),
        (0.2, 0.2, "FAIL", "dropped 60 %, 0 % more than prose"),  # plain damage
        (0.4, 0.3, "FAIL", "dropped 20 %, 20 % less than prose"),
    ],
)
def test_plain_damage_is_not_selective(
    code: float, prose: float, decision: str, words: str
) -> None:
    base, pruned = (
        together(measured(one), measured(other, task="prose"))
        for one, other in ((0.5, 0.5), (code, prose))
    )
    (result,) = judge([gate(**SELECTIVITY)], base, pruned).gates
    assert (result.decision, words in result.sentence) == (decision, True), result.sentence


def test_selectivity_is_as_unsure_as_both_tasks() -> None:
    base = together(measured(0.5), measured(0.5, task="prose"))
    for spreads in ((0.3, 0.0), (0.0, 0.3), (0.3, 0.3)):
        of_code, of_prose = spreads
        pruned = together(
            measured(0.3, spread=of_code), measured(0.45, spread=of_prose, task="prose")
        )
        (result,) = judge([gate(**SELECTIVITY)], base, pruned).gates
        assert result.decision == "INCONCLUSIVE"
        assert "; 40 documents cannot decide it" in result.sentence
        few = together(measured(0.3), measured(0.45, n=19, task="prose"))
        few_base = together(measured(0.5), measured(0.5, n=19, task="prose"))
        (result,) = judge([gate(**SELECTIVITY)], few_base, few).gates
        assert result.sentence.endswith("; 19 documents, 20 are needed")


def test_a_gate_may_compare_with_the_control() -> None:
    one = gate(drops_at_least=0.5, against="control")
    base, pruned = measured(0.5), measured(0.2)
    (result,) = judge([one], base, pruned, control=measured(0.45)).gates
    assert (result.decision, result.base) == ("PASS", 0.45)
    assert "code top1 dropped 55.6 % against the control" in result.sentence
    # A control that lost as much shows that any damage would have done.
    assert judge([one], base, pruned, control=measured(0.25)).decision == "FAIL"
    with pytest.raises(ValueError, match="control"):
        judge([one], base, pruned)


def test_a_broken_other_task_fails_a_gate_on_selectivity() -> None:
    base = together(measured(0.5), measured(0.5, task="prose"))
    pruned = together(measured(0.1), measured(math.nan, task="prose"))
    assert judge([gate(**SELECTIVITY)], base, pruned).decision == "FAIL"
