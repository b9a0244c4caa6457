"""Whether a plan is one that the base can be cut by, and what the manifest says follows from it."""

from __future__ import annotations

from typing import Any

from pipeline.architectures.description import Dimensions
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.checks.findings import Finding
from pipeline.selection.plan import Plan


def read_plan(manifest: dict[str, Any], sizes: Dimensions) -> tuple[Plan | None, list[Finding]]:
    """Return the manifest's plan if it fits the base, and what is wrong with it."""
    try:
        plan = Plan.from_dict(manifest["plan"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return None, [Finding(MANIFEST, f"its plan cannot be read ({error!r})")]
    problems = _problems(plan, sizes)
    return (None if problems else plan), [Finding(MANIFEST, problem) for problem in problems]


def _problems(plan: Plan, sizes: Dimensions) -> list[str]:
    ours = (sizes.layers, sizes.ffn, sizes.heads, sizes.kv_heads)
    theirs = (len(plan.layers), plan.ffn, plan.heads, plan.kv_heads)
    if ours != theirs:
        return [
            "its plan is for {} layers, {} FFN neurons, {} query heads and {} key/value "
            "heads; the base has {}, {}, {} and {}".format(*theirs, *ours)
        ]
    problems = []
    for number, layer in enumerate(plan.layers):
        kinds = {
            "ffn": (layer.ffn, plan.ffn),
            "query_heads": (layer.query_heads, plan.heads),
            "kv_heads": (layer.kv_heads, plan.kv_heads),
        }
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
    return problems


def check_claims(manifest: dict[str, Any], derived: dict[str, Any]) -> list[Finding]:
    """Compare what the manifest says of base, units and tensors with what was found.

    Args:
        manifest: the manifest.
        derived: by section, the same keys with the values that were found.
    """
    found = []
    for section, values in derived.items():
        claimed = manifest.get(section)
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
