"""Gates: conditions on two evaluations that decide the verdict, as paired tests."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation.paired import Interval, interval_of_drop
from pipeline.evaluation.results import Evaluation, TaskResult, paired_documents
from pipeline.recipe import Gate, Statistics

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNJUDGED"]

ROUNDING = 1e-9  # 0.80 - 0.75 is 0.05 to a reader, and a hair more to the processor


@dataclass(frozen=True)
class GateResult:
    """One gate with what it saw; `drop`, its bounds and `bound` are on the gate's scale.

    Attributes:
        gate: the gate.
        base: the metric of the base.
        pruned: the metric of the pruned model.
        drop: how much worse the metric became.
        low: the drop is at least this, at the gate's level; None if that is unknown.
        high: the drop is at most this, at the gate's level; None if that is unknown.
        bound: what the drop is compared with.
        decision: PASS if the drop is shown to be on the right side of the bound, FAIL if it is
            shown to be on the wrong one, else INCONCLUSIVE.
        sentence: all that in words.
    """

    gate: Gate
    base: float
    pruned: float
    drop: float
    low: float | None
    high: float | None
    bound: float
    decision: Decision
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """PASS if every gate passed, FAIL if one failed, else INCONCLUSIVE; UNJUDGED without gates."""

    decision: Decision
    gates: tuple[GateResult, ...]
    level: float

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for `evaluation.json`; JSON-able."""
        return {
            "verdict": self.decision,
            "level_of_each_gate": self.level,
            "gates": [
                {
                    **result.gate.model_dump(exclude_none=True),
                    "base": result.base,
                    "pruned": result.pruned,
                    "drop": result.drop,
                    "drop_low": result.low,
                    "drop_high": result.high,
                    "decision": result.decision,
                    "sentence": result.sentence,
                }
                for result in self.gates
            ],
        }


def check_metrics(gates: Sequence[Gate], metrics: Mapping[str, Sequence[str] | None]) -> None:
    """Check the metrics that gates name before anything is evaluated.

    Args:
        gates: the recipe's gates.
        metrics: by task, the metrics that it has; None where that is only known afterwards.

    Raises:
        InputError: a task does not have the metric that a gate names.
    """
    for index, gate in enumerate(gates):
        known = metrics.get(gate.task)
        if known is not None and gate.metric not in known:
            near = difflib.get_close_matches(gate.metric, known, n=1)
            raise InputError(
                f"the task {gate.task} has no metric {gate.metric!r}",
                where=f"gates.{index}.metric",
                remedy=f"{f'did you mean {near[0]}? ' if near else ''}its metrics are: "
                f"{', '.join(known)}",
            )


