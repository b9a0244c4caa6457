"""What an evaluation says, and how it is kept: figures, standard errors and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean

from pipeline.cache import digest_of, plain_json, read_json, write_json
from pipeline.errors import BrokenError
from pipeline.evaluation.next_token import ratio_of_sums
from pipeline.evaluation.paired import Paired
from pipeline.recipe.fields import Side

MEAN, RATIO, BITS = "mean", "ratio of sums", "bits per byte"
RESULT_FILE = "result.json"
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class TaskResult:
    """Figures of one task.

    Args:
        task: name of the task.
        side: whether it measures what is forgotten or what is kept.
        metrics: value of each metric; of lm-eval's `metric,filter`, the filter `none` is left out.
        stderr: standard error of each metric, where there is a formula for it.
        higher_is_better: of each metric, whether a higher value is a better model, as the task
            itself says.
        estimator: of each metric, how it is made of its documents' figures (`MEAN`, `RATIO` or
            `BITS`); None if in another way, so that its error cannot be computed.
        n: documents.
        documents: digest of the documents, so that two results can be paired.
        tokens: tokens that the model read.
        seconds: time that it took to read them.
    """

    task: str
    side: Side
    metrics: dict[str, float]
    stderr: dict[str, float | None]
    higher_is_better: dict[str, bool]
    estimator: dict[str, str | None]
    n: int
    documents: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of every task for one model.

    Attributes:
        tasks: the figures, by task.
        samples_folder: folder with a JSONL file of each task's samples.
        keys: by task, all that determined its figures.
    """

    tasks: dict[str, TaskResult]
    samples_folder: Path
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model read in a second, over all tasks."""
        seconds = sum(result.seconds for result in self.tasks.values())
        return sum(result.tokens for result in self.tasks.values()) / seconds if seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return what `evaluation.json` says about the model; JSON-able."""
        return {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
        }


def result_of(name: str, output: dict[str, Any], task: Any, tokens: int, seconds: float) -> Any:
    """Return the JSON-able result of one task from what lm-eval returned."""
    samples = output["samples"][name]
    metrics, errors, higher, estimators = {}, {}, {}, {}
    for key, value in output["results"][name].items():
        metric, comma, selected = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        shown = metric if selected == "none" else key
        values = [s[metric] for s in samples if s["filter"] == selected and metric in s]
        metrics[shown] = float(value)
        estimators[shown] = estimator_of(values, task.aggregation().get(metric, mean))
        errors[shown] = standard_error(values, estimators[shown])
        higher[shown] = bool(task.higher_is_better().get(metric, True))
    hashes = {sample["doc_id"]: sample["doc_hash"] for sample in samples}
    return {
        "metrics": metrics,
        "stderr": errors,
        "higher_is_better": higher,
        "estimator": estimators,
        "n": len(hashes),
        "documents": digest_of([hashes[number] for number in sorted(hashes)]),
        "tokens": tokens,
        "seconds": seconds,
    }


def write_result(folder: Path, result: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None:
    """Write a task's result and its samples: per document its hash and its metrics."""
    with (folder / SAMPLES_FILE).open("w", encoding="utf-8") as lines:
        for sample in samples:
            row = {"doc_id": sample["doc_id"], "document": sample["doc_hash"]}
            if sample["filter"] != "none":
                row["filter"] = sample["filter"]
            row |= {metric: sample[metric] for metric in sample["metrics"]}
            lines.write(json.dumps(plain_json(row), default=float) + "\n")
    write_json(folder / RESULT_FILE, result)


def read_result(folder: Path, task: str, side: Side) -> TaskResult:
    """Read what `write_result` wrote; the side is the recipe's and not kept with it."""
    content = read_json(folder / RESULT_FILE)
    metrics = content.pop("metrics").items()  # JSON has no NaN
    known = {name: math.nan if value is None else value for name, value in metrics}
    return TaskResult(task=task, side=side, metrics=known, **content)


def estimator_of(values: Sequence[Any], aggregation: Any) -> str | None:
    """How a metric is made of its documents' figures; None if it is neither mean nor ratio."""
    if aggregation is mean and all(isinstance(value, int | float) for value in values):
        return MEAN
    return {ratio_of_sums: RATIO, bits_per_byte: BITS}.get(aggregation)


def standard_error(values: Sequence[Any], estimator: str | None) -> float | None:
    """Standard error of a metric over its documents; None if there is no formula for it.

    The error of a ratio is the linearised one: that of the residuals `a - ratio · b`.
    """
    n = len(values)
    if n < 2 or estimator is None:
        return None
    fractions = [_fraction(value, estimator) for value in values]
    ratio = ratio_of_sums(fractions)
    spread = sum((top - ratio * bottom) ** 2 for top, bottom in fractions)
    return math.sqrt(spread * n / (n - 1)) / sum(bottom for _, bottom in fractions)


def paired_documents(base: Evaluation, pruned: Evaluation, task: str, metric: str) -> Paired | None:
    """A metric on each document, for both models; None if it has no figure per document.

    Raises:
        BrokenError: the two were not asked about the same documents.
    """
    estimator = base.tasks[task].estimator.get(metric)
    if estimator is None:
        return None
    documents, figures = [], []
    for evaluation in (base, pruned):
        rows = _rows(evaluation.samples_folder / f"{task}.jsonl", metric)
        documents.append([document for document, _ in rows])
        figures.append([_fraction(value, estimator) for _, value in rows])
    if documents[0] != documents[1]:
        raise BrokenError(
            "base and pruned model were evaluated on different documents",
            where=f"task {task}",
            remedy="run the same command again; if it stays so, report it",
        )
    if not all(math.isfinite(number) for side in figures for pair in side for number in pair):
        return None
    return Paired(*(np.array(side, dtype=np.float64) for side in figures))


def _rows(path: Path, metric: str) -> list[tuple[tuple[int, str], Any]]:
    """Document and figure of each sample that has the metric, in order."""
    name, _, selected = metric.partition(",")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if name in row and row.get("filter", "") == selected:
                rows.append(((row["doc_id"], row["document"]), row[name]))
    return sorted(rows, key=lambda row: row[0])


def _fraction(value: Any, estimator: str) -> tuple[float, float]:
    """A document's share of a metric, as numerator and denominator; null in JSON is NaN."""
    if estimator == MEAN:
        return (math.nan if value is None else float(value)), 1.0
    top, bottom = (math.nan if number is None else float(number) for number in value)
    return (-top / math.log(2) if estimator == BITS else top), bottom
