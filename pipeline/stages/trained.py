"""The base, trained away from forget text by another way to unlearn, within a time.

Each of a way's trials gets the same share of the time. A trial is measured every few steps on
selection text, and the state that has forgotten most within the budget of retain text is kept. The
text that judges is not looked at.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.baselines.objective import Subject, Trial
from pipeline.baselines.ways import Way
from pipeline.cache import Cache, digest_of, read_json, write_json
from pipeline.errors import InputError
from pipeline.evaluation.curves import LIMIT, Hits, Judges
from pipeline.evaluation.loading import default_device, key_of_model
from pipeline.evaluation.model import TokenBudgetLM, load_lm
from pipeline.evaluation.next_token import Document, predict
from pipeline.evaluation.quiet import quiet
from pipeline.evaluation.tuning import batches, descend
from pipeline.export.checkpoint import copy_companions
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.stages.base import Base
from pipeline.stages.points import hits_of

FORMAT = 1
DTYPE = "float32"
MODEL, FOUND = "model", "found.json"


@dataclass(frozen=True)
class Budget:
    """What a way to unlearn may use.

    Attributes:
        seconds: for all of its trials, measuring included.
        retain_drop: what it may cost on selection text.
        every: steps between two measurements.
    """

    seconds: float
    retain_drop: float
    every: int


@dataclass(frozen=True)
class Trained:
    """What a way to unlearn came to.

    Attributes:
        folder: the checkpoint; None if nothing within the budget forgot anything.
        seconds: of all trials.
        tried: by trial, what was measured on selection text.
        chosen: the trial and the step of the checkpoint.
    """

    folder: Path | None
    seconds: float
    tried: list[dict[str, Any]]
    chosen: dict[str, Any] | None


class Trainer:
    """Trains the base by one way after the other, on the same rows.

    Args:
        base: the base model.
        recipe: how models are evaluated.
        rows: by side, token ids [N, T] of the rows that are trained on.
        documents: by text, what is asked while training: selection text.
        judges: these texts, and what the base hits in them.
        budget: what each way may use.
        cache: keeps what came of each way.
        progress: where to report.
    """

    def __init__(
        self,
        base: Base,
        recipe: Recipe,
        rows: Mapping[str, Tensor],
        documents: Mapping[str, list[Document]],
        judges: Judges,
        budget: Budget,
        cache: Cache,
        progress: Progress,
    ) -> None:
        self.base, self.recipe, self.rows, self.documents = base, recipe, rows, documents
        self.judges, self.budget = judges, budget
        self.cache, self.progress = cache, progress

    def trained(self, way: Way) -> Trained:
        """The best that a way came to within its budget."""
        model, terms = self.base.model, self.base.terms
        key = {
            **key_of_model(model.path, model.weights_sha256, DTYPE, default_device(), terms),
            "format": FORMAT,
            "lm_eval": version("lm_eval"),
            "way": way.name,
            "grid": way.grid,
            "seed": self.recipe.seed,
            "rows": {side: _digest(rows_NT) for side, rows_NT in self.rows.items()},
            "documents": digest_of(self.documents),
            "budget": asdict(self.budget),
            "stored": self.recipe.model.dtype,
        }
        if self.cache.find("trained", key):
            self.progress.say("  trained before, found in the cache")
        folder = self.cache.get("trained", key, lambda new: self._train(new, way))
        found = read_json(folder / FOUND)
        kept = folder / MODEL if found["chosen"] else None
        return Trained(kept, found["seconds"], found["tried"], found["chosen"])

    def _train(self, target: Path, way: Way) -> None:
        started = time.monotonic()
        tried: list[dict[str, Any]] = []
        best: dict[str, Any] | None = None
        share = self.budget.seconds / len(way.grid)
        for number, trial in enumerate(way.grid, start=1):
            best = self._try(way, trial, started + share * number, best, tried, target / MODEL)
        seconds = round(time.monotonic() - started, 1)
        write_json(target / FOUND, {"seconds": seconds, "tried": tried, "chosen": best})

    def _try(
        self,
        way: Way,
        trial: Trial,
        deadline: float,
        best: dict[str, Any] | None,
        tried: list[dict[str, Any]],
        target: Path,
    ) -> dict[str, Any] | None:
        """Train until the time is up or too much is lost; return the best that is known now."""
        lm, seed = self._load(), self.recipe.seed
        subject = Subject(lm.model, self.base.architecture, seed)
        objective = way.prepare(subject, trial.strength)
        chosen = set(map(id, objective.parameters))
        for parameter in lm.model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        forget, retain = (batches(self.rows[side], seed) for side in ("forget", "retain"))
        steps = descend(
            objective.parameters,
            lambda: objective.loss(next(forget), next(retain)),
            learning_rate=trial.learning_rate,
        )
        try:
            for step in steps:
                late = time.monotonic() >= deadline
                if step % self.budget.every and not late:
                    continue
                point = {**trial._asdict(), "step": step, **self._measured(lm)}
                tried.append(point)
                self._say(point)
                within = point["retain_drop"] <= self.budget.retain_drop
                if within and point["forget_drop"] > (best["forget_drop"] if best else 0.0):
                    best = point
                    self._keep(lm.model, target)
                if late or point["retain_drop"] > LIMIT:
                    break
        except InputError as error:  # the loss of an ascent has no floor
            self.progress.say(f"  {error.what}")
        return best

    def _load(self) -> TokenBudgetLM:
        return load_lm(
            self.base.model.path,
            dtype=DTYPE,
            batch_tokens=self.recipe.evaluate.batch_tokens,
            progress=Progress("quiet"),
            terms=self.base.terms,
        )

    def _measured(self, lm: TokenBudgetLM) -> dict[str, float]:
        answers = {name: predict(lm, own) for name, own in self.documents.items()}
        hits: Hits = hits_of(answers)
        forget, retain = self.judges.drop(hits)
        return {"forget_drop": round(forget, 6), "retain_drop": round(retain, 6)}

    def _keep(self, model: Any, target: Path) -> None:
        """Store the model as it is now, in the type of the base."""
        dtype = getattr(torch, self.recipe.model.dtype)
        converted: dict[int, Tensor] = {}  # by place, so that what is tied stays one tensor
        state = {
            name: converted.setdefault(tensor.data_ptr(), tensor.to(dtype))
            for name, tensor in model.state_dict().items()
        }
        with quiet():
            model.save_pretrained(target, state_dict=state)
        shutil.copyfile(self.base.model.path / "config.json", target / "config.json")
        copy_companions(self.base.model.path, target, code=self.base.carries_code)

    def _say(self, point: Mapping[str, float]) -> None:
        self.progress.say(
            f"  rate {point['learning_rate']:g}, strength {point['strength']:g}, "
            f"{point['step']} steps: forget drop {point['forget_drop']:.1%}, "
            f"retain drop {point['retain_drop']:.1%}"
        )


def _digest(rows_NT: Tensor) -> str:
    return hashlib.sha256(rows_NT.contiguous().numpy().tobytes()).hexdigest()
