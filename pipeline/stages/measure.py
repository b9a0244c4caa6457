"""Scoring: statistics of forget and retain text, and second moments of retain text, cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import transformers
from accelerate.utils import convert_file_size_to_int
from torch import Tensor, nn

from pipeline.architectures.description import Dimensions
from pipeline.architectures.registry import output_modules
from pipeline.cache import Cache, digest_of, read_json, write_json
from pipeline.errors import BrokenError
from pipeline.evaluation.loading import code_key
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.scoring.collection import CapturePoints, Collector, collect
from pipeline.scoring.statistics import Statistics
from pipeline.stages.base import Base, load_model

FORMAT = 6
FLOAT32_BYTES = 4
STATISTICS = "statistics.safetensors"
COVERAGE = "coverage.json"
COST = "cost.json"
Sequences = dict[str, Tensor]  # by side, token ids [N, S]
Masking = Callable[[nn.Module], AbstractContextManager[None]]


class Cost(NamedTuple):
    """What scoring took when it was done, and not what its cached result does.

    Attributes:
        seconds: of passes over texts.
        bytes: room for what is summed, beside the model, at most at one time.
    """

    seconds: float
    bytes: int

    def and_then(self, later: Cost) -> Cost:
        """The cost of one after the other."""
        return Cost(self.seconds + later.seconds, max(self.bytes, later.bytes))


@dataclass(frozen=True)
class Measurement:
    """What one scoring measured.

    Attributes:
        forget: statistics of the forget corpora.
        retain: statistics of the retain corpora.
        protected: those of each protected corpus by itself.
        moments: folder with the retain second moments of each layer.
        forget_moments: folder with those of forget text, if compensation weighs them.
        coverage: layers and units seen, for the user and the manifest.
        cost: of all of it.
    """

    forget: Statistics
    retain: Statistics
    protected: tuple[Statistics, ...]
    moments: Path
    forget_moments: Path | None
    coverage: dict[str, str]
    cost: Cost


def compensated_kinds(recipe: Recipe) -> frozenset[str]:
    """Unit kinds that a recipe cuts and compensates."""
    if not recipe.compensate.enabled:
        return frozenset()
    select = recipe.select
    fractions = {"ffn": select.ffn.fraction, "attention": select.attention.fraction}
    return frozenset(kind for kind, fraction in fractions.items() if fraction)


def compensated_widths(recipe: Recipe, sizes: Dimensions, experts: int) -> list[int]:
    """Inputs of each output projection of a layer that is compensated, of so many experts."""
    kinds, widths = compensated_kinds(recipe), []
    if "ffn" in kinds:
        widths += [sizes.ffn] * max(experts, 1) + [sizes.shared] * bool(sizes.shared)
    if "attention" in kinds:
        widths.append(sizes.heads * sizes.head_dim)
    return widths


def moment_passes(recipe: Recipe, sizes: Dimensions) -> list[range]:
    """Layers whose second moments are summed in each pass, within `scoring.moments_memory`."""
    each = sum(width**2 for width in compensated_widths(recipe, sizes, sizes.experts))
    room = convert_file_size_to_int(recipe.scoring.moments_memory)
    number = max(room // max(FLOAT32_BYTES * each, 1), 1)
    starts = range(0, sizes.layers, number)
    return [range(start, min(start + number, sizes.layers)) for start in starts]


class Measurer:
    """Measures a base model on fixed sequences; loads it only if something is not cached.

    Attributes:
        has_run: something was not.
    """

    def __init__(
        self, base: Base, recipe: Recipe, sequences: Sequences, cache: Cache, progress: Progress
    ) -> None:
        self.base = base
        self.recipe = recipe
        self.sequences = sequences
        self.cache = cache
        self.progress = progress
        self.has_run = False
        self._model: nn.Module | None = None

    def moment_kinds(self, side: str) -> frozenset[str]:
        """Unit kinds whose second moments on a side this recipe needs."""
        weighed = ("retain", "forget") if self.recipe.compensate.forget_weight else ("retain",)
        return compensated_kinds(self.recipe) if side in weighed else frozenset()

    @property
    def ranks_heads(self) -> bool:
        """Whether this recipe cuts heads, so that their contributions must be known."""
        return self.recipe.select.attention.fraction > 0

    def measure(
        self, state: dict[str, Any] | None = None, masking: Masking | None = None
    ) -> Measurement:
        """Return the measurement of the model, masked if `masking` is given.

        Args:
            state: what determined the masks, for the cache's key.
            masking: context manager that masks the loaded model.
        """
        folders = {side: self._measured(side, state, masking) for side in self.sequences}
        found = {side: Statistics.load(folder / STATISTICS) for side, folder in folders.items()}
        return Measurement(
            forget=found.pop("forget"),
            retain=found.pop("retain"),
            protected=tuple(found.values()),
            moments=folders["retain"],
            forget_moments=folders["forget"] if self.moment_kinds("forget") else None,
            coverage=read_json(folders["retain"] / COVERAGE),
            cost=reduce(Cost.and_then, (_cost(folder) for folder in folders.values())),
        )

    def release(self) -> None:
        """Let go of the loaded model."""
        self._model = None

    def _measured(self, side: str, state: dict[str, Any] | None, masking: Masking | None) -> Path:
        key = self._key(side, state)
        if self.cache.find("scoring", key):
            self.progress.say(f"  {side} text: scored before, found in the cache")
        return self.cache.get("scoring", key, lambda new: self._run(side, new, masking))

    def model(self) -> nn.Module:
        """The base model, loaded when it is first asked for."""
        if self._model is None:
            dtype = self.recipe.model.dtype
            self._model = load_model(self.base.model.path, dtype, self.base.terms)
        return self._model

    def model_key(self) -> dict[str, Any]:
        """What of the model and of this machine decides what is measured, as part of a key."""
        return {
            "format": FORMAT,
            "weights": self.base.model.weights_sha256,
            "config": self.base.settings["config.json"],  # positions and norms, say
            **code_key(self.base.terms),
            "dtype": self.recipe.model.dtype,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def _key(self, side: str, state: dict[str, Any] | None) -> dict[str, Any]:
        scoring = self.recipe.scoring
        return {
            **self.model_key(),
            "tokens": token_digest(self.sequences[side]),
            "skip_positions": scoring.skip_positions,
            "batch_tokens": scoring.batch_tokens,
            "moments": sorted(self.moment_kinds(side)),
            "heads": self.ranks_heads,
            "state": digest_of(state) if state else None,
        }

    def _run(self, side: str, folder: Path, masking: Masking | None) -> None:
        self.has_run = True
        room, seconds = 0, 0.0
        model = self.model()
        ids, sizes = self.sequences[side], self.base.dimensions
        decoder = model.get_decoder()  # type: ignore[operator]
        passes = moment_passes(self.recipe, sizes) if self.moment_kinds(side) else [range(0)]
        with masking(model) if masking else nullcontext():
            for number, layers in enumerate(passes):
                started = perf_counter()
                collector = self._collector(model, side, layers)
                name = f"{side} text" + (f", pass {number + 1} of {len(passes)}" * bool(passes[1:]))
                with self.progress.bar(name, ids.numel(), "tokens") as advance:
                    collect(decoder, ids, collector, self.recipe.scoring.batch_tokens, advance)
                if number == 0:
                    write_json(folder / COVERAGE, _check_coverage(collector, sizes.heads))
                    collector.statistics.save(folder / STATISTICS)
                room, seconds = max(room, collector.bytes()), seconds + perf_counter() - started
                for each in collector.second_moments():
                    each.save(folder)
        write_json(folder / COST, Cost(seconds, room)._asdict())

    def _collector(self, model: nn.Module, side: str, moment_layers: range) -> Collector:
        sizes, architecture = self.base.dimensions, self.base.architecture
        dense, routed = architecture.feed_forward, architecture.feed_forward.experts
        experts: list[nn.Module] = []
        if routed is not None:
            experts = output_modules(model, architecture, dense.output)
        block = dense if routed is None else routed.shared
        points = CapturePoints(
            ffn=output_modules(model, architecture, block.output) if block else [],
            attention=output_modules(model, architecture, architecture.attention.output),
            groups=sizes.kv_heads,
            experts=experts,
            count=sizes.experts,
            width=sizes.ffn if experts else 0,
        )
        return Collector(
            points,
            (sizes.neurons, sizes.heads * sizes.head_dim),
            skip_positions=self.recipe.scoring.skip_positions,
            moments=self.moment_kinds(side),
            moment_layers=moment_layers,
            heads=self.ranks_heads,
        )


def _cost(folder: Path) -> Cost:
    return Cost(**read_json(folder / COST))


def _check_coverage(collector: Collector, heads: int) -> dict[str, str]:
    statistics = collector.statistics
    neurons = statistics.ffn.total_LU.shape[1]
    coverage = {}
    for kind, (seen, expected) in collector.coverage().items():
        if seen != expected:
            raise BrokenError(
                f"only {seen} of {expected} layers' {kind} outputs were seen while scoring",
                remedy="the model does not run its layers as its description says; "
                "correct pipeline/architectures/",
            )
        squared_LU = getattr(statistics, kind).squared_LU
        broken = (~squared_LU.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if broken:
            raise BrokenError(
                f"activations of layer {broken[0]} ({kind}) are not finite; no unit can be ranked",
                remedy="set model.dtype to bfloat16 or float32",
            )
        units = neurons if kind == "ffn" else heads
        coverage["layers"] = f"{seen}/{expected}"
        coverage["neurons" if kind == "ffn" else "heads"] = f"{seen * units:,}/{expected * units:,}"
    if collector.points.experts:
        seen, expected = collector.experts_seen()
        coverage["experts that got a token"] = f"{seen:,}/{expected:,}"
    return coverage


def token_digest(ids_NS: Tensor) -> str:
    """Digest of token ids and of their shape."""
    return hashlib.sha256(ids_NS.contiguous().numpy().tobytes()).hexdigest() + str(ids_NS.shape)
