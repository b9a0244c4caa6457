"""Surgery: a choice cut out of the base's weights, and the control that it is compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, read_json, write_json
from pipeline.export.checkpoint import (
    copy_companions,
    pruned_config,
    relabelled,
    relabelled_config,
)
from pipeline.export.ragged import MODELING_FILE, ragged_config
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe.judging import Control
from pipeline.selection.plan import Plan, Shape
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice, choose
from pipeline.stages.measure import Measurer
from pipeline.surgery.compensation import maps_digest
from pipeline.surgery.coordinates import stored_sizes, tensor_cuts
from pipeline.surgery.cut import SurgeryReport, cut_checkpoint
from pipeline.surgery.tensor_cut import TensorCut

FORMAT = 1


def write_checkpoint(
    folder: Path, base: Base, choice: Choice, advance: Callable[[float], None]
) -> SurgeryReport:
    """Write a checkpoint of the base without the units that a choice removes.

    Args:
        folder: an empty folder.
        base: the base model.
        choice: what is kept, and how it stands in for the rest.
        advance: called with the bytes of each tensor that was read.
    """
    cuts, config = cuts_and_config(base, choice.plan, choice.shape)
    report = cut_checkpoint(base.model.path, folder, cuts, choice.maps, advance)
    write_json(folder / "config.json", config)
    copy_companions(base.model.path, folder, code=base.carries_code)
    if choice.shape.ragged:
        shutil.copyfile(MODELING_FILE, folder / MODELING_FILE.name)
    return report


def cuts_and_config(
    base: Base, plan: Plan, shape: Shape
) -> tuple[dict[str, TensorCut], dict[str, Any]]:
    """What a plan does to each tensor of a base, and the `config.json` that goes with it.

    Args:
        base: the base model.
        plan: what is kept.
        shape: what a checkpoint can say of it.
    """
    architecture, sizes, folder = base.architecture, base.dimensions, base.model.path
    if shape.relabel and not shape.ragged:
        other = relabelled(architecture)
        config = pruned_config(folder, other, sizes, plan, code=base.carries_code)
        heads = stored_sizes(other, sizes, plan).heads
        config = relabelled_config(config, architecture, sizes, heads, base.config)
        return tensor_cuts(other, sizes, plan), config
    cuts = tensor_cuts(architecture, sizes, plan, ragged=shape.ragged)
    if not shape.ragged:
        return cuts, pruned_config(folder, architecture, sizes, plan, code=base.carries_code)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    config = read_json(folder / "config.json")
    return cuts, ragged_config(config, architecture, sizes, plan, cuts, shapes)


def make_control(
    base: Base, recipe: Recipe, measurer: Measurer, cache: Cache, progress: Progress
) -> tuple[Path, Plan]:
    """Return a checkpoint of the recipe's control, and its plan: as many units of every layer.

    It is selected at once, protected and compensated like the real cut, and kept in the cache.
    """
    assert recipe.control is not None
    choice = choose(base, as_control(recipe, recipe.control), measurer, progress)
    return kept_cut("control", base, recipe, choice, cache), choice.plan


def kept_cut(stage: str, base: Base, recipe: Recipe, choice: Choice, cache: Cache) -> Path:
    """The checkpoint of a choice, kept in the cache.

    Args:
        stage: what it is kept as.
        base: the base model.
        recipe: that chose.
        choice: what is kept, and how it stands in for the rest.
        cache: keeps it.
    """
    key = {
        "format": FORMAT,
        "weights": base.model.weights_sha256,
        "settings": base.settings,
        "plan": choice.plan.to_json(),
        "shape": asdict(choice.shape),
        "maps": maps_digest(choice.maps),
    }

    def fill(folder: Path) -> None:
        write_checkpoint(folder, base, choice, lambda _: None)

    return cache.get(stage, key, fill)


def as_control(recipe: Recipe, control: Control) -> Recipe:
    """The recipe with other scores, compensated in closed form, and cut alike.

    Learned maps are trained away from forget text, whatever they stand in for: a control that has
    them would show that, and not what a cut of its shape does.
    """
    select = recipe.select
    score = {"score": control.score}
    ffn, attention = (kind.model_copy(update=score) for kind in (select.ffn, select.attention))
    select = select.model_copy(update={"steps": 1, "ffn": ffn, "attention": attention})
    compensate = recipe.compensate.model_copy(update={"learning": None})
    changes = {"select": select, "compensate": compensate, "seed": control.seed}
    return recipe.model_copy(update=changes)
