"""Compensation of a plan: in closed form, then learned by gradients if a recipe asks for it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.architectures.registry import layer_module
from pipeline.cache import read_json, write_json
from pipeline.recipe import Recipe
from pipeline.scoring.importance import unit_importance
from pipeline.scoring.stand_ins import StandIn, learn_maps
from pipeline.scoring.statistics import load_second_moments
from pipeline.selection.plan import Plan
from pipeline.stages.base import masking
from pipeline.stages.learning import ADAM, frozen, logits_of, manner_of, texts_key, training_rows
from pipeline.stages.measure import (
    COST,
    FLOAT32_BYTES,
    Cost,
    Measurement,
    Measurer,
    compensated_kinds,
)
from pipeline.surgery.compensation import CompensationMap, compensation_map, maps_digest
from pipeline.surgery.masking import Maps
from pipeline.surgery.projections import projections

FORMAT = 1
MAPS = "maps.safetensors"


def compensate(
    measurer: Measurer, recipe: Recipe, measurement: Measurement, plan: Plan
) -> tuple[Maps, Cost]:
    """Return what stands in for all that a plan cuts, and what it cost.

    Of a plan that the recipe did not make, it is that of the kinds of units that the recipe cuts.

    Raises:
        BrokenError: second moments are not positive definite.
        InputError: what is learned did not stay finite.
    """
    started = perf_counter()
    maps = _closed_form(measurer, recipe, measurement, plan)
    cost = Cost(perf_counter() - started, 0)
    if not maps or recipe.compensate.learning is None:
        return maps, cost
    maps, learning = _learned(measurer, recipe, measurement, plan, maps)
    return maps, cost.and_then(learning)


def _closed_form(
    measurer: Measurer, recipe: Recipe, measurement: Measurement, plan: Plan
) -> dict[str, CompensationMap]:
    maps: dict[str, CompensationMap] = {}
    if not (kinds := compensated_kinds(recipe)):  # whole experts leave nothing to be stood in for
        return maps
    base = measurer.base
    with measurer.progress.bar("compensation", len(plan.layers), "layers") as advance:
        for layer in range(len(plan.layers)):
            moments = load_second_moments(measurement.moments, layer)
            forget = _forget_moments(recipe, measurement, layer)
            for each in projections(base.architecture, base.dimensions, layer):
                kept, removed = each.units_of(plan, layer, base.dimensions.head_dim)
                # Of an expert that goes, nothing is left to compensate.
                if kept and removed and each.kind in kinds:
                    maps[each.key] = compensation_map(
                        moments[each.name],
                        kept,
                        removed,
                        ridge=recipe.compensate.ridge,
                        silent_UU=forget.get(each.name),
                        dtype=base.tensors[each.tensor].torch_dtype,
                        where=each.key,
                    )
            advance(1)
    return maps


def _forget_moments(recipe: Recipe, measurement: Measurement, layer: int) -> dict[str, Tensor]:
    """Weighted second moments of forget text, by projection; empty if they count for nothing."""
    if measurement.forget_moments is None:
        return {}
    found = load_second_moments(measurement.forget_moments, layer)
    return {name: each.mul_(recipe.compensate.forget_weight) for name, each in found.items()}


def _learned(
    measurer: Measurer,
    recipe: Recipe,
    measurement: Measurement,
    plan: Plan,
    maps: dict[str, CompensationMap],
) -> tuple[dict[str, CompensationMap], Cost]:
    settings = recipe.compensate.learning
    assert settings is not None
    key = {
        **measurer.model_key(),
        "maps": FORMAT,
        "tokens": texts_key(measurer.sequences),
        "plan": plan.to_json(),
        "first": maps_digest(maps),
        "settings": settings.model_dump(),
        "seed": recipe.seed,
    }
    if measurer.cache.find("maps", key):
        measurer.progress.say("  maps: learned before, found in the cache")

    def learn(folder: Path) -> None:
        started = perf_counter()
        measurer.has_run = True
        model = measurer.model()
        stand_ins = _stand_ins(measurer, measurement, plan, maps)
        with frozen(model), measurer.progress.bar("maps", settings.steps, "steps") as advance:
            found = learn_maps(
                logits_of(model),
                list(stand_ins.values()),
                partial(masking, measurer.base, plan, {}, model),
                # In another order than gates were learned on.
                training_rows(measurer, settings, recipe.seed + 1),
                manner_of(settings, "compensate.learning"),
                advance,
            )
        save_file(dict(zip(stand_ins, found, strict=True)), folder / MAPS)
        # Beside what is trained, the maps with which it began, and those that are found.
        room = (ADAM + 2) * FLOAT32_BYTES * sum(each.numel() for each in found)
        write_json(folder / COST, Cost(perf_counter() - started, room)._asdict())

    folder = measurer.cache.get("maps", key, learn)
    found = load_file(folder / MAPS)
    learned = {name: replace(each, map_PS=found[name]) for name, each in maps.items()}
    return learned, Cost(**read_json(folder / COST))


def _stand_ins(
    measurer: Measurer, measurement: Measurement, plan: Plan, maps: Maps
) -> dict[str, StandIn]:
    """What stands in at first, by the projection's key."""
    base, model = measurer.base, measurer.model()
    tokens = measurement.retain.tokens
    scales = {
        "ffn": unit_importance(measurement.retain.ffn, tokens, "rms"),
        "attention": unit_importance(measurement.retain.attention, tokens, "rms"),
    }
    found = {}
    for layer in range(len(plan.layers)):
        for each in projections(base.architecture, base.dimensions, layer):
            if (own := maps.get(each.key)) is not None:
                found[each.key] = StandIn(
                    layer_module(model, base.architecture, layer, each.module),
                    torch.tensor(own.kept),
                    torch.tensor(own.removed),
                    own.map_PS,
                    scales[each.kind][layer][each.units.start : each.units.stop],
                )
    return found
