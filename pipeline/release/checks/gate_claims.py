"""What a release says of its gates: whether it follows from its figures, and from ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.evaluation.gates import (
    BROKEN,
    Decision,
    Drop,
    GateResult,
    Verdict,
    decide,
    difference_of,
    drop_of,
    in_words,
    judge_gate,
    worst,
)
from pipeline.evaluation.results import Evaluation
from pipeline.recipe.judging import Gate, Statistics
from pipeline.release.checks.findings import Finding

EVALUATION = "evaluation.json"
FLOOR = 0.002  # figures that rounding may move, as a share of the value
ARITHMETIC = 1e-9
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
NEEDED = re.compile(r", about [\d,]+ could$")
# Why a gate is inconclusive, in the words of `gates` and `paired`.
AMOUNT = r"-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?"
REASONS = re.compile(
    rf"{AMOUNT} documents cannot decide it(, about {AMOUNT} could)?"
    rf"|{AMOUNT} documents, {AMOUNT} are needed"
    rf"|{AMOUNT} of {AMOUNT} documents differ from the rest, {AMOUNT} are needed"
    rf"|the base is (0|not better than chance \({AMOUNT}\)), and nothing is a share of that"
    rf"|the base is not shown to be (anything but 0|better than chance \({AMOUNT}\))"
    r"|a figure is not finite"
    r"|no figure per document, so no test"
)
DIRECTION = re.compile(r"\b(dropped|rose|fell|lost|gained|more|less)\b")


def check_gates(
    claimed: Any,
    recipe: Any,
    measured: Mapping[str, Evaluation],
    verdict: Verdict,
    *,
    same_words: bool,
) -> tuple[list[Finding], list[str]]:
    """Compare claimed gates with the claimed recipe and figures, and with what was measured here.

    A claimed gate is judged anew, by its own statistics, on the measurements of the same documents.

    Args:
        claimed: what the release says of its evaluation; it follows the manifest's schema.
        recipe: the recipe that the release says it was made by.
        measured: by model, the evaluation that was just run.
        verdict: what the validator's gates say of it.
        same_words: the release is said to be of this version, which knows how gates are worded.

    Returns:
        What does not follow, and what could not be compared.
    """
    notes = [] if same_words else ["not compared: the words of its gates, of another version"]
    if claimed["verdict"] != verdict.decision:
        notes.append(
            f"the release says {claimed['verdict']} of itself; your gates and measurements say "
            f"{verdict.decision}"
        )
    contradictions = list(_contradictions(claimed, recipe, same_words))
    findings = [Finding(EVALUATION, what) for what in contradictions]
    if (statistics := _statistics(recipe)) is None:
        return findings, notes
    for claim in claimed["gates"]:
        gate = _gate(claim)
        if gate is None or not _same_items(gate, claimed, measured):
            notes.append(
                "a gate of the release was not compared, since its figures are of other items: "
                f"{_name(_definition(claim))}"
            )
            continue
        models = measured[gate.against], measured["pruned"]
        result = judge_gate(gate, *models, statistics, claimed["level_of_each_gate"])
        for what, certain in _differences(claim, result, same_words):
            line = f"its gate on {gate.task} {gate.metric} {what}"
            if certain:
                findings.append(Finding(EVALUATION, line))
            else:
                notes.append(f"{line}; its limit lies between both figures")
    return findings, notes


def _contradictions(claimed: dict[str, Any], recipe: Any, same_words: bool) -> Iterator[str]:
    """Yield what the release says of its gates and its own recipe and figures do not give."""
    gates, statistics = claimed["gates"], _statistics(recipe)
    try:
        stated = [Gate.model_validate(gate) for gate in recipe["gates"]]
    except (KeyError, TypeError, ValidationError):
        statistics = None
    if statistics is None:
        yield "the gates of its recipe cannot be read"
        return
    if [_gate(claim) for claim in gates] != stated:
        yield "its gates are not those of its recipe"
        return
    level = statistics.level / max(len(gates), 1)
    if not math.isclose(claimed["level_of_each_gate"], level):
        yield f"the level of its gates is not what its recipe gives: {level:.4g}"
    if claimed["verdict"] != worst(gate["decision"] for gate in gates):
        yield f"its verdict {claimed['verdict']} is not that of its gates"
    for claim, gate in zip(gates, stated, strict=True):
        drops = _from_figures(gate, claimed)
        given = {
            "base": drops[0].before,
            "pruned": drops[0].after,
            "drop": difference_of(drops),
        }
        wrong = [key for key, value in given.items() if not _close(claim[key], value, ARITHMETIC)]
        for key in wrong or _does_not_follow(claim, gate, drops, same_words):
            name = _name(_definition(claim))
            yield f"{key} of its gate on {name} is not what its figures give"


def _does_not_follow(
    claim: dict[str, Any], gate: Gate, drops: Sequence[Drop], same_words: bool
) -> Iterator[str]:
    """Yield what does not follow from a claimed gate's own interval and figures."""
    low, high = claim["drop_low"], claim["drop_high"]
    broken = not all(math.isfinite(each.after) for each in drops)
    known = low is not None and high is not None
    if (low is None) != (high is None) or (known and not low <= _number(claim["drop"]) <= high):
        yield "the interval"
    decision: Decision = "INCONCLUSIVE"
    if broken or known:
        decision = "FAIL" if broken else decide(gate, low, high)
    if claim["decision"] != decision:
        yield "the decision"
    words, _, why = claim["sentence"].partition("; ")
    right = words == in_words(gate, drops, low, high) and _may_say(why, decision, broken=broken)
    if same_words and not right:
        yield "the sentence"


