"""Results of two releases side by side, paired where both were asked the same documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BrokenError
from pipeline.evaluation.paired import Paired
from pipeline.evaluation.results import Evaluation, TaskResult, paired_documents

SAMPLES = "samples/pruned"
CLOSE = 1e-6  # figures of the same documents, summed in another order


def result_pairs(
    one: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every metric of every task of the released models, with the difference where both have it.

    Args:
        one: folder of a release, and its evaluation as its manifest has it.
        other: the same of another.

    Returns:
        Rows, forget first; `unpaired` says why there is no standard error of the difference.
    """
    evaluations = _evaluation(*one), _evaluation(*other)
    tasks = [evaluation.tasks for evaluation in evaluations]
    rows = []
    for name in tasks[0] | tasks[1]:
        results = [each.get(name) for each in tasks]
        known = [result for result in results if result is not None]
        for metric in dict.fromkeys(metric for result in known for metric in result.metrics):
            values = [None if r is None else r.metrics.get(metric) for r in results]
            with np.errstate(all="ignore"):  # a release can put any numbers into its samples
                error, why = _paired_error(evaluations, name, metric)
            first, second = map(_finite, values)
            rows.append(
                {
                    "side": known[0].side,
                    "task": name,
                    "metric": metric,
                    "documents": [None if r is None else r.n for r in results],
                    "one": first,
                    "other": second,
                    "difference": None if first is None or second is None else second - first,
                    "standard_error": error,
                    "unpaired": why,
                }
            )
    return sorted(rows, key=lambda row: (row["side"] != "forget", row["task"]))


def _paired_error(
    evaluations: tuple[Evaluation, Evaluation], task: str, metric: str
) -> tuple[float | None, str]:
    """Standard error of the difference over documents, or why there is none."""
    one, other = (evaluation.tasks.get(task) for evaluation in evaluations)
    if one is None or other is None or not one.metrics.keys() & other.metrics.keys() & {metric}:
        return None, "only one has it"
    if one.documents != other.documents:
        return None, "other documents"
    if one.estimator.get(metric) != other.estimator.get(metric):
        return None, "computed in another way"
    try:
        paired = paired_documents(*evaluations, task, metric)
    except FileNotFoundError:
        return None, "a release has no samples of it"
    except (BrokenError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None, "the samples are not those of its documents"
    if paired is None:
        return None, "no figure for each document"
    if paired.n < 2:
        return None, "too few documents"
    if not _says(paired, one.metrics[metric], other.metrics[metric]):
        return None, "the samples say something else"
    _, error = paired.difference()
    return (error, "") if math.isfinite(error) else (None, "too few documents")


def _says(paired: Paired, one: float, other: float) -> bool:
    """Whether the documents' figures give the metric's."""
    found = (float(top / bottom) for top, bottom in map(_sums, (paired.base_N2, paired.pruned_N2)))
    return all(
        math.isclose(value, said, rel_tol=CLOSE, abs_tol=CLOSE)
        for value, said in zip(found, (one, other), strict=True)
    )


def _sums(rows_N2: Any) -> Any:
    return rows_N2.sum(axis=0)


def _evaluation(folder: Path, evaluation: dict[str, Any]) -> Evaluation:
    tasks = {name: _result(task) for name, task in evaluation["pruned"]["tasks"].items()}
    return Evaluation(tasks, folder / SAMPLES)


def _result(task: dict[str, Any]) -> TaskResult:
    """A task's result as its manifest has it; null stands for NaN."""
    figures = task["metrics"].items()
    return TaskResult(**task | {"metrics": {k: math.nan if v is None else v for k, v in figures}})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
