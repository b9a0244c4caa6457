"""How two releases differ: units, texts, results, files, base, recipe and environment.

Everything but the results is said by their manifests, which are not checked here: whether a release
is what its manifest says is for `pipeline.verify` to find out. Weights are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.export.manifest import NAME, checked_manifest
from pipeline.export.manifest_schema import check_format, problems, upgraded
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.release.result_pairs import SAMPLES, result_pairs
from pipeline.selection.plan import Indices, Plan
from pipeline.sources.releases import fetch_release

KINDS = ("ffn", "query_heads", "kv_heads", "experts")
MISSING = object()  # unlike null, which a recipe may say


@dataclass(frozen=True)
class Side:
    """One of the two releases."""

    reference: str
    folder: Path
    manifest: dict[str, Any]
    plan: Plan

    @property
    def summary(self) -> dict[str, Any]:
        """What stands above a table."""
        return {
            "checkpoint": self.reference,
            "name": self.manifest["name"],
            "verdict": self.manifest["verdict"],
            "parameters": self.manifest["pruned"]["parameters"],
            "bytes": self.manifest["pruned"]["bytes"],
        }


def difference(one: str, other: str, progress: Progress) -> dict[str, Any]:
    """Compare two releases; JSON-able, and pairs of values are in the order of the arguments.

    Args:
        one: folder, or organisation/name@revision of the Hub.
        other: the same.
        progress: told about downloads: of manifests and samples, never of weights.

    Raises:
        InputError: one of them is no release, or its manifest does not follow its schema.
        BrokenError: the Hub cannot be reached.
    """
    sides = _opened(one, progress), _opened(other, progress)
    first, second = manifests = sides[0].manifest, sides[1].manifest
    recipe = list(_differing(_meant(first["recipe"]), _meant(second["recipe"])))
    return {
        "one": sides[0].summary,
        "other": sides[1].summary,
        "same": {
            "base": _same(manifests, "base", "weights_sha256"),
            "plan": sides[0].plan == sides[1].plan,
            "weights": _same(manifests, "pruned", "weights_sha256"),
            "recipe": not recipe,
        },
        "base": list(_differing(_shortened(first["base"]), _shortened(second["base"]))),
        "units": _units(sides[0].plan, sides[1].plan),
        "texts": list(_texts(first, second)),
        "results": result_pairs(*((side.folder, side.manifest["evaluation"]) for side in sides)),
        "files": _files(first["files"], second["files"]),
        "recipe": recipe,
        "environment": list(_differing(first["environment"], second["environment"])),
    }


def _opened(reference: str, progress: Progress) -> Side:
    folder = fetch_release(reference, progress, only=(NAME, f"{SAMPLES}/*"))
    try:
        content = checked_manifest(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"this folder has no pruning manifest that can be read ({error})",
            where=reference,
            remedy="give the folder that a run made, such as out/no-code",
        ) from error
    check_format(content, reference)
    wrong = list(problems(content))
    if not wrong:
        manifest = upgraded(content)
        plan = Plan.from_dict(manifest["plan"])
        wrong = list(_impossible(plan))
    if wrong:
        raise InputError(
            f"its pruning manifest is incomplete or wrong: {'; '.join(wrong)}",
            where=reference,
            remedy="`unlearn verify` says what else is not as it should be",
        )
    return Side(reference, folder, manifest, plan)


def _impossible(plan: Plan) -> Iterator[str]:
    """Yield which units a plan keeps that are none."""
    for number, layer in enumerate(plan.layers):
        for kind in KINDS:
            kept: Indices = getattr(layer, kind)
            if list(kept) != sorted(set(kept)) or (kept and kept[-1] >= _total(plan, kind)):
                yield f"its plan keeps impossible {kind} in layer {number}"


def _total(plan: Plan, kind: str) -> int:
    totals = {"ffn": plan.ffn, "query_heads": plan.heads, "kv_heads": plan.kv_heads}
    return totals.get(kind, plan.experts)


# ── units and texts ──────────────────────────────────────────────────────────────────────────────


def _units(one: Plan, other: Plan) -> list[dict[str, Any]]:
    """For every kind what each removed, and the share of it that both removed, layer by layer."""
    found = []
    for kind in KINDS:
        totals = [_total(plan, kind) for plan in (one, other)]
        removed = [
            sum(_total(plan, kind) - len(getattr(layer, kind)) for layer in plan.layers)
            for plan in (one, other)
        ]
        if not any(totals):
            continue
        row: dict[str, Any] = {
            "kind": kind,
            "total": [n * len(plan.layers) for n, plan in zip(totals, (one, other), strict=True)],
            "removed": removed,
            "overlap": None,
            "overlap_of_layers": None,
        }
        # Units of the same number are the same unit only if there are as many.
        if totals[0] == totals[1] and len(one.layers) == len(other.layers):
            layers = [
                _common(getattr(a, kind), getattr(b, kind), totals[0])
                for a, b in zip(one.layers, other.layers, strict=True)
            ]
            row["overlap_of_layers"] = [
                both / either if either else None for both, either in layers
            ]
            if either := sum(count for _, count in layers):
                row["overlap"] = sum(both for both, _ in layers) / either
        found.append(row)
    return found


def _common(one: Indices, other: Indices, total: int) -> tuple[int, int]:
    """How many units both removed, and how many one or the other did, from what they kept."""
    kept, also_kept = set(one), set(other)
    return total - len(kept | also_kept), total - len(kept & also_kept)


def _texts(one: dict[str, Any], other: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield whether the scored and held-out documents of each text are the same; None: of one."""
    first, second = ({text["name"]: text for text in m["corpora"]} for m in (one, other))
    for name in sorted(first.keys() | second.keys()):
        row: dict[str, Any] = {"name": name, "scored": None, "held_out": None}
        if name in first and name in second:
            for use in ("scored", "held_out"):
                row[use] = first[name][f"{use}_sha256"] == second[name][f"{use}_sha256"]
        yield row


