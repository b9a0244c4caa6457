"""Gates of a recipe's FFN neurons, learned on its scored text, and cached."""

from __future__ import annotations

import hashlib
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.architectures.registry import output_modules
from pipeline.cache import read_json, write_json
from pipeline.recipe import Recipe
from pipeline.scoring.gates import Goal, learn_gates
from pipeline.selection.uniform import kept_width
from pipeline.stages.learning import ADAM, frozen, logits_of, manner_of, texts_key, training_rows
from pipeline.stages.measure import COST, FLOAT32_BYTES, Cost, Measurer

FORMAT = 3
GATES = "gates.safetensors"


def learned_for(recipe: Recipe) -> float:
    """Share of the neurons for which gates are learned: that which is cut, or another."""
    return recipe.select.ffn.gates.fraction or recipe.select.ffn.fraction


def learned_gates(
    measurer: Measurer, recipe: Recipe, ranking_LU: Tensor, held_LU: Tensor
) -> tuple[Tensor, Cost]:
    """Scores of all FFN neurons: [L, U], higher goes first.

    Args:
        measurer: has the model and its texts.
        recipe: says for what share of the neurons gates are learned, and how.
        ranking_LU: scores with which they begin.
        held_LU: mask of neurons that stay.

    Raises:
        InputError: the loss did not stay finite while they were learned.
    """
    by_layer, settings = recipe.select.policy == "uniform", recipe.select.ffn.gates
    fraction = learned_for(recipe)
    if by_layer:
        units = ranking_LU.shape[1]
        fraction = 1 - kept_width(units, fraction, recipe.select.ffn.multiple_of) / units
    if not fraction:  # which rounds to no neuron: there is nothing to learn
        return ranking_LU, Cost(0.0, 0)
    order = ranking_LU if by_layer else ranking_LU.flatten()  # all that counts of the ranking
    key = {
        **measurer.model_key(),
        "gates": FORMAT,
        "tokens": texts_key(measurer.sequences),
        "ranking": _digest(order.argsort(stable=True), held_LU),
        "fraction": fraction,
        "by_layer": by_layer,
        "settings": settings.model_dump(exclude={"fraction"}),
        "seed": recipe.seed,
    }
    if measurer.cache.find("gates", key):
        measurer.progress.say("  gates: learned before, found in the cache")

    def learn(folder: Path) -> None:
        started = perf_counter()
        measurer.has_run = True
        model, base = measurer.model(), measurer.base
        with frozen(model), measurer.progress.bar("gates", settings.steps, "steps") as advance:
            scores_LU = learn_gates(
                logits_of(model),
                output_modules(model, base.architecture, base.architecture.feed_forward.output),
                ranking_LU,
                held_LU,
                training_rows(measurer, settings, recipe.seed),
                Goal(fraction, by_layer),
                manner_of(settings, "select.ffn.gates"),
                advance,
            )
        save_file({"scores": scores_LU}, folder / GATES)
        room = ADAM * FLOAT32_BYTES * scores_LU.numel()
        write_json(folder / COST, Cost(perf_counter() - started, room)._asdict())

    folder = measurer.cache.get("gates", key, learn)
    return load_file(folder / GATES)["scores"], Cost(**read_json(folder / COST))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
