"""Gates: conditions on two evaluations that decide the verdict, as paired tests."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation.paired import Interval, interval_of_drop
from pipeline.evaluation.results import Evaluation, TaskResult, paired_documents
from pipeline.recipe.judging import Gate, Statistics

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNJUDGED"]

BROKEN = "the pruned model is broken"
ROUNDING = 1e-9  # 0.80 - 0.75 is 0.05 to a reader, and a hair more to the processor


@dataclass(frozen=True)
class GateResult:
    """One gate with what it saw; `drop`, its bounds and `bound` are on the gate's scale.

    Attributes:
        gate: the gate.
        base: the metric of the base, or of the control that the gate compares with.
        pruned: the metric of the pruned model.
        drop: how much worse the metric became.
        low: the drop is at least this, at the gate's level; None if that is unknown.
        high: the drop is at most this, at the gate's level; None if that is unknown.
        bound: what the drop is compared with.
        decision: PASS if the drop is shown to be on the right side of the bound, FAIL if it is
            shown to be on the wrong one or the pruned model is broken, else INCONCLUSIVE.
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
        for task in gate.tasks:
            known = metrics.get(task)
            if known is not None and gate.metric not in known:
                near = difflib.get_close_matches(gate.metric, known, n=1)
                raise InputError(
                    f"the task {task} has no metric {gate.metric!r}",
                    where=f"gates.{index}.metric",
                    remedy=f"{f'did you mean {near[0]}? ' if near else ''}its metrics are: "
                    f"{', '.join(known)}",
                )


def judge(
    gates: Sequence[Gate],
    base: Evaluation,
    pruned: Evaluation,
    statistics: Statistics | None = None,
    control: Evaluation | None = None,
) -> Verdict:
    """Judge a pruned model against its base (or a control), by one-sided paired tests.

    A forget gate is a test of superiority: it passes if the drop is shown to be above its bound. A
    retain gate is one of non-inferiority: it passes if the drop is shown to be below its margin.
    A gate on selectivity (`more_than`) is on the difference of two tasks' drops. The level is
    shared among the gates (Bonferroni).

    Raises:
        InputError: a gate names a task or a metric that was not measured.
        BrokenError: the two models were not asked about the same documents.
        ValueError: a gate compares with a control, and there is none.
    """
    statistics = statistics or Statistics()
    level = statistics.level / max(len(gates), 1)
    references = {"base": base, "control": control}
    results = []
    for gate in gates:
        if (reference := references[gate.against]) is None:
            raise ValueError("a gate compares with a control, and there is none")
        results.append(judge_gate(gate, reference, pruned, statistics, level))
    return Verdict(worst(result.decision for result in results), tuple(results), level)


