"""Validation: what CI runs on a released model. Verified, evaluated anew, and judged.

The release gives at most the name of one of the validator's own recipes: tasks, texts, limits and
gates are those of that recipe, and where the release's differ, that is said. A release that is not
exactly its base minus its units is not evaluated at all. One whose compensated projections nothing
here can check does not pass, unless the validator's recipe publishes no maps either.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.evaluation.completions import complete
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.progress import Progress
from pipeline.recipe.judging import Evaluate
from pipeline.release.checks.claims import (
    check_evaluation,
    check_one_voice,
    check_prompts,
    differences,
)
from pipeline.release.checks.findings import Finding, shortened
from pipeline.release.checks.gate_claims import check_gates
from pipeline.release.checks.made import of_this_version
from pipeline.selection.plan import Plan
from pipeline.sources.model_folder import digest_of_weights
from pipeline.stages.base import Base, within
from pipeline.stages.judge import Judgement, evaluate_and_judge
from pipeline.stages.measure import Measurer
from pipeline.stages.preflight import preflight
from pipeline.stages.search import as_found
from pipeline.stages.texts import prepare
from pipeline.verify import NO_TRUST, Release, Trust, Verification, verify

SHOWN_NOTES = 200


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        name: name of the validator's recipe.
        recipe: file that it was read from.
        verification: whether the release is what it says.
        judgement: both evaluations and the gates; None if the release is not what it says.
        findings: figures of the release that were not measured on these weights.
        notes: where the release's recipe differs, and what could not be compared.
        unchecked: why nobody here can say what the compensated projections are; empty if somebody
            can.
        accepted: the validator's recipe publishes no maps, so that they are accepted unchecked.
        verdict: PASS, FAIL, INCONCLUSIVE, UNVERIFIED COMPENSATION or UNJUDGED.
        seconds: time of the evaluation alone, and of everything.
    """

    name: str
    recipe: Path
    verification: Verification
    judgement: Judgement | None
    findings: list[Finding]
    notes: list[str]
    unchecked: str
    accepted: bool
    verdict: str
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and for reports."""
        return {
            "name": self.name,
            "recipe": str(self.recipe),
            "verdict": self.verdict,
            "verification": self.verification.as_dict(),
            "evaluation": self.judgement.as_dict() if self.judgement else None,
            "findings": [finding._asdict() for finding in self.findings],
            "unchecked": self.unchecked,
            "accepted": self.accepted,
            "notes": self.notes,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }


def validate(
    release: Release,
    *,
    recompute: bool = False,
    trust: Trust = NO_TRUST,
    cache: Cache,
    progress: Progress,
) -> Validation:
    """Verify a release, evaluate base and release by one's own recipe, and judge.

    Args:
        release: the release, with the validator's base and recipe.
        recompute: derive the compensation anew from the texts of the validator's recipe.
        trust: what the reader knows of the release from elsewhere.
        cache: the validator's own; finished tasks are found in it.
        progress: where to report.

    Raises:
        InputError: a text or a task of the recipe cannot be used, or the release chose one of the
            validator's recipes that has no gates.
        BrokenError: the Hub cannot be reached.
    """
    started = time.monotonic()
    loaded = release.own
    assert loaded is not None
    if release.named_by_release and not loaded.recipe.gates:
        raise InputError(
            f"your recipe {loaded.recipe.name!r}, which the release names, has no gates",
            where=str(loaded.path),
            remedy="name the recipe to judge by with --recipe",
        )
    verification = verify(release, recompute=recompute, trust=trust, cache=cache, progress=progress)
    theirs, ours = release.manifest.get("recipe"), loaded.recipe.what_makes_the_result()
    notes = [f"recipe, {line}" for line in differences(theirs, ours)]
    findings: list[Finding] = []
    judgement, verdict, evaluated = None, "FAIL", 0.0
    if verification.decision != "DIFFERENT":
        with progress.stage("Texts"):
            texts = prepare(release.base, loaded, cache, progress)
        with progress.stage("Tasks and gates"):
            preflight(release.base, loaded)
        began = time.monotonic()
        digest = digest_of_weights(release.folder, str(release.folder))
        with within(loaded.recipe.model.max_memory, release.base, cache) as base:
            judgement = evaluate_and_judge(
                base,
                release.folder,
                digest,
                texts,
                Measurer(base, loaded.recipe, texts.sequences, cache, progress),
                replace(loaded, recipe=as_found(loaded.recipe, release.manifest)),
                cache,
                progress,
            )
            evaluated = time.monotonic() - began
            with progress.stage("Completions"):
                prompts = _check_prompts(release, base, digest, loaded.recipe.evaluate, cache)
        claimed = release.manifest["evaluation"]  # it follows its schema: it would be DIFFERENT
        for wrong, others in (
            check_one_voice(release.folder, release.manifest),
            check_evaluation(claimed, judgement.evaluations),
            check_gates(
                claimed,
                theirs,
                judgement.evaluations,
                judgement.verdict,
                same_words=of_this_version(release.manifest),
            ),
        ):
            findings += wrong
            notes += others
        notes += prompts
        findings += _check_control(judgement, release.manifest)
        verdict = "FAIL" if findings else judgement.verdict.decision
    if (more := len(notes) - SHOWN_NOTES) > 0:  # a release may name thousands of tasks
        notes[SHOWN_NOTES:] = [f"{more:,} more notes"]
    notes = [shortened(note) for note in notes]
    unchecked = _unchecked(verification)
    compensate = loaded.recipe.compensate
    accepted = bool(unchecked) and compensate.enabled and not compensate.publish_maps
    if unchecked and not accepted and verdict in ("PASS", "UNJUDGED"):
        verdict = "UNVERIFIED COMPENSATION"
    seconds = {"evaluation": evaluated, "total": time.monotonic() - started}
    return Validation(
        loaded.recipe.name,
        loaded.path,
        verification,
        judgement,
        findings,
        notes,
        unchecked,
        accepted,
        verdict,
        seconds,
    )


def _check_control(judgement: Judgement, manifest: Mapping[str, Any]) -> list[Finding]:
    """Whether the control of a release that a search made is as large as the release."""
    control, found = judgement.control, manifest.get("search")
    if (
        control is None
        or not found
        or control.counts() == Plan.from_dict(manifest["plan"]).counts()
    ):
        return []
    return [Finding(MANIFEST, f"search.portion is {found['portion']}, which cuts another number")]


def _check_prompts(
    release: Release, base: Base, pruned_sha256: str, settings: Evaluate, cache: Cache
) -> list[str]:
    """Complete the validator's own prompts: how many a release has is its uploader's choice."""
    models = {
        "before": (base.model.path, base.model.weights_sha256),
        "after": (release.folder, pruned_sha256),
    }
    written = {
        which: complete(folder, digest, settings.prompts, settings.dtype, cache, base.terms)
        for which, (folder, digest) in models.items()
    }
    return check_prompts(release.manifest["prompts"], settings.prompts, written)


def _unchecked(verification: Verification) -> str:
    if verification.decision != "UNVERIFIED COMPENSATION":
        return ""
    count = len(verification.tensors.unverified)
    return (
        f"{count} output projections could be anything: the release has no maps of their "
        "compensation, and --recompute was not asked for"
    )
