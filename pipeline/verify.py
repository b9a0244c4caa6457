"""Verification: is a release exactly its base minus the units of its plan, and nothing else?

Neither the release nor its manifest is trusted. The base is cut anew by the manifest's plan, one
tensor at a time, and everything that a loader reads is compared with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache as once
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError

from pipeline.cache import Cache, digest_of_file
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest import checked_manifest
from pipeline.export.manifest_schema import check_format, problems
from pipeline.export.maps import NAME as MAPS
from pipeline.export.maps import stored_maps
from pipeline.export.ragged import MODELING_FILE
from pipeline.progress import Progress
from pipeline.recipe.texts import Model
from pipeline.recipe_file import LoadedRecipe, load_recipe, shipped_recipe
from pipeline.release.checks.files import SIGNATURE, check_contents, check_extra, check_hashes
from pipeline.release.checks.findings import Finding, shortened
from pipeline.release.checks.pages import check_pages
from pipeline.release.checks.plan import check_claims, read_plan
from pipeline.release.checks.tensors import TensorReport, check_recomputed, check_tensors
from pipeline.release.checks.weights import check_map_file, check_weight_files, weight_files
from pipeline.release.signing import Signer, check_signature
from pipeline.selection.plan import Plan, Shape, overlap
from pipeline.sources.model_folder import digest_of_weights
from pipeline.sources.models import resolve_model
from pipeline.sources.releases import fetch_release, model_source
from pipeline.sources.remote_code import code_files, references
from pipeline.stages.base import Base, open_base, within
from pipeline.stages.choose import choose
from pipeline.stages.cut import cuts_and_config
from pipeline.stages.learning import check_learning
from pipeline.stages.measure import Measurer
from pipeline.stages.stand_ins import compensate
from pipeline.stages.texts import prepare
from pipeline.surgery.cut import parameters_of
from pipeline.surgery.projections import projections
from pipeline.surgery.safetensors_stream import INDEX_NAME, SINGLE_NAME, StoredTensor

Decision = Literal["VERIFIED", "DIFFERENT", "UNVERIFIED COMPENSATION"]
ALLOWANCES = ("allow_pickle", "trust_remote_code")  # of a recipe's `model`


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        folder: the release.
        base: name of the base that it was compared with.
        decision: the verdict.
        sentence: what the verdict means for this release.
        findings: everything that is not as it should be.
        notes: what a reader should know besides.
        tensors: what was compared.
        manifest_sha256: digest of the manifest, to be compared with a published one.
    """

    folder: Path
    base: str
    decision: Decision
    sentence: str
    findings: list[Finding]
    notes: list[str]
    tensors: TensorReport
    manifest_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        tensors = self.tensors
        return {
            "checkpoint": str(self.folder),
            "base": self.base,
            "verdict": self.decision,
            "sentence": self.sentence,
            "findings": [finding._asdict() for finding in self.findings],
            "notes": self.notes,
            "tensors": {
                "untouched": len(tensors.untouched),
                "sliced": len(tensors.sliced),
                "compensated": len(tensors.compensated),
                "unverified": len(tensors.unverified),
                "largest_change": tensors.largest_change,
            },
            "manifest_sha256": self.manifest_sha256,
        }


@dataclass(frozen=True)
class Release:
    """A release, and what its reader brings to check it with.

    Attributes:
        folder: the release.
        manifest: what it says of itself.
        base: the base model, as the reader has it.
        own: the reader's own recipe; None if none was needed.
        named_by_release: the release's name chose that recipe among the reader's.
    """

    folder: Path
    manifest: dict[str, Any]
    base: Base
    own: LoadedRecipe | None
    named_by_release: bool


@dataclass(frozen=True)
class Trust:
    """What the reader knows of a release from a place that is not the release.

    Attributes:
        manifest_sha256: digest that the manifest must have.
        signer: who must have signed it.
    """

    manifest_sha256: str | None = None
    signer: Signer = field(default_factory=Signer)


NO_TRUST = Trust()