def worst(decisions: Iterable[Decision]) -> Decision:
    """What several gates together say: FAIL before INCONCLUSIVE before PASS."""
    said = set(decisions)
    order: tuple[Decision, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    return next((each for each in order if each in said), "UNJUDGED")


def drop_of(gate: Gate, base: float, pruned: float, *, higher_is_better: bool) -> float:
    """How much worse the metric became, on the gate's scale; NaN where the scale has no meaning."""
    sign = 1.0 if higher_is_better else -1.0
    drop = sign * (base - pruned)
    if gate.scale == "absolute":
        return drop
    whole = abs(base) if gate.chance is None else sign * (base - gate.chance)
    return drop / whole if whole > 0 else math.nan


def decide(gate: Gate, low: float, high: float) -> Decision:
    """What the bounds of a drop say of a gate."""
    above, below = low >= gate.bound - ROUNDING, high <= gate.bound + ROUNDING
    if gate.drops_at_least is not None:
        return "PASS" if above else "FAIL" if below else "INCONCLUSIVE"
    return "PASS" if below else "FAIL" if above else "INCONCLUSIVE"


class Drop(NamedTuple):
    """One task's metric on both models, and how much worse it became, on a gate's scale."""

    before: float
    after: float
    drop: float
    higher_is_better: bool


def difference_of(drops: Sequence[Drop]) -> float:
    """What a gate compares: its task's drop, less that of the task it must exceed."""
    return drops[0].drop - sum(other.drop for other in drops[1:])


def in_words(gate: Gate, drops: Sequence[Drop], low: float | None, high: float | None) -> str:
    """What a gate saw: its sentence, without a reason that may follow it.

    Args:
        gate: the gate.
        drops: those of its tasks.
        low: lower bound of their difference; None if it is unknown.
        high: upper bound.
    """
    said = _said(gate, drops)
    if low is not None and high is not None:
        said += f", from {_amount(gate, low)} to {_amount(gate, high)}"
    return f"{said} ({_limit(gate)} {_amount(gate, gate.bound)})"


def judge_gate(
    gate: Gate, reference: Evaluation, pruned: Evaluation, statistics: Statistics, level: float
) -> GateResult:
    """Judge a pruned model by one gate.

    Args:
        gate: the gate.
        reference: what the model is compared with: its base, or the control.
        pruned: the model.
        statistics: how many documents are needed, and with what power more would be.
        level: of this gate alone.

    Raises:
        InputError: a task or the metric was not measured.
        BrokenError: the two models were not asked about the same documents.
    """
    found = [_drop_on(task, gate, reference, pruned, statistics, level) for task in gate.tasks]
    drops = [drop for drop, _ in found]
    drop = difference_of(drops)

    def result(decision: Decision, why: str, interval: Interval | None = None) -> GateResult:
        low, high = (interval.low, interval.high) if interval else (None, None)
        words = in_words(gate, drops, low, high) + (f"; {why}" if why else "")
        before, after = drops[0].before, drops[0].after
        return GateResult(gate, before, after, drop, low, high, gate.bound, decision, words)

    # A pruned model that answers NaN or infinity is broken, whichever way the comparison goes.
    if not all(math.isfinite(each.after) for each in drops):
        return result("FAIL", BROKEN)
    if reasons := [interval for _, interval in found if isinstance(interval, str)]:
        return result("INCONCLUSIVE", reasons[0])
    intervals = [interval for _, interval in found if not isinstance(interval, str)]
    interval = intervals[0] if len(intervals) == 1 else intervals[0].minus(intervals[1])
    if interval.unknown:
        return result("INCONCLUSIVE", interval.unknown)
    decision, why = decide(gate, interval.low, interval.high), ""
    if decision == "INCONCLUSIVE":
        needed = interval.documents_needed(gate.bound, level, statistics.power)
        why = f"{interval.n} documents cannot decide it"
        why += f", about {needed:,} could" if needed else ""
    return result(decision, why, interval)


def _drop_on(
    task: str,
    gate: Gate,
    reference: Evaluation,
    pruned: Evaluation,
    statistics: Statistics,
    level: float,
) -> tuple[Drop, Interval | str]:
    """A task's drop, with its interval or why there is none."""
    before, after = (_result(task, gate.metric, each) for each in (reference, pruned))
    if (before.n, before.documents) != (after.n, after.documents):
        raise BrokenError(
            f"the models were evaluated on different documents ({before.n} and {after.n})",
            where=f"task {task}",
            remedy="run the same command again; if it stays so, report it",
        )
    values = before.metrics[gate.metric], after.metrics[gate.metric]
    higher_is_better = before.higher_is_better[gate.metric]
    drop = drop_of(gate, *values, higher_is_better=higher_is_better)

    def found(interval: Interval | str) -> tuple[Drop, Interval | str]:
        return Drop(*values, drop, higher_is_better), interval

    if not all(map(math.isfinite, values)):
        return found("a figure is not finite")
    if not math.isfinite(drop):
        of = "0" if gate.chance is None else f"not better than chance ({gate.chance:g})"
        return found(f"the base is {of}, and nothing is a share of that")
    paired = paired_documents(reference, pruned, task, gate.metric)
    if paired is None:
        return found("no figure per document, so no test")
    if paired.n < (least := statistics.min_documents):
        return found(f"{paired.n} documents, {least} are needed")
    return found(
        interval_of_drop(
            paired,
            level=level,
            higher_is_better=higher_is_better,
            relative=gate.scale != "absolute",
            chance=gate.chance,
            min_differing=math.ceil(least / 2),
        )
    )


def _result(task: str, metric: str, evaluation: Evaluation) -> TaskResult:
    result = evaluation.tasks.get(task)
    if result is None:
        raise InputError(
            f"a gate names the task {task!r}, which was not evaluated",
            where="gates",
            remedy=f"evaluated are: {', '.join(sorted(evaluation.tasks))}",
        )
    if metric not in result.metrics:
        raise InputError(
            f"a gate names the metric {metric!r}, which the task {task} does not have",
            where="gates",
            remedy=f"its metrics are: {', '.join(sorted(result.metrics))}",
        )
    return result


def _said(gate: Gate, drops: Sequence[Drop]) -> str:
    first, drop = drops[0], difference_of(drops)
    worse, better = ("dropped", "rose") if first.higher_is_better else ("rose", "fell")
    if gate.scale == "above_chance":
        worse, better = "lost", "gained"
    of = " of its distance to chance" if gate.scale == "above_chance" else ""
    verb = better if first.drop < 0 else worse
    said = f"{gate.task} {gate.metric} {verb} {_amount(gate, abs(first.drop))}{of}"
    if not math.isfinite(first.drop):
        said = f"{gate.task} {gate.metric} went from {first.before:.4g} to {first.after:.4g}"
    if gate.against == "control":
        said += " against the control"
    if gate.more_than is not None and math.isfinite(drop):
        beyond = "more" if drop >= 0 else "less"
        said += f", {_amount(gate, abs(drop))} {beyond} than {gate.more_than}"
    return said


def _limit(gate: Gate) -> str:
    return "at least" if gate.drops_at_least is not None else "at most"


def _amount(gate: Gate, value: float) -> str:
    if gate.scale == "absolute":
        return f"{value:.4g}"
    return f"{100 * value:.1f}".removesuffix(".0") + " %"
