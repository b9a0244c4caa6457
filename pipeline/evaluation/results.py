"""What an evaluation says, and how it is kept: figures, standard errors and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import bits_per_byte, mean

from pipeline.cache import digest_of, plain_json, read_json, write_json
from pipeline.evaluation.next_token import ratio_of_sums
from pipeline.recipe import Side

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
    n: int
    documents: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of every task for one model, and the folder with a JSONL file of each's samples."""

    tasks: dict[str, TaskResult]
    samples_folder: Path

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
    metrics, errors, higher = {}, {}, {}
    for key, value in output["results"][name].items():
        metric, comma, selected = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        shown = metric if selected == "none" else key
        values = [s[metric] for s in samples if s["filter"] == selected and metric in s]
        metrics[shown] = float(value)
        errors[shown] = standard_error(values, task.aggregation().get(metric, mean))
        higher[shown] = bool(task.higher_is_better().get(metric, True))
    hashes = {sample["doc_id"]: sample["doc_hash"] for sample in samples}
    return {
        "metrics": metrics,
        "stderr": errors,
        "higher_is_better": higher,
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


def standard_error(values: Sequence[Any], aggregation: Any) -> float | None:
    """Standard error of a mean or of a ratio of sums; None for other aggregations.

    The error of a ratio is the linearised one: that of the residuals `a - ratio · b`.
    """
    n = len(values)
    if n < 2:
        return None
    if aggregation is mean and all(isinstance(value, int | float) for value in values):
        average = sum(values) / n
        return math.sqrt(sum((value - average) ** 2 for value in values) / (n - 1) / n)
    if aggregation in (ratio_of_sums, bits_per_byte):
        ratio = ratio_of_sums(values)
        spread = sum((top - ratio * bottom) ** 2 for top, bottom in values)
        total = sum(bottom for _, bottom in values)
        error: float = math.sqrt(spread * n / (n - 1)) / total
        return error / math.log(2) if aggregation is bits_per_byte else error
    return None
