"""Whether a plan is one that the base can be cut by, and what the manifest says follows from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.experts import GROUPED_MULTIPLE
from pipeline.export.checkpoint import why_not_relabelled
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.checks.findings import Finding, shortened
from pipeline.selection.plan import Plan, Shape


def read_plan(
    manifest: dict[str, Any],
    shape: Shape,
    architecture: Architecture,
    sizes: Dimensions,
    config: Any,
) -> tuple[Plan | None, list[Finding]]:
    """Return the manifest's plan if a run could have made it of the base, and what is wrong.

    Args:
        manifest: the manifest.
        shape: what it says that a checkpoint can say of the plan.
        architecture: the base's description.
        sizes: the base's sizes.
        config: the base's config as transformers reads it.
    """
    try:
        plan = Plan.from_dict(manifest["plan"])
        problems = _problems(plan, sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return None, [Finding(MANIFEST, f"its plan cannot be read ({error!r})")]
    problems = problems or list(_refused(plan, shape, architecture, sizes, config))
    return (None if problems else plan), [Finding(MANIFEST, problem) for problem in problems]


def _problems(plan: Plan, sizes: Dimensions) -> list[str]:
    ours = (sizes.layers, sizes.neurons, sizes.heads, sizes.kv_heads, sizes.experts)
    theirs = (len(plan.layers), plan.ffn, plan.heads, plan.kv_heads, plan.experts)
    if ours != theirs:
        return [
            "its plan is for {} layers, {} FFN neurons, {} query heads, {} key/value heads and {} "
            "experts; the base has {}, {}, {}, {} and {}".format(*theirs, *ours)
        ]
    problems = []
    for number, layer in enumerate(plan.layers):
        kinds = {
            "ffn": (layer.ffn, plan.ffn),
            "query_heads": (layer.query_heads, plan.heads),
            "kv_heads": (layer.kv_heads, plan.kv_heads),
        }
        if sizes.experts:
            kinds["experts"] = (layer.experts, plan.experts)
        elif layer.experts:
            problems.append(f"its plan keeps experts in layer {number}, and the base has none")
        for kind, (kept, total) in kinds.items():
            if not kept or list(kept) != sorted(set(kept) & set(range(total))):
                problems.append(f"its plan keeps impossible {kind} in layer {number}")
        groups = [head // sizes.heads_per_group for head in layer.query_heads]
        share = len(groups) // max(len(layer.kv_heads), 1)
        if groups != [group for group in layer.kv_heads for _ in range(share)]:
            problems.append(
                f"its plan pairs query heads with other key/value heads than the base in "
                f"layer {number}"
            )
    return problems or _unequal_experts(plan, sizes)


def _refused(
    plan: Plan, shape: Shape, architecture: Architecture, sizes: Dimensions, config: Any
) -> Iterator[str]:
    """Yield why a run would refuse to make such a checkpoint: it would compute something else."""
    untouchable = architecture.attention.untouchable
    if untouchable and any(len(layer.query_heads) < plan.heads for layer in plan.layers):
        yield f"its plan removes heads, which cannot be: {untouchable}"
    if shape.relabel and (why := why_not_relabelled(architecture, config)) is not None:
        yield f"it is said to be of another family, which cannot be: {why}"
    if not sizes.experts:
        return
    if shape.ragged:
        yield "it is said to be ragged, which a mixture of experts cannot be"
    first = plan.layers[0]
    width = sum(unit < sizes.experts * sizes.ffn for unit in first.ffn) // len(first.experts)
    if width != sizes.ffn and width % GROUPED_MULTIPLE:
        yield (
            f"its plan keeps {width} neurons of each expert, and experts whose width is no "
            f"multiple of {GROUPED_MULTIPLE} cannot be multiplied in groups"
        )


def _unequal_experts(plan: Plan, sizes: Dimensions) -> list[str]:
    """Where a plan keeps other numbers of a mixture's units than one config can say."""
    if not sizes.experts:
        return []
    shapes = set()
    for layer in plan.layers:
        kept = set(layer.ffn)
        each = [len(kept.intersection(block)) for block in sizes.blocks]
        routed, shared = each[: sizes.experts], each[sizes.experts :]
        own = frozenset(routed[expert] for expert in layer.experts)
        if any(count for expert, count in enumerate(routed) if expert not in layer.experts):
            return ["its plan keeps neurons of experts that it removes"]
        shapes.add((len(layer.experts), own, tuple(shared)))
    experts, own, common = next(iter(shapes))
    if len(shapes) > 1 or len(own) > 1:
        return ["its plan keeps different numbers of neurons or experts where one config says all"]
    if 0 in own or 0 in common or experts < sizes.chosen:
        return [
            f"its plan keeps too little: {experts} experts, of which a token takes "
            f"{sizes.chosen}, with {min(own)} neurons each"
        ]
    return []


def check_claims(
    manifest: dict[str, Any], derived: dict[str, Any], whole: Collection[str] = ()
) -> list[Finding]:
    """Compare what the manifest says of base, units and tensors with what was found.

    Args:
        manifest: the manifest.
        derived: by section, the same keys with the values that were found.
        whole: sections that may have no other keys.
    """
    found = []
    for section, values in derived.items():
        claimed = manifest.get(section)
        if section in whole and isinstance(claimed, dict):
            found += [
                Finding(MANIFEST, f"{section}.{shortened(key)} is said, and nothing is known of it")
                for key in sorted(claimed.keys() - values.keys())
            ]
        for key, value in values.items():
            said = claimed.get(key) if isinstance(claimed, dict) else None
            if said != value:
                found.append(
                    Finding(MANIFEST, f"{section}.{key} is {_short(said)}, found {_short(value)}")
                )
    return found


def _short(value: Any) -> str:
    text = f"{len(value)} names" if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
