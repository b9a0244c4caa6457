"""What a run would do, found out without doing it: units, texts, tasks, time and disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.cache import Cache
from pipeline.evaluation.next_token import documents_of
from pipeline.evaluation.tasks import check_tasks
from pipeline.export.checkpoint import changed_sizes, relabelled, relabelled_config
from pipeline.progress import Progress
from pipeline.recipe import Recipe, next_token_task
from pipeline.recipe.fields import Side
from pipeline.recipe.judging import Gate
from pipeline.recipe_file import LoadedRecipe
from pipeline.selection.overall import removed_overall
from pipeline.sources.corpora import Corpora, load_corpora, scored_tokens
from pipeline.sources.models import describe_model
from pipeline.sources.packing import held_out_rows, pack_side
from pipeline.stages.described import described, parameter_counts
from pipeline.stages.drawn import drawn_recipes
from pipeline.stages.gates import learned_for
from pipeline.stages.learning import GATES, MAPS, check_learning, learns
from pipeline.stages.measure import FLOAT32_BYTES, compensated_widths, moment_passes
from pipeline.stages.preflight import (
    CONTEXT,
    check_chat_template,
    check_context,
    check_gates,
    check_relabel,
    kept_sizes,
)
from pipeline.stages.search import PROBES, scaled
from pipeline.stages.shapes import SAME_SHARE, head_note
from pipeline.surgery.coordinates import can_have_heads

SIDES: tuple[Side, ...] = ("forget", "retain")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Of the rate of a bare matrix product: what forward passes of small models reached on two cores.
REACHED = (0.35, 0.8)
MOMENTS_FACTOR = 1.5  # a pass that sums second moments, against one that does not
ZEROS = "; zeros stand in the place of what goes, and nothing gets smaller by it"
PLACEHOLDER = "TODO"  # what `unlearn new` leaves to the author
OVERHEAD_SECONDS = 60  # loading, conversion, proof, completions


def forecast(loaded: LoadedRecipe, cache: Cache, progress: Progress) -> dict[str, Any]:
    """Resolve everything that a recipe names and say what a run would do.

    Raises:
        UnlearnError: whatever the run would have raised before it starts to compute.
    """
    recipe = loaded.recipe
    with progress.stage("Base model"):
        model = describe_model(recipe.model, loaded.folder, cache)
        known = described(model)
        architecture, sizes = known.architecture, known.sizes
        if known.tokenizer is not None:
            check_chat_template(recipe, known.tokenizer, model.name)
    with progress.stage("Texts"):
        corpora = load_corpora(recipe, loaded.folder, progress)
        scored = _scored_tokens(recipe, corpora, known.tokenizer)
    with progress.stage("Tasks and gates"):
        folders = [loaded.folder / name for name in recipe.evaluate.task_folders]
        checks = check_tasks(recipe.evaluate, folders)
    check_gates(recipe, {check.task: check.metrics for check in checks})
    tasks: list[dict[str, Any]] = [
        {
            "task": c.task,
            "side": c.side,
            "documents": c.documents,
            "at_most": False,
            "tokens": c.tokens,
        }
        for c in checks
    ]
    tasks += _next_token_tasks(recipe, corpora, known.tokenizer)
    kept = kept_sizes(recipe, architecture, sizes)
    check_context(recipe, getattr(known.config, CONTEXT, None), model.name)
    check_relabel(recipe, architecture, known.config)
    drawn = drawn_recipes(loaded)
    for each in (recipe, *drawn):
        check_learning(each, architecture)
    after = _stored_after(recipe, architecture, sizes, kept)
    smaller = model.config | changed_sizes(model.config, architecture, sizes, after)
    smaller = relabelled_config(smaller, architecture, sizes, after.heads, known.config)
    parameters, left = (
        sum(parameter_counts(each, model).values()) for each in (model.config, smaller)
    )
    # Quantised models are converted to the recipe's type; others keep the one they are stored in.
    stored = model.size_bytes if model.kind in ("hub", "folder", "pickled") else None
    size = stored or parameters * BYTES[recipe.model.dtype]
    output = round(size * left / parameters)
    return {
        "recipe": recipe.name,
        "extends": [path.stem for path in loaded.parents],
        "description": recipe.description,
        "model": {
            "name": model.name,
            "kind": model.kind,
            "ready": model.ready,
            "architecture": model.config.get("model_type"),
            "bytes": model.size_bytes,
            "parameters": parameters,
        },
        "units": _unit_lines(architecture, sizes, kept, recipe),
        "corpora": [
            {**item.summary, "scored_tokens": scored.get(item.corpus.name, 0)} for item in corpora
        ],
        "tasks": tasks,
        "gates": [_gate_text(gate) for gate in recipe.gates],
        "publish": recipe.publish.model_dump(mode="json") if recipe.publish else None,
        "warnings": list(_warnings(recipe, tasks)),
        "minutes": _minutes(
            recipe,
            sizes,
            parameters,
            sum(task["tokens"] for task in tasks),
            learning_tokens(recipe, drawn),
        ),
        "output_bytes": output + _maps_bytes(recipe, sizes, kept),
        "cache_bytes": _cache_bytes(recipe, sizes, parameters, model.ready)
        + (1 + len(drawn)) * _learned_bytes(recipe, sizes, kept)
        + (output if recipe.control is not None else 0),
    }


def _scored_tokens(recipe: Recipe, corpora: Corpora, tokenizer: Any | None) -> dict[str, int]:
    """Tokens of each corpus that would be scored: those wanted, or those that its text has."""
    if tokenizer is None:
        return {c.name: scored_tokens(recipe, side, c) for side, c in recipe.corpora}
    sides = (pack_side(corpora, side, tokenizer, recipe) for side in SIDES)
    return {name: ids.numel() for packed in sides for name, ids in packed.items()}


def _next_token_tasks(
    recipe: Recipe, corpora: Corpora, tokenizer: Any | None
) -> Iterator[dict[str, Any]]:
    """Yield the next-token tasks, with as many documents as they would ask.

    Without a tokenizer nobody knows where the tokens are used up: all held-out documents are named.
    """
    wanted = recipe.evaluate.next_token_tokens
    for item in corpora:
        if item.corpus.use == "scored":
            continue
        documents = len(item.held_out)
        if tokenizer is not None:
            texts = [row["text"] for row, _ in held_out_rows(item, tokenizer, wanted)]
            documents = len(documents_of(texts, tokenizer, wanted))
        yield {
            "task": next_token_task(item.corpus.name),
            "side": item.side,
            "documents": documents,
            "at_most": tokenizer is None,
            "tokens": wanted,
        }


def _warnings(recipe: Recipe, tasks: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is not filled in, and why gates could not be decided, as far as it is known."""
    written = {"description": recipe.description}
    for side, corpus in recipe.corpora:
        for key in ("genre", "licence"):
            written[f"{side}.{corpus.name}.{key}"] = getattr(corpus, key)
    if undone := [key for key, text in written.items() if text.startswith(PLACEHOLDER)]:
        yield f"the card would say {PLACEHOLDER}: fill in {', '.join(undone)}"
    named = {task["task"]: task for task in tasks}
    least = recipe.statistics.min_documents
    for gate in recipe.gates:
        for name in filter(None, (gate.task, gate.more_than)):
            if (task := named.get(name)) is not None and task["documents"] < least:
                at_most = "at most " if task["at_most"] else ""
                yield (
                    f"{name} has {at_most}{task['documents']} documents: its gate will be "
                    f"INCONCLUSIVE, since statistics.min_documents is {least}"
                )


