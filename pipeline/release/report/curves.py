"""Forgetting against its cost, as a figure: one line for each way to select."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.release.report.svg import WIDTH, Drawing

NAME = "curve"
LEFT, RIGHT, TALL = 44.0, WIDTH - 10.0, 300.0
COLOURS = 8  # classes of `figure.css`; further lines begin anew
COLUMN = (RIGHT - LEFT) / 2  # of the legend
STEP = 0.05  # between the marks of the cost


class Place(NamedTuple):
    """A point of a curve.

    Attributes:
        cost: relative drop of the retain text's accuracy.
        forgotten: that of the forget text's.
        hint: what is shown to who points at it.
    """

    cost: float
    forgotten: float
    hint: str


def released_curve(manifest: Mapping[str, Any]) -> Drawing | None:
    """The curves that a release's manifest has, with the released point; None without any.

    A search for how much to remove has tried some points too, on texts of its own.
    """
    curve, search = manifest.get("curve"), manifest.get("search")
    if curve:
        lines = {name: [_place(each) for each in own] for name, own in curve["settings"].items()}
        return curves_figure(lines, _place(curve["chosen"]))
    if search:
        tried = {each["portion"]: _place(each) for each in search["probes"]}
        line = {"what the search tried": list(tried.values())}
        return curves_figure(line, tried.get(search["portion"]))
    return None


def curves_figure(lines: Mapping[str, Sequence[Place]], chosen: Place | None = None) -> Drawing:
    """Every line from the base on, whose drops are none.

    Args:
        lines: by name, the points in the order of what they remove.
        chosen: a point to mark.
    """
    drawing = Drawing(
        NAME,
        "Forgetting against its cost",
        "Further up is more forgotten, further to the right costs more of what should be kept. On "
        "the dotted line both lose the same share."
        + (" The ring marks what was released." if chosen else ""),
    )
    top = legend(drawing, lines)
    places = [place for line in lines.values() for place in line]
    widest = max((place.cost for place in places), default=0.0)
    scale = _Scale(top, STEP * max(-(-widest // STEP), 1))
    _axes(drawing, scale)
    for number, line in enumerate(lines.values()):
        corners = [scale(0, 0), *(scale(place.cost, place.forgotten) for place in line)]
        drawing.path(corners, f"curve n{number % COLOURS}")
        for place in line:
            x, y = scale(place.cost, place.forgotten)
            drawing.dot(x, y, 3.5, _look(number), place.hint)
    if chosen:
        drawing.dot(*scale(chosen.cost, chosen.forgotten), 8, "ring", chosen.hint)
    drawing.height = scale.bottom + 42
    return drawing


def legend(drawing: Drawing, names: Collection[str]) -> float:
    """Name the lines of a figure in two columns; return where what they name may begin."""
    for number, name in enumerate(names):
        x, y = LEFT + COLUMN * (number % 2), 12.0 + 20 * (number // 2)
        drawing.dot(x + 5, y - 1, 5, _look(number))
        drawing.text(x + 15, y + 3.5, name, "words")
    return 44.0 + 20 * ((len(names) + 1) // 2)


def _place(point: Mapping[str, float]) -> Place:
    cost, forgotten = point["retain_drop"], point["forget_drop"]
    hint = f"{point['removed']:.1%} removed: forgotten {forgotten:.1%}, cost {cost:.1%}"
    return Place(cost, forgotten, hint)


class _Scale(NamedTuple):
    top: float
    widest: float

    @property
    def bottom(self) -> float:
        return self.top + TALL

    def __call__(self, cost: float, forgotten: float) -> tuple[float, float]:
        """Where a point is; what got better than the base is drawn at the edge."""
        x = LEFT + (RIGHT - LEFT) * min(max(cost / self.widest, 0.0), 1.0)
        return x, self.bottom - TALL * min(max(forgotten, 0.0), 1.0)


def _axes(drawing: Drawing, scale: _Scale) -> None:
    drawing.text(LEFT, scale.top - 10, "forgotten, share of the base's accuracy", "tick")
    for quarter in range(5):
        _, y = scale(0, quarter / 4)
        drawing.line(LEFT, y, RIGHT, y, "grid")
        drawing.text(LEFT - 6, y + 4, f"{25 * quarter} %", "tick", "end")
    every = 1 if scale.widest < 0.4 else 2
    for number in range(0, round(scale.widest / STEP) + 1, every):
        x, _ = scale(number * STEP, 0)
        drawing.line(x, scale.bottom, x, scale.bottom + 4, "grid")
        anchor = "end" if x > RIGHT - 10 else "middle"
        drawing.text(x, scale.bottom + 18, f"{100 * number * STEP:.0f} %", "tick", anchor)
    words = "lost of what should be kept, share of the base's accuracy"
    drawing.text(RIGHT, scale.bottom + 36, words, "tick", "end")
    drawing.line(*scale(0, 0), *scale(scale.widest, scale.widest), "chance")


def _look(number: int) -> str:
    return f"dot n{number % COLOURS}"
