"""Forget text learned again, as a figure: one line for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.release.report.curves import COLOURS, LEFT, RIGHT, TALL, legend
from pipeline.release.report.svg import Drawing

NAME = "relearn"
MARKS = 5  # along the steps, at most


def learning_figure(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Drawing:
    """Every model's accuracy on forget text by step, as a share of the base's before any.

    Args:
        lines: by name, steps and shares.
    """
    drawing = Drawing(
        NAME,
        "Learning again what was forgotten",
        "Each line is a model that is fine-tuned on a little forget text. Further up it knows more "
        "of the forget text that it never saw; on the dotted line as much as the base did.",
    )
    top = legend(drawing, lines)
    places = [place for line in lines.values() for place in line]
    last = max((step for step, _ in places), default=1)
    highest = max([1.0, *(share for _, share in places)])
    scale = _Scale(top, max(last, 1), -(-highest // 0.25) * 0.25)
    _axes(drawing, scale)
    for number, (name, line) in enumerate(lines.items()):
        drawing.path((scale(*place) for place in line), f"curve n{number % COLOURS}")
        for step, share in line:
            hint = f"{name}, {step} steps: {share:.1%}"
            drawing.dot(*scale(step, share), 3.5, f"dot n{number % COLOURS}", hint)
    drawing.height = top + TALL + 42
    return drawing


class _Scale(NamedTuple):
    top: float
    last: int
    highest: float

    def __call__(self, step: float, share: float) -> tuple[float, float]:
        """Where a point is."""
        x = LEFT + (RIGHT - LEFT) * step / self.last
        return x, self.top + TALL * (1 - max(share, 0.0) / self.highest)


def _axes(drawing: Drawing, scale: _Scale) -> None:
    words = "accuracy on held-out forget text, share of the base's"
    drawing.text(LEFT, scale.top - 10, words, "tick")
    for quarter in range(round(scale.highest / 0.25) + 1):
        _, y = scale(0, quarter / 4)
        drawing.line(LEFT, y, RIGHT, y, "grid")
        drawing.text(LEFT - 6, y + 4, f"{25 * quarter} %", "tick", "end")
    bottom = scale.top + TALL
    for step in range(0, scale.last + 1, -(-scale.last // MARKS)):
        x, _ = scale(step, 0)
        drawing.line(x, bottom, x, bottom + 4, "grid")
        drawing.text(x, bottom + 18, str(step), "tick", "end" if x > RIGHT - 10 else "middle")
    drawing.text(RIGHT, bottom + 36, "steps", "tick", "end")
    drawing.line(*scale(0, 1), *scale(scale.last, 1), "chance")
