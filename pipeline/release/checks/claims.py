"""What a release says of its evaluation, against the same measured anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.evaluation.results import Evaluation
from pipeline.release.checks.findings import Finding

EVALUATION = "evaluation.json"
# Other kernels round otherwise: on the same items a metric moves by a fraction of its standard
# error. What moves by more was not measured on these weights.
CLAIM_ERRORS = 1.0
CLAIM_FLOOR = 0.002  # where there is no standard error, as a share of the value


def check_evaluation(
    claimed: Any, measured: Mapping[str, Evaluation]
) -> tuple[list[Finding], list[str]]:
    """Compare claimed figures with measured ones, where both are of the same documents.

    Args:
        claimed: content of the release's `evaluation.json`.
        measured: by model ("base", "pruned"), the evaluation that was just run.

    Returns:
        Figures that were not measured on these weights, and what could not be compared.
    """
    findings: list[Finding] = []
    other: list[str] = []
    for model, evaluation in measured.items():
        tasks = _object(_object(_object(claimed).get(model)).get("tasks"))
        for name, result in evaluation.tasks.items():
            claim = _object(tasks.get(name))
            if claim.get("documents") != result.documents:
                other.append(name)
                continue
            figures = _object(claim.get("metrics"))
            for metric, value in result.metrics.items():
                said = figures.get(metric)
                if not _agrees(said, value, result.stderr.get(metric)):
                    what = f"says {metric} of {model} on {name} is {_shown(said)}"
                    findings.append(Finding(EVALUATION, f"{what}, measured {_shown(value)}"))
    notes = [
        f"not compared with the release's figures, which are of other items: {name}"
        for name in dict.fromkeys(other)
    ]
    return findings, notes


def differences(theirs: Any, ours: Any, key: str = "") -> Iterator[str]:
    """Yield the keys in which two recipes differ, with both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            inner = f"{key}.{name}" if key else name
            yield from differences(theirs.get(name), ours.get(name), inner)
    elif theirs != ours:
        yield f"{key}: {_shown(theirs)} in the release, {_shown(ours)} here"


def _agrees(said: Any, value: float, error: float | None) -> bool:
    if not isinstance(said, int | float):
        return said is None and not math.isfinite(value)
    allowed = CLAIM_FLOOR * abs(value)
    if error is not None and math.isfinite(error):
        allowed = max(allowed, CLAIM_ERRORS * error)
    return abs(said - value) <= allowed


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