def _may_say(why: str, decision: Decision, *, broken: bool) -> bool:
    """Whether a gate's sentence may give such a reason for its decision."""
    if decision == "INCONCLUSIVE":
        return REASONS.fullmatch(why) is not None
    return why == (BROKEN if broken else "")


def _statistics(recipe: Any) -> Statistics | None:
    """The statistics of a recipe that somebody else wrote; None if they cannot be read."""
    try:
        return Statistics.model_validate(recipe["statistics"])
    except (KeyError, TypeError, ValidationError):
        return None


def _from_figures(gate: Gate, claimed: dict[str, Any]) -> list[Drop]:
    """Metric of base and pruned model on each of a gate's tasks, by the release's own figures."""
    drops = []
    for task in gate.tasks:
        sides = [_task(claimed, model, task) for model in (gate.against, "pruned")]
        before, after = (_number(side.get("metrics", {}).get(gate.metric)) for side in sides)
        higher = sides[0].get("higher_is_better", {}).get(gate.metric, True)
        drop = drop_of(gate, before, after, higher_is_better=higher)
        drops.append(Drop(before, after, drop, higher))
    return drops


def _differences(
    gate: dict[str, Any], result: GateResult, same_words: bool
) -> Iterator[tuple[str, bool]]:
    """Yield in what a claimed gate differs from the measured one; what rounding may do is not sure.

    Its figures were compared with the measured ones already, so the drop may differ by as much as
    they may; the bounds of the interval may differ by that and a quarter of the interval.
    """
    moved = abs(_number(gate["drop"]) - result.drop)
    width = 0.0 if result.low is None or result.high is None else result.high - result.low
    allowed = (width / 4 if math.isfinite(width) else 0.0) + (moved if math.isfinite(moved) else 0)
    bounds = {"drop_low": result.low, "drop_high": result.high}
    for key, bound in bounds.items():
        said = gate[key]
        if (said is None) != (bound is None or not math.isfinite(bound)):
            yield f"says {key} is {said}, measured {bound}", True
        elif said is not None and not _close(said, _number(bound), allowed):
            yield f"says {key} is {said:.4g}, measured {bound:.4g}", True
    if gate["decision"] != result.decision:
        between = any(
            min(gate[key], bound) <= result.bound <= max(gate[key], bound)
            for key, bound in bounds.items()
            if gate[key] is not None and bound is not None
        )
        yield f"says {gate['decision']}, measured {result.decision}", not between
    if same_words and not _same_sentence(gate, result, allowed):
        yield f"says in words: {gate['sentence']!r}, measured: {result.sentence!r}", True


def _same_sentence(gate: dict[str, Any], result: GateResult, allowed: float) -> bool:
    """Whether two sentences say the same, with figures that may differ by `allowed`."""
    if gate["sentence"] == result.sentence:
        return True
    parts = []
    for sentence in (str(gate["sentence"]), result.sentence):
        head, _, tail = sentence.partition(";")
        figures, _, limit = head.rpartition("(")
        parts.append((figures, limit, NEEDED.sub("", tail)))
    (said, *said_rest), (measured, *measured_rest) = parts
    if said_rest != measured_rest and gate["decision"] == result.decision:
        return False
    signs = [_number(gate["base"]) - _number(gate["pruned"]), result.base - result.pruned]
    turned = signs[0] * signs[1] <= 0 or _number(gate["drop"]) * result.drop <= 0
    words = [NUMBER.sub("#", text) for text in (said, measured)]
    if turned:  # a drop about zero: on the other side of it the verb is another
        words = [DIRECTION.sub("#", text) for text in words]
    numbers = [
        [float(number.replace(",", "")) for number in NUMBER.findall(text)]
        for text in (said, measured)
    ]
    if words[0] != words[1] or len(numbers[0]) != len(numbers[1]):
        return False
    percent = result.gate.scale != "absolute"
    shown = 0.1 if percent else 0.0  # the last digit that is shown
    scale = 100 if percent else 1
    return all(
        _close(one, other, allowed * scale + shown) for one, other in zip(*numbers, strict=True)
    )


def _same_items(gate: Gate, claimed: Any, measured: Mapping[str, Evaluation]) -> bool:
    return all(
        model in measured
        and task in measured[model].tasks
        and gate.metric in measured[model].tasks[task].metrics
        and _task(claimed, model, task).get("documents") == measured[model].tasks[task].documents
        for model in (gate.against, "pruned")
        for task in gate.tasks
    )


def _task(claimed: Any, model: str, task: str) -> dict[str, Any]:
    figures = ((claimed.get(model) or {}).get("tasks") or {}).get(task)
    return figures if isinstance(figures, dict) else {}


def _gate(claim: Mapping[str, Any]) -> Gate | None:
    """The gate of a claim, whatever format it was written in; None if it is none."""
    try:
        return Gate.model_validate(_definition(claim))
    except ValidationError:
        return None


def _definition(gate: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a gate this one: the recipe's fields, without those that are not set."""
    return {name: gate[name] for name in Gate.model_fields if gate.get(name) is not None}


def _name(definition: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in definition.items())


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _close(said: Any, value: float, allowed: float) -> bool:
    """Whether two numbers are equal up to `allowed`, or rounding; null stands for NaN."""
    number = _number(said)
    if not (math.isfinite(number) and math.isfinite(value)):
        return not math.isfinite(number) and not math.isfinite(value)
    return abs(number - value) <= max(allowed, FLOOR * abs(value) if allowed > ARITHMETIC else 0)
