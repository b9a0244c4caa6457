"""Models that learn forget text again, asked for the next tokens of held-out text on the way.

What each learned is cached by all that determined it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from pipeline.cache import Cache, digest_of, read_json, write_json
from pipeline.errors import InputError
from pipeline.evaluation.adapters import add_adapters
from pipeline.evaluation.curves import Hits, top1
from pipeline.evaluation.loading import default_device, key_of_model
from pipeline.evaluation.model import load_lm
from pipeline.evaluation.next_token import predict, read_documents
from pipeline.evaluation.tuning import Manner, tuned
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.stages.base import Base
from pipeline.stages.points import hits_of, judging_sides

FORMAT = 1
DTYPE = "float32"  # steps of AdamW are smaller than the gaps between the numbers of bfloat16


@dataclass(frozen=True)
class Learned:
    """What one model hit while it learned.

    Attributes:
        hits: at each measured step, by text, hits and tokens of each document.
        parameters: of the model.
        trained: of them, or beside them, those that were trained.
        seconds: of training and measuring.
    """

    hits: list[Hits]
    parameters: int
    trained: int
    seconds: float


class Learner:
    """Lets models learn the same rows in the same manner, and measures them on the same texts.

    Args:
        base: the base model: its tokenizer, and on what terms models are loaded.
        recipe: names the texts, and how models are evaluated.
        files: by corpus name, a JSONL file of held-out documents.
        tokens: of each judged text.
        rows_NT: token ids of the rows that are learned.
        manner: how.
        cache: keeps what was measured, model by model.
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
        rows_NT: Tensor,
        manner: Manner,
        cache: Cache,
        progress: Progress,
    ) -> None:
        self.base, self.recipe, self.rows_NT, self.manner = base, recipe, rows_NT, manner
        self.cache, self.progress = cache, progress
        self.sides = judging_sides(recipe)
        self.documents = {
            name: read_documents(files[name], base.tokenizer, tokens) for name in self.sides
        }

    def learned(self, folder: Path, weights_sha256: str) -> Learned:
        """What the checkpoint in a folder hits on its way.

        Raises:
            InputError: it cannot be loaded, has another vocabulary, or does not learn.
        """
        model = key_of_model(folder, weights_sha256, DTYPE, default_device(), self.base.terms)
        key = {
            **model,
            "format": FORMAT,
            "lm_eval": version("lm_eval"),
            "peft": version("peft") if self.manner.adapters else None,
            "documents": digest_of(self.documents),
            "rows": hashlib.sha256(self.rows_NT.numpy().tobytes()).hexdigest(),
            "manner": asdict(self.manner),
        }
        if self.cache.find("relearning", key):
            self.progress.say("  learned before, found in the cache")
        found = read_json(
            self.cache.get("relearning", key, lambda new: self._learn(new, folder)) / "learned.json"
        )
        hits = [hits_of(each) for each in found.pop("answers")]
        return Learned(hits, **found)

    def _learn(self, target: Path, folder: Path) -> None:
        started = time.monotonic()
        lm = load_lm(
            folder,
            dtype=DTYPE,
            batch_tokens=self.recipe.evaluate.batch_tokens,
            progress=Progress("quiet"),
            terms=self.base.terms,
        )
        self._check_vocabulary(lm.model.config.vocab_size, folder)
        parameters = sum(each.numel() for each in lm.model.parameters())
        if self.manner.adapters:
            add_adapters(lm.model, self.manner.seed)
        trained = sum(each.numel() for each in lm.model.parameters() if each.requires_grad)
        answers = []
        with self.progress.bar("learning", self.manner.steps, "steps") as advance:
            last = 0
            for step in tuned(lm.model, self.rows_NT, self.manner):
                advance(step - last)
                last = step
                answers.append({name: predict(lm, own) for name, own in self.documents.items()})
                self.progress.say(f"  after {step} steps: {self._said(hits_of(answers[-1]))}")
        found = {"parameters": parameters, "trained": trained}
        seconds = round(time.monotonic() - started, 1)
        write_json(target / "learned.json", {"answers": answers, **found, "seconds": seconds})

    def _said(self, hits: Hits) -> str:
        shares = {name: top1(own) for name, own in hits.items()}
        return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())

    def _check_vocabulary(self, known: int, folder: Path) -> None:
        if int(self.rows_NT.max()) >= known:
            raise InputError(
                "its vocabulary is another one than the base's",
                where=str(folder),
                remedy="compare models that were made from the same base",
            )