# ── files, recipe, environment ───────────────────────────────────────────────────────────────────


def _files(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[str]]:
    both = sorted(one.keys() & other.keys())
    same = [name for name in both if one[name]["sha256"] == other[name]["sha256"]]
    return {
        "same": same,
        "different": [name for name in both if name not in set(same)],
        "only_one": sorted(one.keys() - other.keys()),
        "only_other": sorted(other.keys() - one.keys()),
    }


def _same(manifests: tuple[dict[str, Any], dict[str, Any]], section: str, key: str) -> bool:
    return bool(manifests[0][section][key] == manifests[1][section][key])


def _meant(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults of fields that are younger than it, if it is one of today's."""
    try:
        known = Recipe.model_validate_json(json.dumps(recipe), strict=True)
    except ValidationError:
        return recipe
    return known.what_makes_the_result()


def _shortened(base: dict[str, Any]) -> dict[str, Any]:
    """What is said of a base, with digests of its small files that a table has room for."""
    return base | {"files": {name: digest[:12] for name, digest in base["files"].items()}}


def _differing(one: Any, other: Any, key: str = "") -> Iterator[dict[str, Any]]:
    """Yield the keys, as `--set` takes them, in which two objects differ, with both values.

    A value that one of them does not have is left out.
    """
    first, second = _by_name(one), _by_name(other)
    if first is not None and second is not None:
        for name in [*first, *(name for name in second if name not in first)]:
            inner = f"{key}.{name}" if key else name
            yield from _differing(first.get(name, MISSING), second.get(name, MISSING), inner)
    elif one is MISSING or other is MISSING or one != other:
        sides = {"one": one, "other": other}
        yield {"key": key, **{k: value for k, value in sides.items() if value is not MISSING}}


def _by_name(value: Any) -> dict[str, Any] | None:
    """An object, or a list of objects that have names of their own, by name."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    names = [item.get("name", item.get("task")) for item in value]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return dict(zip(names, value, strict=True))