def judge(
    gates: Sequence[Gate],
    base: Evaluation,
    pruned: Evaluation,
    statistics: Statistics | None = None,
) -> Verdict:
    """Judge a pruned model against its base, by one-sided paired tests.

    A forget gate is a test of superiority: it passes if the drop is shown to be above its bound. A
    retain gate is one of non-inferiority: it passes if the drop is shown to be below its margin.
    The level is shared among the gates (Bonferroni).

    Raises:
        InputError: a gate names a task or a metric that was not measured.
        BrokenError: the two models were not asked about the same documents.
    """
    statistics = statistics or Statistics()
    level = statistics.level / max(len(gates), 1)
    results = tuple(_judge(gate, base, pruned, statistics, level) for gate in gates)
    decisions = {result.decision for result in results}
    order: tuple[Decision, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    worst: Decision = next((each for each in order if each in decisions), "UNJUDGED")
    return Verdict(worst, results, level)


def drop_of(gate: Gate, base: float, pruned: float, *, higher_is_better: bool) -> float:
    """How much worse the metric became, on the gate's scale; NaN where the scale has no meaning."""
    sign = 1.0 if higher_is_better else -1.0
    drop = sign * (base - pruned)
    if gate.scale == "absolute":
        return drop
    whole = abs(base) if gate.chance is None else sign * (base - gate.chance)
    return drop / whole if whole > 0 else math.nan


def _judge(
    gate: Gate, base: Evaluation, pruned: Evaluation, statistics: Statistics, level: float
) -> GateResult:
    before, after = _result(gate, base), _result(gate, pruned)
    if (before.n, before.documents) != (after.n, after.documents):
        raise BrokenError(
            f"base and pruned model were evaluated on different documents "
            f"({before.n} and {after.n})",
            where=f"task {gate.task}",
            remedy="run the same command again; if it stays so, report it",
        )
    values = before.metrics[gate.metric], after.metrics[gate.metric]
    higher_is_better = before.higher_is_better[gate.metric]
    drop = drop_of(gate, *values, higher_is_better=higher_is_better)
    bound = gate.drops_at_least if gate.drops_at_least is not None else gate.drops_at_most
    assert bound is not None
    said = _said(gate, drop, higher_is_better)
    limit = f"({_limit(gate)} {_amount(gate, bound)})"

    def result(decision: Decision, words: str, interval: Interval | None = None) -> GateResult:
        low, high = (interval.low, interval.high) if interval else (None, None)
        return GateResult(gate, *values, drop, low, high, bound, decision, words)

    # A model that answers NaN or infinity is broken, whichever way the comparison goes.
    if not all(map(math.isfinite, (*values, drop))):
        return result("FAIL", f"{gate.task} {gate.metric} cannot be judged {limit}")
    paired = paired_documents(base, pruned, gate.task, gate.metric)
    if paired is None:
        return result("INCONCLUSIVE", f"{said} {limit}; no figure per document, so no test")
    if paired.n < statistics.min_documents:
        least = statistics.min_documents
        return result("INCONCLUSIVE", f"{said} {limit}; {paired.n} documents, {least} are needed")
    interval = interval_of_drop(
        paired,
        level=level,
        higher_is_better=higher_is_better,
        relative=gate.scale != "absolute",
        chance=gate.chance or 0.0,
    )
    words = f"{said}, from {_amount(gate, interval.low)} to {_amount(gate, interval.high)} {limit}"
    decision = _decision(gate, interval, bound)
    if decision == "INCONCLUSIVE":
        needed = interval.documents_needed(bound, level, statistics.power)
        words += f"; {paired.n} documents cannot decide it"
        words += f", about {needed:,} could" if needed else ""
    return result(decision, words, interval)


def _decision(gate: Gate, interval: Interval, bound: float) -> Decision:
    above, below = interval.low >= bound - ROUNDING, interval.high <= bound + ROUNDING
    if gate.drops_at_least is not None:
        return "PASS" if above else "FAIL" if below else "INCONCLUSIVE"
    return "PASS" if below else "FAIL" if above else "INCONCLUSIVE"


def _result(gate: Gate, evaluation: Evaluation) -> TaskResult:
    result = evaluation.tasks.get(gate.task)
    if result is None:
        raise InputError(
            f"a gate names the task {gate.task!r}, which was not evaluated",
            where="gates",
            remedy=f"evaluated are: {', '.join(sorted(evaluation.tasks))}",
        )
    if gate.metric not in result.metrics:
        raise InputError(
            f"a gate names the metric {gate.metric!r}, which the task {gate.task} does not have",
            where="gates",
            remedy=f"its metrics are: {', '.join(sorted(result.metrics))}",
        )
    return result


def _said(gate: Gate, drop: float, higher_is_better: bool) -> str:
    worse, better = ("dropped", "rose") if higher_is_better else ("rose", "fell")
    if gate.scale == "above_chance":
        worse, better = "lost", "gained"
    of = " of its distance to chance" if gate.scale == "above_chance" else ""
    verb = better if drop < 0 else worse
    return f"{gate.task} {gate.metric} {verb} {_amount(gate, abs(drop))}{of}"


def _limit(gate: Gate) -> str:
    return "at least" if gate.drops_at_least is not None else "at most"


def _amount(gate: Gate, value: float) -> str:
    if gate.scale == "absolute":
        return f"{value:.4g}"
    return f"{100 * value:.1f}".removesuffix(".0") + " %"