def open_release(
    checkpoint: str,
    base_reference: str | None,
    recipe: str | None,
    overrides: Sequence[str],
    *,
    needs_recipe: bool,
    cache: Cache,
    progress: Progress,
) -> Release:
    """Fetch a release, and open the base that the reader names.

    Args:
        checkpoint: folder or Hub id of the release.
        base_reference: the base, as `model_source` reads it; default: the recipe's model.
        recipe: the reader's own recipe; default: the one of the name in the manifest among those
            that came with this installation: never a file of the release or the working folder.
        overrides: overrides of the recipe.
        needs_recipe: a recipe is needed even if the base is given.
        cache: keeps converted bases and digests.
        progress: where to report.

    Raises:
        InputError: the release has no manifest, there is no such recipe, or the base is unusable.
        BrokenError: the Hub cannot be reached.
    """
    with progress.stage("Release"):
        folder = fetch_release(checkpoint, progress)
        manifest = manifest_of(folder)
    with progress.stage("Base model"):
        own = None
        if needs_recipe or recipe is not None or base_reference is None:
            own = load_recipe(recipe or str(_shipped(manifest, folder)), overrides)
        base = _open(base_reference, own, manifest, cache, progress)
        if needs_recipe and base.model.code == "carried":
            raise InputError(
                "this release is computed by code of its base, which your recipe does not allow",
                where=checkpoint,
                remedy=f"read that code ({base.model.origin['remote_code']}), then set "
                "model.trust_remote_code in your recipe; the base's copy is run, never the "
                "release's",
            )
    return Release(folder, manifest, base, own, named_by_release=recipe is None)


def verify(
    release: Release,
    *,
    recompute: bool = False,
    trust: Trust = NO_TRUST,
    cache: Cache,
    progress: Progress,
) -> Verification:
    """Compare a release with its base.

    Args:
        release: the release and the reader's base.
        recompute: score the corpora of the reader's recipe again, and derive the compensation anew.
        trust: what the reader knows of the release from elsewhere.
        cache: keeps scoring.
        progress: where to report.

    Raises:
        InputError: the texts of the reader's recipe, or the signer's key, cannot be read.
        BrokenError: the Hub cannot be reached.
    """
    folder, manifest, base, own = release.folder, release.manifest, release.base, release.own
    digest = digest_of_file(folder / MANIFEST)
    findings: list[Finding] = []
    notes: list[str] = []
    expected = trust.manifest_sha256  # an empty one is an unset variable in CI, and matches nothing
    if expected is not None and digest != expected.lower():
        findings.append(Finding(MANIFEST, f"its SHA-256 is {digest}, not {expected!r}"))
    if trust.signer:
        with progress.stage("Signature"):
            findings += check_signature(folder, trust.signer)
    elif (folder / SIGNATURE).exists():
        notes.append(
            f"{SIGNATURE} was not checked: --public-key, or --identity with --identity-provider, "
            "says whose signature it must be"
        )
    with progress.stage("Files and tensors"), ThreadPoolExecutor(1) as pool:
        digest_once = once(digest_of_file)  # the weights' own digest follows from their files'
        hashes = pool.submit(check_hashes, folder, manifest, digest_once)
        shape = _said_shape(manifest)
        plan, wrong = read_plan(manifest, shape, base.architecture, base.dimensions, base.config)
        report = TensorReport()
        if plan is not None:
            compared, report = _compare(folder, manifest, base, plan, shape, progress)
            wrong += compared
        findings += hashes.result() + wrong
        findings += _check_weights_digest(folder, manifest, digest_once)
    findings += [
        Finding(MANIFEST, f"does not follow its schema: {text}") for text in problems(manifest)
    ]
    claimed = _claimed_base(manifest)
    if claimed.get("weights_sha256") != base.model.weights_sha256:
        notes.append("the base's weight files are not those that the manifest names")
    licences = str(claimed.get("licence")), str(base.model.licence)
    if base.model.licence is not None and licences[0].lower() != licences[1].lower():
        findings.append(Finding(MANIFEST, "base.licence is {}, found {}".format(*licences)))
    if base.carries_code:
        notes.append(
            "it is computed by code that comes with its base "
            f"({base.model.origin['remote_code']}), and needs trust_remote_code; its copy is "
            "compared with the base's to the byte, and was not run"
        )
    if recompute and own is not None and plan is not None:
        with progress.stage("Scoring and compensation anew"):
            findings += _recompute(
                folder, manifest, base, plan, report, own, cache, progress, notes
            )
    decision: Decision = "VERIFIED"
    if findings:
        decision = "DIFFERENT"
    elif report.unverified:
        decision = "UNVERIFIED COMPENSATION"
    sentence = _sentence(decision, plan, report)
    findings = [Finding(*map(shortened, finding)) for finding in findings]
    name = base.model.name
    return Verification(folder, name, decision, sentence, findings, notes, report, digest)


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a release.

    Raises:
        InputError: it has none that can be read, or one of a later format.
    """
    try:
        manifest = checked_manifest(folder)
    except (OSError, ValueError) as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(
            f"this folder has no {MANIFEST} that can be read: {why}",
            where=str(folder),
            remedy="give a checkpoint that `unlearn run` made, such as out/no-code",
        ) from error
    check_format(manifest, str(folder))
    return manifest


def _shipped(manifest: dict[str, Any], folder: Path) -> Path:
    """The recipe of the release's name that came with this installation.

    Whoever checks a release may stand in its folder: `recipes` there is the uploader's, code of
    tasks included.
    """
    name = str(manifest.get("name"))
    if (path := shipped_recipe(name)) is None:
        raise InputError(
            f"you have no recipe {name!r}, which this release names",
            where=str(folder),
            remedy="give your own copy of the recipe with --recipe, or the base with --base; "
            "`recipes` in the working folder and $UNLEARN_RECIPES are not looked at",
        )
    return path


def _open(
    reference: str | None,
    own: LoadedRecipe | None,
    manifest: dict[str, Any],
    cache: Cache,
    progress: Progress,
) -> Base:
    """Open the reader's base: what may be read and run is for the reader to say."""
    said = said_model(manifest)
    if reference is None:
        assert own is not None
        chosen, folder = own.recipe.model, own.folder
    else:
        model: dict[str, Any] = {"source": model_source(reference)}
        if own is not None:
            model |= {key: getattr(own.recipe.model, key) for key in ALLOWANCES}
        # To which type it is converted follows the release: if that lies, tensors differ.
        converted = {key: said[key] for key in ("dtype", "dequantise") if key in said}
        try:
            chosen = Model.model_validate(model | converted)
        except ValidationError:
            chosen = Model.model_validate(model)
        folder = Path()
    needs_code = said.get("trust_remote_code") is True
    if not needs_code:  # the stock class computes the release, and so it does its base
        chosen = chosen.model_copy(update={"trust_remote_code": False})
    resolved = resolve_model(chosen, folder, cache, progress)
    if needs_code and not resolved.code and references(resolved.path, resolved.name):
        origin = {**resolved.origin, "remote_code": ", ".join(code_files(resolved.path))}
        resolved = replace(resolved, code="carried", origin=origin)
    return open_base(resolved)


