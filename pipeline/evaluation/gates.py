"""Gates: conditions on two evaluations that decide the verdict."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation.results import Evaluation, TaskResult
from pipeline.recipe import Gate

Decision = Literal["PASS", "FAIL", "UNJUDGED"]

ROUNDING = 1e-9  # 0.80 - 0.75 is 0.05 to a reader, and a hair more to the processor


@dataclass(frozen=True)
class GateResult:
    """One gate with what it saw; `drop` and `bound` are on the gate's scale."""

    gate: Gate
    base: float
    pruned: float
    drop: float
    bound: float
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """PASS if every gate passed, FAIL if one did not, UNJUDGED if there are none."""

    decision: Decision
    gates: tuple[GateResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for `evaluation.json`; JSON-able."""
        return {
            "verdict": self.decision,
            "gates": [
                {
                    **result.gate.model_dump(exclude_none=True),
                    "base": result.base,
                    "pruned": result.pruned,
                    "drop": result.drop,
                    "passed": result.passed,
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


def judge(gates: Sequence[Gate], base: Evaluation, pruned: Evaluation) -> Verdict:
    """Judge a pruned model against its base.

    Raises:
        InputError: a gate names a task or a metric that was not measured.
        BrokenError: the two models were not asked about the same documents.
    """
    results = tuple(_judge(gate, base, pruned) for gate in gates)
    if not results:
        return Verdict("UNJUDGED", results)
    return Verdict("PASS" if all(result.passed for result in results) else "FAIL", results)


def drop_of(gate: Gate, base: float, pruned: float, *, higher_is_better: bool) -> float:
    """How much worse the metric became, on the gate's scale; NaN where the scale has no meaning."""
    sign = 1.0 if higher_is_better else -1.0
    drop = sign * (base - pruned)
    if gate.scale == "absolute":
        return drop
    whole = abs(base) if gate.chance is None else sign * (base - gate.chance)
    return drop / whole if whole > 0 else math.nan


def _judge(gate: Gate, base: Evaluation, pruned: Evaluation) -> GateResult:
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
    if gate.drops_at_least is not None:
        bound, passed = gate.drops_at_least, drop >= gate.drops_at_least - ROUNDING
    else:
        assert gate.drops_at_most is not None
        bound, passed = gate.drops_at_most, drop <= gate.drops_at_most + ROUNDING
    # A model that answers NaN or infinity is broken, whichever way the comparison goes.
    passed = passed and all(map(math.isfinite, (*values, drop)))
    sentence = _sentence(gate, drop, bound, higher_is_better)
    return GateResult(gate, *values, drop, bound, passed, sentence)


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


def _sentence(gate: Gate, drop: float, bound: float, higher_is_better: bool) -> str:
    limit = "at least" if gate.drops_at_least is not None else "at most"
    what = f"{gate.task} {gate.metric}"
    if not math.isfinite(drop):
        return f"{what} cannot be judged ({limit} {_amount(gate, bound)})"
    worse, better = ("dropped", "rose") if higher_is_better else ("rose", "fell")
    if gate.scale == "above_chance":
        worse, better = "lost", "gained"
    of = " of its distance to chance" if gate.scale == "above_chance" else ""
    verb = better if drop < 0 else worse
    return f"{what} {verb} {_amount(gate, abs(drop))}{of} ({limit} {_amount(gate, bound)})"


def _amount(gate: Gate, value: float) -> str:
    if gate.scale == "absolute":
        return f"{value:.4g}"
    return f"{100 * value:.1f}".removesuffix(".0") + " %"
