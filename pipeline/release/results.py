"""The results of a run as rows, for the terminal and for the model card alike."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple, TypeGuard

# What is shown first of a task that has several metrics; the others are in evaluation.json.
SHOWN = ("top1", "loss", "acc_norm", "acc", "bits_per_byte")


class MetricRow(NamedTuple):
    """One metric of one task, before and after; `control` is empty where there is none."""

    side: str
    task: str
    metric: str
    n: int
    before: str
    after: str
    change: str
    control: str = ""


class SizeRow(NamedTuple):
    """One property of the checkpoint, before and after."""

    what: str
    before: str
    after: str
    change: str


def metric_rows(evaluation: dict[str, Any]) -> list[MetricRow]:
    """Rows of `evaluation.json`, forget first."""
    before, after = evaluation["base"]["tasks"], evaluation["pruned"]["tasks"]
    control = evaluation["control"]["tasks"] if "control" in evaluation else {}
    rows = []
    for task in sorted(before, key=lambda name: (before[name]["side"] != "forget", name)):
        values, errors = before[task]["metrics"], before[task]["stderr"]
        pruned, pruned_errors = after[task]["metrics"], after[task]["stderr"]
        other = control.get(task, {"metrics": {}, "stderr": {}})
        for metric in shown_metrics(values):
            rows.append(
                MetricRow(
                    side=before[task]["side"],
                    task=task,
                    metric=metric,
                    n=before[task]["n"],
                    before=_with_error(values[metric], errors.get(metric)),
                    after=_with_error(pruned[metric], pruned_errors.get(metric)),
                    change=_change(
                        values[metric], pruned[metric], before[task]["higher_is_better"][metric]
                    ),
                    control=_with_error(other["metrics"].get(metric), other["stderr"].get(metric))
                    if control
                    else "",
                )
            )
    return rows


def shown_metrics(values: Collection[str]) -> list[str]:
    """Those of a task's metrics that are shown first."""
    return [metric for metric in SHOWN if metric in values] or sorted(values)


def size_rows(manifest: dict[str, Any]) -> list[SizeRow]:
    """Parameters, bytes and speed of base and pruned."""
    base, pruned, evaluation = manifest["base"], manifest["pruned"], manifest["evaluation"]
    speeds = [evaluation["forward_tokens_per_second"][which] for which in ("base", "pruned")]
    return [
        SizeRow(
            "parameters",
            f"{base['parameters']:,}",
            f"{pruned['parameters']:,}",
            _relative(base["parameters"], pruned["parameters"]),
        ),
        SizeRow(
            "weights on disk",
            f"{base['bytes'] / 1e6:,.1f} MB",
            f"{pruned['bytes'] / 1e6:,.1f} MB",
            _relative(base["bytes"], pruned["bytes"]),
        ),
        SizeRow(
            "forward pass",
            f"{speeds[0]:,.0f} tokens/s",
            f"{speeds[1]:,.0f} tokens/s",
            _relative(*speeds),
        ),
    ]


def _with_error(value: float | None, error: float | None) -> str:
    if not _is_number(value):
        return "–"
    return f"{value:.3f} ± {error:.3f}" if _is_number(error) else f"{value:.3f}"


def _change(before: float | None, after: float | None, higher_is_better: bool) -> str:
    if not (_is_number(before) and _is_number(after)):
        return "–"
    change = f"{after - before:+.3f}"
    return f"{change} ({_relative(before, after)})" if higher_is_better else change


def _is_number(value: float | None) -> TypeGuard[float]:
    """NaN and infinity are null in a manifest that was read from a file."""
    return value is not None and math.isfinite(value)


def _relative(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else "–"