def _stored_after(
    recipe: Recipe, architecture: Architecture, sizes: Dimensions, kept: Dimensions
) -> Dimensions:
    """Sizes of the checkpoint; under the policy `padded` the widest layer may be as before."""
    if recipe.select.policy == "uniform":
        return kept
    ragged = recipe.select.policy == "ragged"
    ffn = kept.ffn if ragged else sizes.ffn
    if not ragged and recipe.select.attention.relabel:
        architecture = relabelled(architecture)
    if can_have_heads(architecture, sizes, kept.heads):
        return replace(kept, ffn=ffn)
    return replace(sizes, ffn=ffn)


def _heads_can_go(
    recipe: Recipe, architecture: Architecture, sizes: Dimensions, heads: int
) -> bool:
    """Whether a checkpoint can have so many query heads; if not, zeros stand for the others."""
    if recipe.select.policy == "ragged":
        return architecture.attention.counts is not None
    if recipe.select.attention.relabel:
        architecture = relabelled(architecture)
    return can_have_heads(architecture, sizes, heads)


def _unit_lines(
    architecture: Architecture, sizes: Dimensions, kept: Dimensions, recipe: Recipe
) -> list[str]:
    lines = []
    policy = recipe.select.policy
    zeros = "" if _heads_can_go(recipe, architecture, sizes, kept.heads) else ZEROS
    for kind, name in (
        ("ffn", "FFN neurons of each routed expert" if sizes.experts else "FFN neurons"),
        ("heads", "query heads"),
        ("kv_heads", "key/value heads"),
        *([("experts", "routed experts")] if sizes.experts else []),
        *([("shared", "neurons of the shared expert")] if sizes.shared else []),
    ):
        total, left = getattr(sizes, kind), getattr(kept, kind)
        gone = total - left
        if policy == "ragged" and "heads" in kind and recipe.select.attention.unit == "kv_group":
            lines.append(_ragged_heads(name, total, sizes, recipe.select.attention.fraction))
            if kind == "heads" and gone:
                lines[-1] += zeros
            continue
        mean = " on average" if policy != "uniform" and kind == "ffn" and gone else ""
        times = sizes.layers * (max(sizes.experts, 1) if kind == "ffn" else 1)
        lines.append(
            f"{name}: {total:,} → {left:,}{mean} in each of {sizes.layers} layers "
            f"({gone * times:,} of {total * times:,} removed, {gone / total:.1%})"
        )
        if mean and policy == "padded":
            lines[-1] += "; narrower layers are filled with zeros up to the widest (policy padded)"
        elif (
            policy == "uniform"
            and kind == "ffn"
            and abs(gone / total - recipe.select.ffn.fraction) > SAME_SHARE
        ):
            lines[-1] += (
                f"; {recipe.select.ffn.fraction:.1%} asked, widths are multiples of "
                f"{recipe.select.ffn.multiple_of}"
            )
        elif kind == "heads":
            said = policy == "uniform"  # other policies have no number that a config forbids
            lines[-1] += head_note(recipe.select.attention.fraction, left, total, by_config=said)
        if kind == "heads" and gone:
            lines[-1] += zeros
    return lines


