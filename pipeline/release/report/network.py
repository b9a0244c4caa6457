"""Figures of where in the network the removed units were, and of what they were chosen by."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Any

from pipeline.release.facts import KINDS
from pipeline.release.report.svg import WIDTH, Drawing

LEFT, RIGHT = 46.0, WIDTH - 8.0
NAMES_LEFT = 92.0
SCORED = {"ffn": "FFN neurons", "attention": "attention heads", "experts": "experts"}
NAMES = (
    "layers",
    *(f"{figure}-{kind}" for kind in SCORED for figure in ("scores", "layers-of-scores")),
)
TICKS = (0.0, *(sign * 10.0**power for power in range(-9, 10) for sign in (1, -1)))
TICK_ROOM = 34
LEVELS = 6  # of a colour, for counts that differ a thousandfold
MOST_ROWS = 20


def layers_figure(plan: dict[str, Any]) -> Drawing | None:
    """The share of each kind that every layer lost; None if nothing was removed."""
    layers = plan["layers"]
    kinds = [
        ("ffn", plan["ffn"], "ffn"),
        ("query_heads", plan["heads"], "query_heads"),
        ("kv_heads", plan["kv_heads"], "kv_heads"),
        ("experts", plan["experts"], "experts"),
    ]
    shares = {
        KINDS[kind]: [1 - len(layer[key]) / total for layer in layers]
        for kind, total, key in kinds
        if total
    }
    most = max((share for row in shares.values() for share in row), default=0)
    if not layers or most <= 0:
        return None
    drawing = Drawing(
        "layers",
        "Share of the units that each layer lost",
        "A column is a layer, from the input on the left to the output on the right; the stronger "
        "the colour, the more of its units are gone.",
    )
    width = (RIGHT - NAMES_LEFT) / len(layers)
    y = 6.0
    for name, row in shares.items():
        drawing.text(NAMES_LEFT - 8, y + 20, name, "words", "end")
        for layer, share in enumerate(row):
            x = NAMES_LEFT + layer * width
            hint = f"layer {layer}: {100 * share:.1f} % of the {name} removed"
            drawing.rectangle(x, y, max(width - 1, 0.5), 30, "band")
            if share > 0:
                strength = 0.15 + 0.85 * share / most
                drawing.rectangle(
                    x, y, max(width - 1, 0.5), 30, "gone", opacity=strength, hint=hint
                )
        y += 34
    _layer_ticks(drawing, y + 12, len(layers), NAMES_LEFT)
    y += 34
    drawing.text(NAMES_LEFT, y + 9, "none", "tick", "end")
    for step in range(11):
        look = "gone" if step else "band"
        x = NAMES_LEFT + 8 + 12 * step
        drawing.rectangle(x, y, 11, 11, look, opacity=0.15 + 0.085 * step if step else 1)
    drawing.text(NAMES_LEFT + 148, y + 9, f"{100 * most:.1f} % of a layer", "tick")
    drawing.height = y + 18
    return drawing


def score_figures(scores: dict[str, Any], select: dict[str, Any]) -> Iterator[Drawing]:
    """Yield, of every kind whose scores are known, their distribution overall and by layer.

    Args:
        scores: that section of the manifest.
        select: how the recipe selects.
    """
    for kind, name in SCORED.items():
        section = scores.get(kind)
        if section and section.get("histogram"):
            score = select.get(kind, {}).get("score")
            means = (
                "the sooner a unit is removed, whatever it serves"
                if score in ("random", "magnitude")
                else "the more a unit serves the forget texts, and not the retain texts"
            )
            several = select.get("steps", 1) > 1
            means += ", as the last step saw it. " if several else ". "
            yield _distribution(kind, name, section, f"The further to the right, {means}")
            yield _by_layer(kind, name, section["histogram"])


def _distribution(kind: str, name: str, section: dict[str, Any], axis: str) -> Drawing:
    histogram = section["histogram"]
    edges = histogram["edges"]
    counts = {
        side: [sum(column) for column in zip(*histogram[side], strict=True)]
        for side in ("kept", "removed")
    }
    drawing = Drawing(
        f"scores-{kind}",
        f"Scores of the {name}, kept and removed",
        f"{axis}Heights are numbers of units, each step ten times the one below. The line is the "
        "lowest score that was removed.",
    )
    top, bottom = 34.0, 214.0
    powers = max(1, math.ceil(math.log10(max(*counts["kept"], *counts["removed"], 1) + 1)))

    def height(count: float) -> float:
        return bottom - (bottom - top) * math.log10(count + 1) / powers

    for power in range(powers + 1):
        y = height(10**power - 1 if power == 0 else 10**power)
        y = max(y, top)
        drawing.line(LEFT, y, RIGHT, y, "grid")
        drawing.text(LEFT - 6, y + 4, f"{10**power:,}" if power else "0", "tick", "end")
    width = (RIGHT - LEFT) / (len(edges) - 1)
    for side in ("kept", "removed"):
        points = [(LEFT, bottom)]
        for number, count in enumerate(counts[side]):
            x, y = LEFT + number * width, height(count)
            points += [(x, y), (x + width, y)]
        drawing.outline([*points, (RIGHT, bottom)], f"area {side}")
    lowest = section.get("lowest_removed")
    if lowest is not None:
        x = _place(lowest, edges)
        drawing.line(x, top - 6, x, bottom, "limit")
    _legend(drawing, {side: sum(counts[side]) for side in counts})
    _score_ticks(drawing, bottom + 16, edges)
    drawing.text(RIGHT, bottom + 34, "score: higher is removed first →", "tick", "end")
    drawing.height = bottom + 42
    return drawing


def _by_layer(kind: str, name: str, histogram: dict[str, Any]) -> Drawing:
    edges, layers = histogram["edges"], len(histogram["kept"])
    bins = len(edges) - 1
    step = -(-bins // MOST_ROWS)
    rows = -(-bins // step)
    drawing = Drawing(
        f"layers-of-scores-{kind}",
        f"In which layers the {name} with high scores are",
        "A column is a layer, higher up is a higher score; the stronger the colour, the more units "
        "are there. The colour says what became of most of them.",
    )
    top, cell_height = 34.0, 10.0
    bottom, cell_width = top + rows * cell_height, (RIGHT - LEFT) / layers
    cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
    most = 1
    counted = []
    for layer, pair in enumerate(zip(histogram["kept"], histogram["removed"], strict=True)):
        for row in range(rows):
            kept, gone = (sum(side[row * step : (row + 1) * step]) for side in pair)
            most = max(most, kept + gone)
            counted.append((layer, row, kept, gone))
    for layer, row, kept, gone in counted:
        if kept + gone:
            level = math.ceil(LEVELS * math.log(kept + gone + 1) / math.log(most + 1))
            corner = LEFT + layer * cell_width, bottom - (row + 1) * cell_height
            cells.setdefault(("removed" if gone > kept else "kept", level), []).append(corner)
    drawing.rectangle(LEFT, top, RIGHT - LEFT, bottom - top, "band")
    size = max(cell_width - 0.5, 0.5), cell_height - 0.5
    for (side, level), corners in sorted(cells.items()):
        drawing.cells(corners, size, f"cell {side}", level / LEVELS)
    _legend(drawing, {"kept": None, "removed": None})
    for value, place in _ticks(edges, 0.0, bottom - top, 24):
        drawing.text(LEFT - 6, bottom - place + 4, _tick(value), "tick", "end")
    _layer_ticks(drawing, bottom + 16, layers, LEFT)
    drawing.height = bottom + 24
    return drawing


def _legend(drawing: Drawing, counts: dict[str, int | None]) -> None:
    x = LEFT
    for side, count in counts.items():
        drawing.rectangle(x, 5, 12, 12, f"cell {side}")
        words = side if count is None else f"{side}: {count:,}"
        drawing.text(x + 18, 15.5, words, "words")
        x += 130


def _layer_ticks(drawing: Drawing, y: float, layers: int, left: float) -> None:
    width = (RIGHT - left) / layers
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if layers / step <= 12)
    for layer in range(0, layers, step):
        drawing.text(left + (layer + 0.5) * width, y, str(layer), "tick", "middle")
    drawing.text(left - 8, y, "layer", "tick", "end")


def _score_ticks(drawing: Drawing, y: float, edges: list[float]) -> None:
    for value, x in _ticks(edges, LEFT, RIGHT, TICK_ROOM):
        drawing.text(x, y, _tick(value), "tick", "middle")


def _ticks(edges: list[float], start: float, end: float, room: float) -> list[tuple[float, float]]:
    """Round scores and their places, the nearest to zero first where there is not room for all."""
    found: list[tuple[float, float]] = []
    inside = [value for value in TICKS if edges[0] <= value <= edges[-1]]
    for value in sorted(inside, key=lambda value: (value != 0, -abs(value))):
        place = _place(value, edges, start, end)
        if all(abs(place - other) >= room for _, other in found):
            found.append((value, place))
    return sorted(found)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _place(score: float, edges: list[float], start: float = LEFT, end: float = RIGHT) -> float:
    """Where a score lies on an axis on which every bin is equally wide."""
    number = min(max(bisect.bisect_right(edges, score) - 1, 0), len(edges) - 2)
    low, high = edges[number], edges[number + 1]
    part = min(max((score - low) / (high - low), 0.0), 1.0)
    return start + (end - start) * (number + part) / (len(edges) - 1)
