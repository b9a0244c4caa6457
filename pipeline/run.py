"""A run: the stages in order. Each reads what earlier ones wrote and never reaches back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, digest_of, new_folder, read_json, write_json
from pipeline.evaluation.completions import complete
from pipeline.evaluation.speed import forward_rates
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest import environment, read_manifest, write_manifest
from pipeline.export.manifest_schema import problems
from pipeline.export.maps import write_maps
from pipeline.export.proof import Proof, prove
from pipeline.progress import Progress
from pipeline.recipe_file import LoadedRecipe
from pipeline.release.card import write_card
from pipeline.release.report.page import write_report
from pipeline.sources.model_folder import digest_of_weights
from pipeline.sources.models import resolve_model
from pipeline.stages.base import Base, load_model, masking, open_base, within
from pipeline.stages.choose import Choice, choose
from pipeline.stages.cut import write_checkpoint
from pipeline.stages.drawn import drawn_curve, drawn_recipes
from pipeline.stages.judge import evaluate_and_judge
from pipeline.stages.learning import check_learning
from pipeline.stages.measure import Measurer
from pipeline.stages.output import check_inputs, check_target, claimed, finished
from pipeline.stages.preflight import preflight
from pipeline.stages.search import search
from pipeline.stages.shapes import cost_lines, head_note
from pipeline.stages.texts import Texts, prepare
from pipeline.surgery.cut import SurgeryReport

FORMAT = 6  # raise when the same recipe makes another output


@dataclass(frozen=True)
class Outcome:
    """What a run made.

    Attributes:
        folder: the released folder.
        manifest: content of its manifest.
        reused: the folder held exactly this run already.
    """

    folder: Path
    manifest: dict[str, Any]
    reused: bool


class Run:
    """One recipe, one output folder.

    Attributes:
        loaded: the recipe, as it was given.
        recipe: the same with the fractions that a search found, if it asks for one.
    """

    def __init__(self, loaded: LoadedRecipe, cache: Cache, progress: Progress) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.cache = cache
        self.progress = progress

    def execute(self, target: Path, force: bool = False) -> Outcome:
        """Produce `target`: score, select, cut, prove, evaluate, judge, describe.

        Args:
            target: the output folder; it appears whole or not at all.
            force: replace whatever is in it.

        Raises:
            UnlearnError: something is wrong; `target` is as it was.
        """
        check_target(target, self.recipe.name, force)
        check_inputs(target, self.loaded.local_paths(), self.cache.root)
        with claimed(target):
            return self._execute(target, force)

    def _execute(self, target: Path, force: bool) -> Outcome:
        self.progress.seconds.clear()
        with self.progress.stage("Base model"):
            resolved = resolve_model(
                self.recipe.model, self.loaded.folder, self.cache, self.progress
            )
            base = open_base(resolved)
        with within(self.recipe.model.max_memory, base, self.cache) as placed:
            return self._produce(target, force, placed)

    def _produce(self, target: Path, force: bool, base: Base) -> Outcome:
        with self.progress.stage("Texts"):
            texts = prepare(base, self.loaded, self.cache, self.progress)
        with self.progress.stage("Tasks and gates"):
            for each in (self.recipe, *drawn_recipes(self.loaded)):
                check_learning(each, base.architecture)
            run_key = self._run_key(base, texts, preflight(base, self.loaded))
        if (manifest := finished(target, run_key)) is not None:
            self.progress.say(f"{target} holds exactly this run already; nothing to do")
            return Outcome(target, manifest, reused=True)
        if (earlier := read_manifest(target)) is not None:
            self.progress.say(
                f"{target} holds an earlier output ({earlier.get('verdict')}), which this run will "
                "replace; --out keeps both"
            )
        measurer = Measurer(base, self.recipe, texts.sequences, self.cache, self.progress)
        found = None
        if self.recipe.select.until is not None:
            with self.progress.stage("Search for how much to remove"):
                found = search(base, self.recipe, texts, measurer, self.cache, self.progress)
            self.recipe = found.recipe
        with self.progress.stage("Scoring and selection"):
            choice = choose(base, self.recipe, measurer, self.progress)
            self._say_choice(choice)
        curve = None
        if self.recipe.curve is not None:
            curve = drawn_curve(self.loaded, base, texts, choice, self.cache, self.progress)
        with new_folder(target) as folder:
            manifest = self._make(folder, base, texts, measurer, choice) | {"run_key": run_key}
            manifest |= {"search": found.as_dict()} if found else {}
            manifest |= {"curve": curve} if curve else {}
            write_card(folder, manifest)
            write_report(folder, manifest)
            write_manifest(folder, manifest)
            if wrong := list(problems(read_json(folder / MANIFEST))):
                raise RuntimeError(f"the manifest does not follow its schema: {'; '.join(wrong)}")
            # A run takes minutes: what somebody put into the folder meanwhile is theirs too.
            check_target(target, self.recipe.name, force)
        return Outcome(target, manifest, reused=False)

    def _make(
        self, folder: Path, base: Base, texts: Texts, measurer: Measurer, choice: Choice
    ) -> dict[str, Any]:
        with self.progress.stage("Surgery"):
            report = self._cut(folder, base, choice)
        with self.progress.stage("Proof"):
            proof = self._prove(folder, base, texts, choice)
        digest = digest_of_weights(folder, str(folder))
        judged_by = replace(self.loaded, recipe=self.recipe)  # the control is of the found size
        judgement = evaluate_and_judge(
            base, folder, digest, texts, measurer, judged_by, self.cache, self.progress
        )
        with self.progress.stage("Prompts"):
            prompts_before = self._complete(base, base.model.path, base.model.weights_sha256)
            prompts_after = self._complete(base, folder, digest)
        with self.progress.stage("Speed of both"):
            dtype = self.recipe.evaluate.dtype
            speed = forward_rates({"base": base.model.path, "pruned": folder}, dtype, base.terms)
        evaluation = {**judgement.as_dict(), "forward_tokens_per_second": speed}
        write_json(folder / "evaluation.json", evaluation)
        for name, result in judgement.evaluations.items():
            shutil.copytree(result.samples_folder, folder / "samples" / name, ignore=_no_key)
        return {
            "name": self.recipe.name,
            "description": self.recipe.description,
            "language": self.recipe.language,
            "verdict": judgement.verdict.decision,
            "base": {
                "name": base.model.name,
                "licence": base.model.licence,
                "origin": base.model.origin,
                "files": base.settings,
                "weights_sha256": base.model.weights_sha256,
                "parameters": report.parameters[0],
                "bytes": report.bytes[0],
            },
            "pruned": {
                "weights_sha256": digest,
                "parameters": report.parameters[1],
                "bytes": report.bytes[1],
            },
            "recipe": self.loaded.recipe.what_makes_the_result(),
            "recipe_sha256": self.loaded.digest,
            "seed": self.recipe.seed,
            "environment": environment(),
            "corpora": texts.summary,
            "coverage": choice.measurement.coverage,
            "scores": choice.score_summary,
            "units": {
                kind: {"kept": kept, "total": total}
                for kind, (kept, total) in choice.plan.counts().items()
            },
            "tensors": {
                "sliced": report.sliced,
                "compensated": report.compensated,
                "untouched": report.untouched,
            },
            "proof": proof.to_dict(),
            "evaluation": evaluation,
            "prompts": [
                {"prompt": prompt, "before": one, "after": other}
                for prompt, one, other in zip(
                    self.recipe.evaluate.prompts, prompts_before, prompts_after, strict=True
                )
            ],
            "plan": json.loads(choice.plan.to_json()),
            "seconds": dict(self.progress.seconds),
        }

    def _cut(self, folder: Path, base: Base, choice: Choice) -> SurgeryReport:
        total = sum(tensor.size for tensor in base.tensors.values())
        with self.progress.bar("writing", total, "bytes") as advance:
            report = write_checkpoint(folder, base, choice, advance)
        if self.recipe.compensate.publish_maps:
            write_maps(folder, choice.maps)
        before, after = report.parameters
        self.progress.say(
            f"  {len(report.sliced) + len(report.compensated)} tensors sliced, "
            f"{len(report.compensated)} of them compensated, {report.untouched} untouched; "
            f"{before:,} → {after:,} parameters"
        )
        return report

    def _prove(self, folder: Path, base: Base, texts: Texts, choice: Choice) -> Proof:
        proof = prove(
            load_base=lambda: load_model(base.model.path, "float32", base.terms),
            load_pruned=lambda: load_model(folder, "float32", base.terms),
            masking=lambda model: masking(base, choice.plan, choice.maps, model),
            sequences_NS=texts.proof_NS,
        )
        kind = "held-out" if texts.held_out else "random"
        self.progress.say(
            f"  logits of {proof.tokens:,} {kind} tokens equal the masked original's up to "
            f"{proof.max_difference:.1e} (tolerance {proof.tolerance:g})"
        )
        return proof

    def _complete(self, base: Base, folder: Path, weights_sha256: str) -> list[str]:
        settings = self.recipe.evaluate
        return complete(
            folder, weights_sha256, settings.prompts, settings.dtype, self.cache, base.terms
        )

    def _run_key(self, base: Base, texts: Texts, tasks: list[str]) -> str:
        """Digest of all that determines the output."""
        return digest_of(
            {
                "format": FORMAT,
                "recipe": self.loaded.digest,
                "weights": base.model.weights_sha256,
                "settings": base.settings,
                "origin": base.model.origin,
                "licence": base.model.licence,
                "corpora": texts.summary,
                "tasks": tasks,
                "environment": environment(),
            }
        )

    def _say_choice(self, choice: Choice) -> None:
        coverage = ", ".join(f"{seen} {kind}" for kind, seen in choice.measurement.coverage.items())
        self.progress.say(f"  coverage: {coverage}")
        select = self.recipe.select
        for kind, (kept, total) in choice.plan.counts().items():
            if kept < total:
                note, layers = f"({1 - kept / total:.1%})", len(choice.plan.layers)
                if kind == "query_heads" and select.policy == "uniform":
                    note += head_note(select.attention.fraction, kept // layers, total // layers)
                self.progress.say(f"  {kind}: {total - kept:,} of {total:,} removed {note}")
        costs = choice.score_summary.get("shapes", {})
        for line in cost_lines(costs, select.ffn.fraction, select.policy):
            self.progress.say(f"  shape policy {line}")


def _no_key(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "key.json"]