def _ragged_heads(name: str, total: int, sizes: Dimensions, fraction: float) -> str:
    """What whole groups that are ranked together leave; which layers lose them is not known yet."""
    groups, each = sizes.layers * sizes.kv_heads, total // sizes.kv_heads
    gone = removed_overall(groups, fraction) * each
    return (
        f"{name}: {total:,} → {total - gone / sizes.layers:.4g} on average in each of "
        f"{sizes.layers} layers ({gone:,} of {groups * each:,} removed, {gone / groups / each:.1%})"
    )


def _cache_bytes(recipe: Recipe, sizes: Dimensions, parameters: int, ready: bool) -> int:
    """Second moments in float32, of every step, and the base if it has to be made."""
    each = sum(width**2 for width in compensated_widths(recipe, sizes, sizes.experts))
    base = 0 if ready else parameters * BYTES[recipe.model.dtype]
    sides = 2 if recipe.compensate.forget_weight else 1
    return base + FLOAT32_BYTES * sizes.layers * each * recipe.select.steps * sides


def _maps_bytes(recipe: Recipe, sizes: Dimensions, kept: Dimensions) -> int:
    """Compensation maps in float32 beside the checkpoint."""
    return _bytes_of_maps(recipe, sizes, kept) if recipe.compensate.publish_maps else 0


