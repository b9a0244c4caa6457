"""Selection: from measurements to a plan, in one shot or in steps, and its compensation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.export.checkpoint import relabelled
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe.selection import AttentionSelection, FeedForwardSelection
from pipeline.scoring.importance import expert_importance, head_importance, unit_importance
from pipeline.scoring.statistics import Statistics
from pipeline.selection import scores, uniform
from pipeline.selection.histogram import histogram
from pipeline.selection.overall import keep_lowest_overall
from pipeline.selection.plan import LayerPlan, Plan, Shape, complement
from pipeline.stages.base import Base, masking
from pipeline.stages.gates import learned_for, learned_gates
from pipeline.stages.learning import check_learning
from pipeline.stages.measure import Cost, Measurement, Measurer
from pipeline.stages.shapes import Ranked, removed
from pipeline.stages.stand_ins import compensate
from pipeline.surgery.coordinates import can_have_heads
from pipeline.surgery.masking import Maps

ScoreSummary = dict[str, Any]  # figures, and a histogram


@dataclass(frozen=True)
class Choice:
    """The plan, how to compensate it, and what it was chosen from.

    Attributes:
        plan: what is kept.
        maps: how it stands in for the rest.
        measurement: statistics that it was chosen from.
        score_summary: of the scores of all units and of the removed ones, by unit kind, with
            their distribution; and what the shape policies cost.
        shape: what a checkpoint may say of the plan.
        cost: of scoring for it, that of earlier steps too, and of choosing and compensating it.
    """

    plan: Plan
    maps: Maps
    measurement: Measurement
    score_summary: dict[str, ScoreSummary]
    shape: Shape
    cost: Cost


def choose(base: Base, recipe: Recipe, measurer: Measurer, progress: Progress) -> Choice:
    """Select units, scoring again after each step if the recipe asks for several."""
    *_, last = choices(base, recipe, measurer, progress)
    measurer.release()
    return last


def choices(base: Base, recipe: Recipe, measurer: Measurer, progress: Progress) -> Iterator[Choice]:
    """Yield what is selected after each step; the next one is scored when it is asked for."""
    check_learning(recipe, base.architecture)
    steps, shape = recipe.select.steps, _shape(recipe)
    plan: Plan | None = None
    maps: Maps = {}
    measurement: Measurement | None = None
    cost = Cost(0.0, 0)
    for step in range(1, steps + 1):
        if steps > 1:
            progress.say(f"  step {step} of {steps}")
        measurement = _measure(base, recipe, measurer, plan, maps, measurement)
        ffn, learning = _ffn_ranking(base, recipe, measurer, measurement)
        started = perf_counter()
        plan, summary = _plan(base, recipe, measurement, step / steps, plan, ffn)
        cost = cost.and_then(measurement.cost).and_then(learning)
        cost = cost.and_then(Cost(perf_counter() - started, 0))
        maps, compensating = compensate(measurer, recipe, measurement, plan)
        cost = cost.and_then(compensating)
        yield Choice(plan, maps, measurement, summary, shape, cost)


def _shape(recipe: Recipe) -> Shape:
    return Shape(recipe.select.policy == "ragged", recipe.select.attention.relabel)


def legal_heads(
    recipe: Recipe, architecture: Architecture, sizes: Dimensions
) -> Callable[[int], bool]:
    """Whether a checkpoint can have a number of query heads, by the recipe's shape policy."""
    if recipe.select.policy != "uniform":
        return lambda _: True
    if recipe.select.attention.relabel:
        architecture = relabelled(architecture)
    return partial(can_have_heads, architecture, sizes)


def _measure(
    base: Base,
    recipe: Recipe,
    measurer: Measurer,
    plan: Plan | None,
    maps: Maps,
    previous: Measurement | None,
) -> Measurement:
    if plan is None or previous is None:
        return measurer.measure()
    # The maps follow from the plan and the measurement before: its folder is named by its key.
    state = {
        "plan": plan.to_json(),
        "compensate": recipe.compensate.model_dump() if maps else None,
        "measured": previous.moments.name,
        "format": 3,
    }
    return measurer.measure(state, lambda model: masking(base, plan, maps, model))


def _ffn_ranking(
    base: Base, recipe: Recipe, measurer: Measurer, measurement: Measurement
) -> tuple[tuple[Tensor, Tensor] | None, Cost]:
    """Scores of all FFN neurons and a mask of those that stay, [L, U], and what learning cost."""
    ffn = recipe.select.ffn
    if not ffn.fraction:
        return None, Cost(0.0, 0)
    scores_LU, protected_LU = _ffn_scores(base, ffn, measurement, recipe.seed)
    if ffn.score != "learned":
        return (scores_LU, protected_LU), Cost(0.0, 0)
    # What no ranking can give is refused before it is learned.
    for fraction in (ffn.fraction, learned_for(recipe)):
        ranked = Ranked(base.dimensions, scores_LU, protected_LU, fraction, ffn.multiple_of)
        ranked.kept(recipe.select.policy)
    gates_LU, cost = learned_gates(measurer, recipe, scores_LU, protected_LU)
    return (gates_LU, protected_LU), cost


