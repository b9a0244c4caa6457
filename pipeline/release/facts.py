"""What the card and the report both say of a manifest."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

KINDS = {
    "ffn": "FFN neurons",
    "query_heads": "query heads",
    "kv_heads": "kv heads",
    "experts": "experts",
}


PLAIN = re.compile(r"[\w./@:+=-]+")


class RemovedUnits(NamedTuple):
    """Units of one kind that are gone, out of how many."""

    kind: str
    gone: int
    total: int


def named_base(origin: dict[str, Any]) -> str:
    """The base as `--base` takes it, if it has a name that a command can hold."""
    name = "@".join(origin[key] for key in ("repository", "commit") if key in origin)
    if "package" in origin:
        name = f"package:{origin['package']}/{origin['file']}"
    return name if PLAIN.fullmatch(name) else "path/of/the/base"


def told_base(base: dict[str, Any]) -> str:
    """Where exactly the base's weights come from, in words."""
    origin = base["origin"]
    if "package" in origin:
        where = f"{origin['file']} of the Python package {origin['package']} {origin['version']}"
    elif "repository" in origin:
        where = named_base(origin)
    else:
        where = "a folder of the machine that made this release"
    if origin.get("kind") == "gguf":
        where += ", a GGUF file whose weights were dequantised to bfloat16"
    return f"{base['name']}: {where}"


def curve_points(curve: dict[str, Any] | None) -> list[tuple[str, dict[str, float]]]:
    """The cuts of a curve by name and size, the released one among those of its recipe."""
    if curve is None:
        return []
    chosen = curve["chosen"]
    groups = {"recipe": [], **curve["settings"]}
    others = [point for point in groups["recipe"] if point != chosen]
    groups["recipe"] = sorted([*others, chosen], key=lambda point: float(point["removed"]))
    return [
        ("**released**" if point is chosen else name, point)
        for name, points in groups.items()
        for point in points
    ]


def removed_units(units: dict[str, Any]) -> list[RemovedUnits]:
    """Kinds of which something was removed."""
    return [
        RemovedUnits(KINDS[kind], unit["total"] - unit["kept"], unit["total"])
        for kind, unit in units.items()
        if unit["kept"] < unit["total"]
    ]


def baselines(select: dict[str, Any]) -> list[str]:
    """Unit kinds that were cut by a score which knows nothing of forget and retain texts."""
    kinds = {"ffn": "FFN neurons", "attention": "heads"}
    return [
        f"{words} ({select[kind]['score']})"
        for kind, words in kinds.items()
        if kind in select
        and select[kind]["fraction"]
        and select[kind]["score"] in ("random", "magnitude")
    ]


def gates_were_learned(select: dict[str, Any]) -> bool:
    """Whether FFN neurons were chosen by gates that were trained on the texts."""
    ffn = select.get("ffn", {})
    return bool(ffn.get("fraction")) and ffn.get("score") == "learned"


def maps_were_learned(recipe: dict[str, Any]) -> bool:
    """Whether compensation was trained on the texts, away from those to forget."""
    compensate = recipe.get("compensate", {})
    return compensate.get("enabled") is True and compensate.get("learning") is not None