def _learned_bytes(recipe: Recipe, sizes: Dimensions, kept: Dimensions) -> int:
    """Maps of one cut that are kept in the cache, because they took learning."""
    learned = any(key == MAPS for key, _ in learns(recipe))
    return _bytes_of_maps(recipe, sizes, kept) if learned else 0


def _bytes_of_maps(recipe: Recipe, sizes: Dimensions, kept: Dimensions) -> int:
    """In float32, removed × kept entries each."""
    before, after = (compensated_widths(recipe, each, kept.experts) for each in (sizes, kept))
    each = sum((was - left) * left for was, left in zip(before, after, strict=True))
    return FLOAT32_BYTES * sizes.layers * each


def _minutes(
    recipe: Recipe, sizes: Dimensions, parameters: int, evaluated_tokens: int, learning_tokens: int
) -> tuple[float, float]:
    """Shortest and longest time that the run can be expected to take."""
    compensate = recipe.compensate
    passes = len(moment_passes(recipe, sizes)) if compensate.enabled else 1
    factor = passes * (MOMENTS_FACTOR if compensate.enabled else 1.0)
    forget = factor if compensate.forget_weight else 1.0
    scoring = forget * recipe.scoring.forget_tokens + factor * recipe.scoring.retain_tokens
    scoring += sum(scored_tokens(recipe, "retain", each) for each in recipe.retain if each.protect)
    models = 2 if recipe.control is None else 3
    tokens = scoring * recipe.select.steps + models * evaluated_tokens + learning_tokens
    seconds = 2 * parameters * tokens / _rate(recipe.model.dtype)
    slow, fast = REACHED
    return (seconds / fast + OVERHEAD_SECONDS) / 60, (seconds / slow + OVERHEAD_SECONDS) / 60


def learning_tokens(recipe: Recipe, drawn: Sequence[Recipe]) -> int:
    """Tokens' worth of forward passes in which gates and maps are learned, each once.

    Args:
        recipe: of the run.
        drawn: as each point of its curve changes it.
    """
    every = [recipe, *drawn]
    if (until := recipe.select.until) is not None:
        probes = PROBES * sum(each is not None for each in (until.retain_drop, until.forget))
        every += [scaled(recipe, number / probes) for number in range(1, probes)]
    tokens = {}
    for each in every:
        for key, learning in learns(each):
            learned = f"gates {learned_for(each)}" if key == GATES else f"maps {each}"
            row = min(learning.row_tokens, each.scoring.sequence_length)
            kept = learning.retain_rows or learning.rows
            # Retain text once as it is; both sides changed, and a gradient is worth two passes.
            tokens[learned] = learning.steps * row * (3 * learning.rows + (1 + 3) * kept)
    return sum(tokens.values())


def _rate(dtype: str) -> float:
    """Floating-point operations a second of a bare matrix product on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 1024
    left, right = (
        torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab"
    )
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # reading the result waits for an accelerator
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _gate_text(gate: Gate) -> str:
    at_least = gate.drops_at_least is not None
    bound = gate.bound
    share = {"relative": "of itself", "above_chance": f"of its distance to {gate.chance}"}
    amount = f"{bound:g}" if gate.scale == "absolute" else f"{bound:.1%} {share[gate.scale]}"
    text = f"{gate.task} {gate.metric} drops {'at least' if at_least else 'at most'} {amount}"
    text += f" more than {gate.more_than}" if gate.more_than else ""
    return text + (" against the control" if gate.against == "control" else "")