def _plan(
    base: Base,
    recipe: Recipe,
    measurement: Measurement,
    portion: float,
    previous: Plan | None,
    ranking: tuple[Tensor, Tensor] | None,
) -> tuple[Plan, dict[str, ScoreSummary]]:
    sizes = base.dimensions
    summary: dict[str, ScoreSummary] = {}
    ffn = [list(range(sizes.neurons))] * sizes.layers
    if ranking is not None:
        scores_LU, protected_LU = ranking
        _keep_removed(scores_LU, previous, Plan.removed_ffn)
        protected_LU &= scores_LU != torch.inf  # what is gone already needs no protection
        fraction = round(recipe.select.ffn.fraction * portion, 9)
        multiple = recipe.select.ffn.multiple_of
        ranked = Ranked(sizes, scores_LU, protected_LU, fraction, multiple)
        ffn = ranked.kept(recipe.select.policy)
        summary["ffn"] = _summary(scores_LU, ffn) | {"protected": float(protected_LU.sum())}
        summary["shapes"] = dict(ranked.costs())
    queries = [list(range(sizes.heads))] * sizes.layers
    groups = [list(range(sizes.kv_heads))] * sizes.layers
    if recipe.select.attention.fraction:
        fraction = round(recipe.select.attention.fraction * portion, 9)
        queries, groups, scores_LU = _heads(base, recipe, measurement, fraction, previous)
        summary["attention"] = _summary(
            scores_LU, groups if recipe.select.attention.unit == "kv_group" else queries
        )
    experts = [list(range(sizes.experts))] * sizes.layers
    if recipe.select.experts.fraction:
        fraction = round(recipe.select.experts.fraction * portion, 9)
        scores_LE = _expert_scores(recipe, measurement)
        _keep_removed(scores_LE, previous, Plan.removed_experts)
        keep = uniform.kept_experts(sizes.experts, sizes.chosen, fraction)
        experts = uniform.keep_lowest(scores_LE, keep)
        summary["experts"] = _summary(scores_LE, experts)
        ffn = [_of_experts(sizes, *each) for each in zip(ffn, experts, strict=True)]
    layers = tuple(
        LayerPlan(*map(tuple, kept)) for kept in zip(ffn, queries, groups, experts, strict=True)
    )
    plan = Plan(sizes.neurons, sizes.heads, sizes.kv_heads, layers, sizes.experts)
    return plan, summary


