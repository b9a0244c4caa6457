"""`unlearn relearn`: how fast what was cut out is learned again, by the base and by others.

Base, release, a random cut of the same shape and any other model are fine-tuned in the same manner
on the same forget text, and measured on held-out text on the way. Nothing is verified here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, new_folder, write_csv, write_json
from pipeline.errors import InputError
from pipeline.evaluation.curves import Judges, Numbers, top1
from pipeline.evaluation.relearning import area_between, steps_to_regain
from pipeline.evaluation.tuning import Manner, rows_of
from pipeline.export.manifest_schema import problems
from pipeline.progress import Progress
from pipeline.recipe.judging import Control
from pipeline.release.report.relearned import learning_figure
from pipeline.sources.model_folder import digest_of_weights
from pipeline.stages.base import within
from pipeline.stages.cut import make_control
from pipeline.stages.measure import Measurer
from pipeline.stages.output import check_own_folder
from pipeline.stages.points import judges_by
from pipeline.stages.relearning import Learned, Learner
from pipeline.stages.search import as_found
from pipeline.stages.texts import Texts, prepare
from pipeline.verify import Release

BASE, PRUNED, RANDOM = "base", "pruned", "random"
FILES = ("relearn.csv", "relearn.json", "relearn.svg")


@dataclass(frozen=True)
class Relearning:
    """What each model learned again.

    Attributes:
        checkpoint: the release.
        manner: how they learned.
        tokens: of the forget text that they learned.
        judges: the texts, and what the base hits in them before.
        models: by name, the base first.
    """

    checkpoint: str
    manner: Manner
    tokens: int
    judges: Judges
    models: dict[str, Learned]

    @property
    def steps(self) -> list[int]:
        """After which the models were measured."""
        return self.manner.measured_at()

    def drops(self, name: str) -> tuple[Numbers, Numbers]:
        """Forget drop and retain drop of a model at each measured step."""
        return self.judges.drops(self.models[name].hits)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what was measured, for a CSV file."""
        for name, learned in self.models.items():
            for step, hits, lost, cost in zip(
                self.steps, learned.hits, *self.drops(name), strict=True
            ):
                yield {
                    "model": name,
                    "step": step,
                    "forget_drop": round(float(lost), 6),
                    "retain_drop": round(float(cost), 6),
                    **{f"top1 {text}": round(top1(own), 6) for text, own in sorted(hits.items())},
                }

    def figures(self) -> dict[str, dict[str, Any]]:
        """What each model's curve comes to."""
        base, _ = self.drops(BASE)
        found = {}
        for name, learned in self.models.items():
            forget, retain = self.drops(name)
            found[name] = {
                "parameters": learned.parameters,
                "trained": learned.trained,
                "forget_drop": round(float(forget[0]), 6),
                "forget_drop_after": round(float(forget[-1]), 6),
                "retain_drop": round(float(retain[0]), 6),
                "retain_drop_after": round(float(retain[-1]), 6),
                "steps_to_half": _rounded(steps_to_regain(self.steps, forget)),
                "area": round(area_between(self.steps, forget, base), 6),
                "seconds": learned.seconds,
            }
        return found

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and `relearn.json`."""
        return {
            "checkpoint": self.checkpoint,
            "manner": asdict(self.manner),
            "tokens": self.tokens,
            "texts": dict(self.judges.sides),
            "figures": self.figures(),
            "points": list(self.rows()),
        }


def relearn(
    release: Release,
    others: Mapping[str, Path],
    manner: Manner,
    tokens: int,
    judged: int,
    cache: Cache,
    progress: Progress,
) -> Relearning:
    """Let base, release, a random cut and others learn scored forget text of the reader's recipe.

    Args:
        release: the release, with the reader's base and recipe.
        others: further checkpoints of the same base, by name.
        manner: how all of them learn.
        tokens: of forget text that they learn.
        judged: tokens of each text on which they are measured.
        cache: keeps scoring, and what each model learned.
        progress: where to report.

    Raises:
        InputError: a model or a text cannot be used.
        BrokenError: the Hub cannot be reached.
    """
    base, loaded = release.base, release.own
    assert loaded is not None
    if (wrong := next(problems(release.manifest), None)) is not None:
        raise InputError(
            f"its manifest does not follow its schema: {wrong}",
            where=str(release.folder),
            remedy="`unlearn verify` says whether the release is what it says",
        )
    with progress.stage("Texts"):
        texts = prepare(base, loaded, cache, progress)
        rows_NT = rows_of(texts.sequences["forget"], tokens, manner.seed)
        learner = Learner(
            base, loaded.recipe, texts.held_out, judged, rows_NT, manner, cache, progress
        )
    with progress.stage("A random cut of the same shape"):
        random = _random_cut(release, texts, cache, progress)
    models: dict[str, Learned] = {}
    folders = {BASE: base.model.path, PRUNED: release.folder, RANDOM: random, **others}
    for name, folder in folders.items():
        with progress.stage(f"Relearning: {name}"):
            models[name] = learner.learned(folder, digest_of_weights(folder, str(folder)))
        if name == BASE:  # the first; a text that it cannot judge ends it before the others learn
            judges = judges_by(learner.sides, models[BASE].hits[0], base.model.name)
    if models[PRUNED].parameters != models[RANDOM].parameters:
        progress.say("The random cut is of another size: your recipe is not what made the release")
    return Relearning(str(release.folder), manner, rows_NT.numel(), judges, models)


def check_others(others: Mapping[str, Path]) -> None:
    """Refuse what is no checkpoint, and names that are taken.

    Raises:
        InputError: one of them is.
    """
    for name, folder in others.items():
        if name in (BASE, PRUNED, RANDOM):
            raise InputError(
                f"{name!r} is a model that is compared anyway",
                where="--also",
                remedy="give it another name",
            )
        if not (folder / "config.json").is_file():
            raise InputError(
                "there is no checkpoint in this folder",
                where=str(folder),
                remedy="give a folder with config.json and safetensors files",
            )


def check_place(target: Path, release: Path) -> None:
    """Refuse a folder that holds something else: it will be replaced as a whole.

    Raises:
        InputError: it does, or it lies in the release.
    """
    if target.resolve().is_relative_to(release.resolve()):
        raise InputError(
            "nothing is written into a release: its manifest lists all that is in it",
            where=str(target),
            remedy="choose another place with --out",
        )
    check_own_folder(target, FILES, "relearn")


def write(found: Relearning, target: Path) -> list[str]:
    """Write what was learned into a folder that appears whole or not at all; return the files."""
    rows = list(found.rows())
    lines = {
        name: [(step, 1 - float(drop)) for step, drop in zip(found.steps, drops, strict=True)]
        for name, (drops, _) in ((name, found.drops(name)) for name in found.models)
    }
    with new_folder(target) as folder:
        write_csv(folder / "relearn.csv", rows)
        write_json(folder / "relearn.json", found.as_dict())
        (folder / "relearn.svg").write_bytes(learning_figure(lines).file())
    return sorted(path.name for path in target.iterdir())


def _random_cut(release: Release, texts: Texts, cache: Cache, progress: Progress) -> Path:
    assert release.own is not None
    recipe = as_found(release.own.recipe, release.manifest)
    recipe = recipe.model_copy(update={"control": recipe.control or Control()})
    with within(recipe.model.max_memory, release.base, cache) as base:
        measurer = Measurer(base, recipe, texts.sequences, cache, progress)
        return make_control(base, recipe, measurer, cache, progress)[0]


def _rounded(steps: float | None) -> float | None:
    return None if steps is None else round(steps, 2)