def _compare(
    folder: Path,
    manifest: dict[str, Any],
    base: Base,
    plan: Plan,
    shape: Shape,
    progress: Progress,
) -> tuple[list[Finding], TensorReport]:
    """Compare everything that the base determines."""
    released, findings = weight_files(folder)
    try:
        maps = stored_maps(folder)
    except SafetensorError as error:
        return [*findings, Finding(MAPS, f"cannot be read ({error})")], TensorReport()
    if not released:
        return findings, TensorReport()
    if maps is not None:
        findings += check_map_file(folder / MAPS, MAPS)
    cuts, config = cuts_and_config(base, plan, shape)
    cuts = {name: cut for name, cut in cuts.items() if name in base.tensors}
    said = _said_compensated(manifest)
    projections = _output_projections(base)
    findings += [
        Finding(name, "is said to be compensated, and is no output projection")
        for name in sorted(said - projections)
    ]
    total = sum(tensor.size for tensor in released)
    with progress.bar("comparing", total, "bytes") as advance:
        report = check_tensors(base.tensors, released, cuts, said & projections, maps, advance)
    findings += report.findings
    findings += check_weight_files(folder, released)
    if (folder / INDEX_NAME).exists() and (folder / SINGLE_NAME).exists():
        what = "stands beside an index of other weight files: loaders differ in which they read"
        findings.append(Finding(SINGLE_NAME, what))
    weights = frozenset({INDEX_NAME, *(tensor.file.name for tensor in released)})
    code = (MODELING_FILE,) if shape.ragged else ()
    findings += check_contents(
        folder,
        base.model.path,
        config,
        weights,
        code,
        carries_code=base.carries_code,
        maps=bool(said & projections),
    )
    derived = _derived(base, plan, released, cuts, manifest)
    findings += check_claims(manifest, derived, whole=("units", "tensors"))
    findings += check_extra(folder, manifest)
    findings += check_pages(folder)
    return findings, report


