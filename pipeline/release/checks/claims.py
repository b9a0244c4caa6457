"""What a release says of its evaluation: in one voice, and against the same measured anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cache import read_json, same_json
from pipeline.evaluation.results import MEAN, Evaluation, TaskResult
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.checks.findings import Finding, printable
from pipeline.release.checks.made import check_made

EVALUATION = "evaluation.json"
SHOWN_DIFFERENCES = 100
# Other kernels round otherwise: on the same items a metric moves by a fraction of its standard
# error. What moves by more was not measured on these weights.
CLAIM_ERRORS = 1.0
CLAIM_FLOOR = 0.002  # where there is no standard error, as a share of the value
CLAIM_SPREAD = 0.1  # of a standard error, as a share of it
CLAIM_TOKENS = 0.1  # as a share: a model that writes ends elsewhere if it writes something else
EXACT = ("task", "side", "n", "higher_is_better", "estimator")
MODELS = ("base", "pruned", "control")


def check_one_voice(folder: Path, manifest: Mapping[str, Any]) -> tuple[list[Finding], list[str]]:
    """Compare what the files of a release say of its results with what its manifest says.

    `evaluation.json`, the card and the report are made from the manifest; a release may leave them
    out, and what another version made of it cannot be made again.

    Returns:
        What is said otherwise, and what could not be compared.
    """
    claimed = manifest.get("evaluation")
    findings = []
    if manifest.get("verdict") != _object(claimed).get("verdict"):
        findings.append(Finding(MANIFEST, "its verdict is not that of its evaluation"))
    if (path := folder / EVALUATION).is_file():
        # It is a part of the manifest, so one that is larger need not be read into memory.
        same = path.stat().st_size <= (folder / MANIFEST).stat().st_size
        try:
            same = same and same_json(read_json(path), claimed)
        except ValueError:
            same = False
        if not same:
            findings.append(Finding(EVALUATION, "is not what the manifest says of the evaluation"))
    wrong, notes = check_made(folder, manifest)
    return findings + wrong, notes


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
    section = _object(claimed)
    for model in sorted({*measured, *(name for name in MODELS if section.get(name))}):
        evaluation = measured.get(model)
        own = evaluation.tasks if evaluation else {}
        tasks = _object(_object(section.get(model)).get("tasks"))
        other += [name for name in tasks if name not in own]
        for name, result in own.items():
            claim = _object(tasks.get(name))
            if claim.get("documents") != result.documents:
                other.append(name)
                continue
            compared += 1
            findings += [
                Finding(EVALUATION, f"says {what}") for what in _wrong(claim, result, model)
            ]
    notes = [
        f"not compared with the release's figures, which are of other items: {name}"
        for name in dict.fromkeys(other)
    ]
    if other:
        total = compared + len(other)
        notes.append(f"{compared} of {total} results of the release could be compared")
    return findings, notes


def check_prompts(
    claimed: Any, prompts: Sequence[str], written: Mapping[str, Sequence[str]]
) -> list[str]:
    """Compare claimed completions with those that the models write here.

    Where two words are nearly as likely, other kernels choose the other one and go on from there,
    so what differs is a note and no finding.

    Args:
        claimed: what the release says that the models write.
        prompts: the prompts that were completed here.
        written: their completions "before" and "after", in the order of the prompts.
    """
    notes = []
    claims = [_object(claim) for claim in claimed] if isinstance(claimed, list) else []
    for claim in claims:
        prompt = claim.get("prompt")
        shown = _shown(repr(prompt))
        if prompt not in prompts:
            notes.append(f"not compared: what the models write after {shown}")
            continue
        for which, model in (("before", "base"), ("after", "pruned")):
            if claim.get(which) != written[which][prompts.index(prompt)]:
                notes.append(f"the {model} model goes on otherwise here after {shown}")
    return notes


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


def _wrong(claim: dict[str, Any], result: TaskResult, model: str) -> Iterator[str]:
    """Yield what a claim about a task says otherwise than the same measured."""
    of = f"of {model} on {result.task}"
    for key in EXACT:
        if claim.get(key) != getattr(result, key):
            measured = _shown(getattr(result, key))
            yield f"{key} {of} is {_shown(claim.get(key))}, measured {measured}"
    if not _within(claim.get("tokens"), result.tokens, CLAIM_TOKENS * result.tokens):
        yield f"tokens {of} is {_shown(claim.get('tokens'))}, measured {result.tokens}"
    figures, errors = _object(claim.get("metrics")), _object(claim.get("stderr"))
    for metric in sorted(figures.keys() - result.metrics.keys()):
        yield f"{metric} {of} is {_shown(figures[metric])}, which was not measured"
    for metric in sorted(errors.keys() - result.stderr.keys()):
        yield f"the error of {metric} {of} is {_shown(errors[metric])}, which was not measured"
    for metric, value in result.metrics.items():
        said, error = figures.get(metric), result.stderr.get(metric)
        # Where all documents are alike there is no error, and one may yet fall otherwise elsewhere.
        one = 1 / result.n if error == 0 and result.estimator.get(metric) == MEAN else 0.0
        if not _agrees(said, value, error, one):
            yield f"{metric} {of} is {_shown(said)}, measured {_shown(value)}"
            continue
        # The error moves with its figure, and by no more than that.
        moved = abs(said - value) if isinstance(said, int | float) else 0.0
        spread = math.nan if error is None else error
        if not _within(errors.get(metric), spread, moved + CLAIM_SPREAD * spread):
            said_error = _shown(errors.get(metric))
            yield f"the error of {metric} {of} is {said_error}, measured {_shown(error)}"


def _agrees(said: Any, value: float, error: float | None, least: float) -> bool:
    allowed = max(CLAIM_FLOOR * abs(value), least)
    if error is not None and math.isfinite(error):
        allowed = max(allowed, CLAIM_ERRORS * error)
    return _within(said, value, allowed)


def _within(said: Any, value: float, allowed: float) -> bool:
    if not isinstance(said, int | float):
        return said is None and not math.isfinite(value)
    return value - allowed <= said <= value + allowed  # an integer may be too large to subtract


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