def _of_experts(sizes: Dimensions, neurons: list[int], experts: list[int]) -> list[int]:
    """Those of some neurons whose expert stays; all of the shared expert's do."""
    routed, stay = sizes.experts * sizes.ffn, set(experts)
    return [unit for unit in neurons if unit >= routed or unit // sizes.ffn in stay]


def _expert_scores(recipe: Recipe, measurement: Measurement) -> Tensor:
    settings = recipe.select.experts
    forget_LE = expert_importance(measurement.forget)
    retain_LE = _on_retain(measurement, expert_importance)
    if settings.score == "random":
        layers, experts = forget_LE.shape
        return scores.random(layers, experts, recipe.seed + 2)
    if settings.score == "ratio":
        return scores.ratio(forget_LE, retain_LE, settings.epsilon)
    ones_LE = torch.ones_like(forget_LE)
    return scores.contribution(forget_LE, retain_LE, ones_LE, settings.epsilon)


def _ffn_scores(
    base: Base, settings: FeedForwardSelection, measurement: Measurement, seed: int
) -> tuple[Tensor, Tensor]:
    forget, retain, kind = measurement.forget, measurement.retain, settings.importance
    norms_LU = torch.stack(
        [base.weight(layer, "ffn").double().norm(dim=0) for layer in range(base.dimensions.layers)]
    )
    forget_LU = unit_importance(forget.ffn, forget.tokens, kind)
    retain_LU = _on_retain(measurement, lambda own: unit_importance(own.ffn, own.tokens, kind))
    protected_LU = scores.massive(
        unit_importance(retain.ffn, retain.tokens, "rms"), norms_LU, settings.protect_massive
    )
    return _score(settings, forget_LU, retain_LU, norms_LU, seed), protected_LU


def _heads(
    base: Base, recipe: Recipe, measurement: Measurement, fraction: float, previous: Plan | None
) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """Kept query heads and key/value heads of each layer, and the scores they were ranked by."""
    settings, sizes = recipe.select.attention, base.dimensions
    whole_groups = settings.unit == "kv_group"
    legal = legal_heads(recipe, base.architecture, sizes)
    scores_LH = _head_scores(base, settings, measurement, recipe.seed)
    per_group = sizes.heads_per_group
    if whole_groups:
        keep = uniform.kept_groups(sizes.kv_heads, sizes.heads, fraction, legal)
        _keep_removed(scores_LH, previous, _removed_groups)
        groups = uniform.keep_lowest(scores_LH, keep)
        if recipe.select.policy == "ragged" and fraction:
            none = torch.zeros_like(scores_LH, dtype=torch.bool)
            groups = keep_lowest_overall(scores_LH, fraction, 1, none)
        queries = [[g * per_group + h for g in row for h in range(per_group)] for row in groups]
        return queries, groups, scores_LH
    keep = uniform.kept_per_group(sizes.kv_heads, sizes.heads, fraction, legal)
    _keep_removed(scores_LH, previous, Plan.removed_heads)
    rows = uniform.keep_lowest(scores_LH.reshape(-1, per_group), keep)
    queries = [
        [g * per_group + h for g in range(sizes.kv_heads) for h in rows[layer * sizes.kv_heads + g]]
        for layer in range(sizes.layers)
    ]
    return queries, [list(range(sizes.kv_heads))] * sizes.layers, scores_LH


def _head_scores(
    base: Base, settings: AttentionSelection, measurement: Measurement, seed: int
) -> Tensor:
    sizes = base.dimensions
    units = sizes.kv_heads if settings.unit == "kv_group" else sizes.heads
    grams = []
    for layer in range(sizes.layers):
        weight_HU = base.weight(layer, "attention").double()
        weight_HUD = weight_HU.unflatten(1, (units, -1))
        grams.append(torch.einsum("hud,hue->ude", weight_HUD, weight_HUD))
    grams_LUDD = torch.stack(grams)

    def importance(statistics: Statistics) -> Tensor:
        return head_importance(statistics, settings.importance, units, grams_LUDD)

    forget_LU, retain_LU = importance(measurement.forget), _on_retain(measurement, importance)
    # A head's rms importance is its contribution already; for the others its weight's norm counts.
    norms_LU = grams_LUDD.diagonal(dim1=2, dim2=3).sum(dim=2).sqrt()
    if settings.importance == "rms" and settings.score == "contribution":
        norms_LU = torch.ones_like(norms_LU)
    return _score(settings, forget_LU, retain_LU, norms_LU, seed + 1)


def _on_retain(measurement: Measurement, importance: Callable[[Statistics], Tensor]) -> Tensor:
    """Importance on retain text, or on the protected corpus that needs the unit most."""
    every = (measurement.retain, *measurement.protected)
    return torch.stack([importance(each) for each in every]).amax(dim=0)


def _score(
    settings: FeedForwardSelection | AttentionSelection,
    forget_LU: Tensor,
    retain_LU: Tensor,
    norms_LU: Tensor,
    seed: int,
) -> Tensor:
    if settings.score == "ratio":
        return scores.ratio(forget_LU, retain_LU, settings.epsilon)
    if settings.score in ("contribution", "learned"):  # gates begin with it
        return scores.contribution(forget_LU, retain_LU, norms_LU, settings.epsilon)
    if settings.score == "magnitude":
        return scores.magnitude(norms_LU)
    return scores.random(forget_LU.shape[0], forget_LU.shape[1], seed)


def _removed_groups(plan: Plan, layer: int) -> tuple[int, ...]:
    return complement(plan.layers[layer].kv_heads, plan.kv_heads)


def _keep_removed(scores_LU: Tensor, previous: Plan | None, removed: object) -> None:
    """What an earlier step removed stays removed."""
    if previous is None:
        return
    assert callable(removed)
    for layer in range(len(previous.layers)):
        scores_LU[layer, list(removed(previous, layer))] = torch.inf


def _summary(scores_LU: Tensor, kept: list[list[int]]) -> ScoreSummary:
    removed_LU = removed(scores_LU, kept)
    finite = scores_LU[scores_LU.isfinite()]
    chosen = scores_LU[removed_LU & scores_LU.isfinite()]
    summary: ScoreSummary = {"mean": float(finite.mean()), "highest": float(finite.max())}
    if chosen.numel():  # a step whose rounded width is the last one's removes nothing new
        summary |= {"lowest_removed": float(chosen.min()), "mean_removed": float(chosen.mean())}
    return summary | {"histogram": histogram(scores_LU, removed_LU)}
