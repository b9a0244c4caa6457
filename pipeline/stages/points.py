"""Points of a curve: the base masked by a choice, and asked for the next tokens of held-out text.

Each is cached by what determined it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import Cache, digest_of, read_json, write_json
from pipeline.errors import InputError
from pipeline.evaluation.curves import Hits, Judges
from pipeline.evaluation.loading import default_device, key_of_model
from pipeline.evaluation.model import TokenBudgetLM, load_lm
from pipeline.evaluation.next_token import Document, predict, read_documents
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe.fields import Side
from pipeline.selection.plan import Plan
from pipeline.stages.base import Base, masking
from pipeline.stages.choose import Choice
from pipeline.stages.measure import Cost
from pipeline.surgery.compensation import maps_digest

FORMAT = 1


@dataclass(frozen=True)
class Point:
    """One cut of a curve.

    Attributes:
        fraction: as asked for.
        removed: share of the kind's units that is gone.
        hits: by text, hits and tokens of each document.
        losses: by text, the loss a token in nats.
        cost: of the cut, and not of judging it; None of the base.
    """

    fraction: float
    removed: float
    hits: Hits
    losses: Mapping[str, float]
    cost: Cost | None = None


class Judge:
    """Masks the base by a choice, and asks it for the next tokens of some held-out texts.

    Whole sources that are held out judge where a side has any, else its held-out documents.

    Args:
        base: the base model.
        recipe: names the texts, and how models are evaluated.
        files: by corpus name, a JSONL file of documents.
        tokens: of each text.
        cache: keeps the points.
        progress: where to report.

    Raises:
        InputError: a side has no held-out text.
    """

    def __init__(
        self,
        base: Base,
        recipe: Recipe,
        files: Mapping[str, Path],
        tokens: int,
        cache: Cache,
        progress: Progress,
    ) -> None:
        self.base, self.recipe, self.cache, self.progress = base, recipe, cache, progress
        self.sides = judging_sides(recipe)
        self.documents: dict[str, list[Document]] = {
            name: read_documents(files[name], base.tokenizer, tokens) for name in self.sides
        }

    @cached_property
    def _lm(self) -> TokenBudgetLM:
        return self._load(self.base.model.path)

    def point(self, fraction: float, choice: Choice | None) -> Point:
        """Return a choice's point; of no choice, the base."""
        model = self.base.model
        key = {
            **self._key(model.path, model.weights_sha256),
            "plan": choice.plan.to_json() if choice else None,
            "maps": maps_digest(choice.maps) if choice else None,
        }
        folder = self.cache.get("curve", key, lambda new: self._ask(new, choice))
        found = read_json(folder / "documents.json")
        removed = _share(choice.plan) if choice else 0.0
        hits = hits_of(found)
        sums = {name: np.array(own["loss"], dtype=float).sum(axis=0) for name, own in found.items()}
        losses = {name: float(total / tokens) for name, (total, tokens) in sums.items()}
        return Point(fraction, removed, hits, losses, choice.cost if choice else None)

    def judges(self) -> Judges:
        """The texts with what the base hits in them.

        Raises:
            InputError: it hits nothing in one of them.
        """
        return judges_by(self.sides, self.point(0.0, None).hits, self.base.model.name)

    def hits(self, folder: Path, weights_sha256: str) -> Hits:
        """What a checkpoint of the base's family hits, no mask on it."""
        key = {**self._key(folder, weights_sha256), "plan": None, "maps": None}
        asked = self.cache.get(
            "curve", key, lambda new: self._answers(new, self._load(folder), nullcontext())
        )
        return hits_of(read_json(asked / "documents.json"))

    def _key(self, folder: Path, weights_sha256: str) -> dict[str, Any]:
        dtype, terms = self.recipe.evaluate.dtype, self.base.terms
        return {
            **key_of_model(folder, weights_sha256, dtype, default_device(), terms),
            "format": FORMAT,
            "lm_eval": version("lm_eval"),
            "documents": digest_of(self.documents),
        }

    def _load(self, folder: Path) -> TokenBudgetLM:
        settings = self.recipe.evaluate
        return load_lm(
            folder,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            progress=self.progress,
            terms=self.base.terms,
        )

    def _ask(self, folder: Path, choice: Choice | None) -> None:
        lm = self._lm
        masks = masking(self.base, choice.plan, choice.maps, lm.model) if choice else nullcontext()
        self._answers(folder, lm, masks)

    def _answers(
        self, folder: Path, lm: TokenBudgetLM, masks: AbstractContextManager[None]
    ) -> None:
        found = {}
        with masks:
            for name, documents in self.documents.items():
                lm.label = name
                found[name] = predict(lm, documents)
        write_json(folder / "documents.json", found)


def judging_sides(recipe: Recipe) -> dict[str, Side]:
    """The corpora that judge, by their side.

    Raises:
        InputError: a side has no held-out text.
    """
    sides: dict[str, Side] = {}
    for side in ("forget", "retain"):
        own = [corpus for each, corpus in recipe.corpora if each == side and corpus.use != "scored"]
        whole = [corpus for corpus in own if corpus.use == "held_out"]
        if not own:
            raise InputError(
                f"no {side} text is held out, so that nothing judges a point",
                where=side,
                remedy="give a corpus use: both or held_out",
            )
        sides |= {corpus.name: side for corpus in whole or own}
    return sides


def judges_by(sides: Mapping[str, Side], base: Hits, name: str) -> Judges:
    """The texts with what the base hits in them.

    Args:
        sides: by text, the side on which it is.
        base: what the base hits.
        name: of the base, for the error.

    Raises:
        InputError: it hits nothing in one of them.
    """
    for text, hits in base.items():
        if not hits[:, 0].any():
            raise InputError(
                f"the base predicts no token of {text} rightly, and no drop is a share of that",
                where=name,
                remedy="judge by other texts, or by more of them",
            )
    return Judges(sides, base)


def hits_of(found: Mapping[str, Mapping[str, Any]]) -> Hits:
    """The hits among what `predict` answered, by text."""
    return {name: np.array(own["top1"], dtype=float) for name, own in found.items()}


def _share(plan: Plan) -> float:
    """Share of the units that is gone, of the kind of which most is."""
    return max(1 - kept / total for kept, total in plan.counts().values())