def _derived(
    base: Base,
    plan: Plan,
    released: list[StoredTensor],
    cuts: Iterable[str],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """What the manifest must say, by section."""
    compensated = _said_compensated(manifest)
    before = list(base.tensors.values())
    silent = manifest["format"] == 1 and "files" not in _claimed_base(manifest)
    base_files = {} if silent else {"files": base.settings}
    return {
        "units": {
            kind: {"kept": kept, "total": total} for kind, (kept, total) in plan.counts().items()
        },
        "tensors": {
            "sliced": sorted(set(cuts) - compensated),
            "compensated": sorted(compensated),
            "untouched": len(base.tensors.keys() - set(cuts)),
        },
        "base": {
            "parameters": parameters_of(before),
            "bytes": sum(t.size for t in before),
            **base_files,
        },
        "pruned": {"parameters": parameters_of(released), "bytes": sum(t.size for t in released)},
    }


def _check_weights_digest(
    folder: Path, manifest: dict[str, Any], digest: Callable[[Path], str]
) -> list[Finding]:
    try:
        found = digest_of_weights(folder, str(folder), digest)
    except InputError:
        return []  # no weights that can be read, which is a finding already
    return check_claims(manifest, {"pruned": {"weights_sha256": found}})


def _recompute(
    folder: Path,
    manifest: dict[str, Any],
    base: Base,
    plan: Plan,
    report: TensorReport,
    loaded: LoadedRecipe,
    cache: Cache,
    progress: Progress,
    notes: list[str],
) -> list[Finding]:
    """Derive the compensation from the corpora, and compare the released weights with it."""
    recipe = loaded.recipe
    check_learning(recipe, base.architecture)
    cache.root.mkdir(parents=True, exist_ok=True)
    # A cache of its own: what made the release on this machine is no witness for it.
    with (
        tempfile.TemporaryDirectory(prefix="recompute-", dir=cache.root) as folder_of_cache,
        within(recipe.model.max_memory, base, cache) as base,
    ):
        anew = Cache(Path(folder_of_cache))
        texts = prepare(base, loaded, anew, progress)
        measurer = Measurer(base, recipe, texts.sequences, anew, progress)
        choice = choose(base, recipe, measurer, progress)
        maps, _ = compensate(measurer, recipe, choice.measurement, plan)
    for kind, share in overlap(plan, choice.plan).items():
        notes.append(f"selected anew, {share:.1%} of the removed {kind} units are the same")
    released, _ = weight_files(folder)
    by_name = {tensor.name: tensor for tensor in released}
    names = sorted({*report.compensated, *report.unverified})
    cuts, _ = cuts_and_config(base, plan, _said_shape(manifest))
    findings, largest = check_recomputed(base.tensors, by_name, cuts, maps, names)
    if names and not findings:
        notes.append(
            f"compensated anew, the weights differ by at most {largest:.1e} of their change"
        )
        report.compensated, report.unverified = names, []
    return findings


def _said_compensated(manifest: dict[str, Any]) -> set[str]:
    tensors = manifest.get("tensors")
    names = tensors.get("compensated") if isinstance(tensors, dict) else None
    return {str(name) for name in names} if isinstance(names, list) else set()


def _said_shape(manifest: dict[str, Any]) -> Shape:
    """What the checkpoint may say of its plan; if it is not so, config and tensors differ."""
    select = _said(manifest, "select")
    attention = select.get("attention")
    relabel = isinstance(attention, dict) and attention.get("relabel") is True
    return Shape(select.get("policy") == "ragged", relabel)


def said_model(manifest: dict[str, Any]) -> dict[str, Any]:
    """How the base was read; if it is not so, config, files or tensors differ."""
    return _said(manifest, "model")


def _said(manifest: dict[str, Any], section: str) -> dict[str, Any]:
    recipe = manifest.get("recipe")
    found = recipe.get(section) if isinstance(recipe, dict) else None
    return found if isinstance(found, dict) else {}


def _output_projections(base: Base) -> set[str]:
    """Tensors that a compensation may change: all else is sliced, or the base's."""
    return {
        each.tensor
        for layer in range(base.dimensions.layers)
        for each in projections(base.architecture, base.dimensions, layer)
    }


def _claimed_base(manifest: dict[str, Any]) -> dict[str, Any]:
    base = manifest.get("base")
    return base if isinstance(base, dict) else {}


def _sentence(decision: Decision, plan: Plan | None, report: TensorReport) -> str:
    if plan is None or decision == "DIFFERENT":
        return "this is not exactly the base minus the units of its manifest"
    removed = " and ".join(
        f"{total - kept:,} of {total:,} {'FFN neurons' if kind == 'ffn' else kind}".replace(
            "_", " "
        )
        for kind, (kept, total) in plan.counts().items()
        if kept < total
    )
    removed = removed or "nothing"
    if decision == "UNVERIFIED COMPENSATION":
        return (
            f"exactly the base minus {removed}, except for {len(report.unverified)} compensated "
            "projections that nothing here can check"
        )
    compensation = (
        f" and the compensation of {len(report.compensated)} projections"
        if report.compensated
        else ""
    )
    return f"exactly the base minus {removed}{compensation}, nothing else"
