"""Figures of what was measured: every share before and after, and every gate with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.release.report.results import GateRow, Measured, Value, first_of_each_task
from pipeline.release.report.svg import WIDTH, Drawing

NAMES = ("gates", "results")
LEFT, RIGHT = 8.0, WIDTH - 8.0
LOOKS = {"base": "before", "pruned": "after", "control": "control"}
WORDS = {"base": "base", "pruned": "pruned", "control": "control"}
SIDES = {"forget": "Should be lost", "retain": "Should be kept"}


def results_figure(rows: list[Measured]) -> Drawing | None:
    """A share of every task before and after, on one scale; None if there are none."""
    shown = first_of_each_task([row for row in rows if row.share])
    if not shown:
        return None
    models = [name for name in LOOKS if any(name in row.values for row in shown)]
    drawing = Drawing(
        "results",
        "Every task before and after",
        "The further to the right, the better the model does it. Bars are intervals at 95 %."
        + (" A dotted mark is what guessing gives." if any(r.chance for r in shown) else ""),
    )
    x = LEFT
    for model in models:
        drawing.dot(x + 5, 11, 5, LOOKS[model])
        drawing.text(x + 15, 15.5, WORDS[model], "words")
        x += 80
    y = 42.0
    for side, heading in SIDES.items():
        own = [row for row in shown if row.row.side == side]
        if own:
            drawing.text(LEFT, y, heading, f"heading {side}")
            y += 24
        for row in own:
            _result(drawing, y, row)
            y += 38
        y += 8 if own else 0
    for share in range(0, 101, 25):
        place = _on_scale(share / 100)
        anchor = {0: "start", 100: "end"}.get(share, "middle")
        drawing.text(place, y, f"{share} %", "tick", anchor)
    drawing.height = y + 8
    return drawing


def gates_figure(rows: Sequence[GateRow]) -> Drawing | None:
    """Each gate's drop with its interval, and what it had to be; None without gates."""
    if not rows:
        return None
    drawing = Drawing(
        "gates",
        "What the recipe asked for, and what was found",
        "Each gate has a scale of its own. The dot is the loss that was measured, the bar its "
        "interval at the gate's level, the line the limit; the whole bar must lie in the shaded "
        "part.",
    )
    y = 16.0
    for row in rows:
        _gate(drawing, y, row)
        y += 68
    drawing.height = y - 12
    return drawing


def _result(drawing: Drawing, y: float, row: Measured) -> None:
    before, after = row.values["base"], row.values["pruned"]
    drawing.text(LEFT, y, _short(row.label, 44), "words")
    words = f"{100 * before.value:.1f} % → {100 * after.value:.1f} %"
    drawing.text(RIGHT, y, words, "value", "end")
    middle = y + 12
    drawing.line(LEFT, middle, RIGHT, middle, "track")
    if row.chance is not None:
        drawing.line(_on_scale(row.chance), middle - 7, _on_scale(row.chance), middle + 7, "chance")
    places = [_on_scale(each.value) for each in (before, after)]
    drawing.line(places[0], middle, places[1], middle, f"change {row.row.side}")
    for model, value in sorted(row.values.items(), key=lambda item: item[0] == "pruned"):
        _whisker(drawing, middle, value, LOOKS[model])
        hint = f"{WORDS[model]}: {_interval(value)}, {row.meaning}, {row.row.n:,} documents"
        drawing.dot(_on_scale(value.value), middle, 5, LOOKS[model], hint)


def _gate(drawing: Drawing, y: float, row: GateRow) -> None:
    asks = _short(row.asks, 52)
    drawing.text(LEFT, y, asks, "words")
    drawing.text(RIGHT, y, row.decision, f"decision {row.decision.lower()}", "end")
    known = [each for each in (row.low, row.drop, row.high) if each is not None]
    lowest, highest = min(0.0, row.bound, *known), max(0.0, row.bound, *known)
    room = (highest - lowest or 1.0) * 0.08
    lowest, highest = lowest - (room if lowest < 0 else 0), highest + room

    def place(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - lowest) / (highest - lowest)

    limit, top = place(row.bound), y + 8
    drawing.rectangle(LEFT, top, RIGHT - LEFT, 18, "band")
    start, end = (limit, RIGHT) if row.forget else (LEFT, limit)
    drawing.rectangle(start, top, end - start, 18, "allowed")
    drawing.line(limit, top - 2, limit, top + 20, "limit")
    if row.low is not None and row.high is not None:
        low, high = place(row.low), place(row.high)
        hint = f"from {row.amount(row.low)} to {row.amount(row.high)}"
        drawing.rectangle(low, top + 6, max(high - low, 1), 6, "interval", hint=hint)
    if row.drop is not None:
        drawing.dot(place(row.drop), top + 9, 5, f"found {row.decision.lower()}", row.sentence)
    found = "not known" if row.drop is None else f"lost {row.amount(row.drop)}"
    if row.scale == "above_chance":
        found += " of its distance to chance"
    if row.low is not None and row.high is not None:
        found += f", from {row.amount(row.low)} to {row.amount(row.high)}"
    drawing.text(LEFT, top + 34, found, "value")


def _whisker(drawing: Drawing, y: float, value: Value, look: str) -> None:
    if value.low is None or value.high is None:
        return
    low, high = (_on_scale(min(max(each, 0.0), 1.0)) for each in (value.low, value.high))
    drawing.rectangle(low, y - 1.5, high - low, 3, f"whisker {look}")


def _interval(value: Value) -> str:
    words = f"{value.value:.3f}"
    if value.low is None or value.high is None:
        return words
    return f"{words} ({value.low:.3f} to {value.high:.3f})"


def _on_scale(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"
