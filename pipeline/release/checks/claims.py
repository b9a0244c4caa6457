"""What a release says of its evaluation: in one voice, and against the same measured anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cache import read_json
from pipeline.evaluation.results import Evaluation
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.card import NAME as CARD
from pipeline.release.card import card_text
from pipeline.release.checks.findings import Finding, printable

EVALUATION = "evaluation.json"
SHOWN_DIFFERENCES = 100
# Other kernels round otherwise: on the same items a metric moves by a fraction of its standard
# error. What moves by more was not measured on these weights.
CLAIM_ERRORS = 1.0
CLAIM_FLOOR = 0.002  # where there is no standard error, as a share of the value


def check_one_voice(folder: Path, manifest: Mapping[str, Any]) -> list[Finding]:
    """Compare what the files of a release say of its results with what its manifest says.

    `evaluation.json` and the card are made from the manifest; a release may leave them out, and
    the card of another version cannot be made again.
    """
    claimed = manifest.get("evaluation")
    findings = []
    if manifest.get("verdict") != _object(claimed).get("verdict"):
        findings.append(Finding(MANIFEST, "its verdict is not that of its evaluation"))
    if (path := folder / EVALUATION).is_file():
        try:
            same = read_json(path) == claimed
        except ValueError:
            same = False
        if not same:
            findings.append(Finding(EVALUATION, "is not what the manifest says of the evaluation"))
    same_version = _object(manifest.get("environment")).get("unlearn-pipeline") == __version__
    if (path := folder / CARD).is_file() and same_version:
        try:
            made = card_text(dict(manifest)).encode()
        except Exception as error:  # whatever a template meets in a manifest that lies
            findings.append(Finding(MANIFEST, f"no card can be made of it ({error!r})"))
        else:
            if path.read_bytes() != made:
                findings.append(Finding(CARD, "is not the card that the manifest gives"))
    return findings


def check_evaluation(
    claimed: Any, measured: Mapping[str, Evaluation]
) -> tuple[list[Finding], list[str]]:
    """Compare claimed figures with measured ones, where both are of the same documents.

    Args:
        claimed: what the release says of its evaluation.
        measured: by model ("base", "pruned"), the evaluation that was just run.

    Returns:
        Figures that were not measured on these weights, and what could not be compared.
    """
    findings: list[Finding] = []
    other: list[str] = []
    compared = 0
    for model, evaluation in measured.items():
        tasks = _object(_object(_object(claimed).get(model)).get("tasks"))
        other += [name for name in tasks if name not in evaluation.tasks]
        for name, result in evaluation.tasks.items():
            claim = _object(tasks.get(name))
            if claim.get("documents") != result.documents:
                other.append(name)
                continue
            compared += 1
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
    if other:
        total = compared + len(other)
        notes.append(f"{compared} of {total} results of the release could be compared")
    return findings, notes


def differences(theirs: Any, ours: Any) -> list[str]:
    """The keys in which two recipes differ, with both values; of very many, the first."""
    lines = [printable(line) for line in _differences(theirs, ours, "")]
    if (more := len(lines) - SHOWN_DIFFERENCES) > 0:
        lines[SHOWN_DIFFERENCES:] = [f"{more:,} more differences"]
    return lines


def _differences(theirs: Any, ours: Any, key: str) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _differences(theirs.get(name), ours.get(name), inner)
    elif theirs != ours:
        yield f"{_shown(key)}: {_shown(theirs)} in the release, {_shown(ours)} here"


def _agrees(said: Any, value: float, error: float | None) -> bool:
    if not isinstance(said, int | float):
        return said is None and not math.isfinite(value)
    allowed = CLAIM_FLOOR * abs(value)
    if error is not None and math.isfinite(error):
        allowed = max(allowed, CLAIM_ERRORS * error)
    return value - allowed <= said <= value + allowed  # an integer may be too large to subtract


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
