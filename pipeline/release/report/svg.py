"""Drawings as SVG: the same numbers give the same bytes, and every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files

from markupsafe import Markup, escape

from pipeline.release.checks.findings import printable

WIDTH = 480  # of every drawing, in its own units: texts stay legible on a phone
STYLE = Markup(
    (files("pipeline.release") / "templates" / "report" / "figure.css").read_text("utf-8")
)  # of light paper: a file is put where nobody knows what the reader's screen is like


@dataclass
class Drawing:
    """Shapes on a canvas of `WIDTH`; looks come from the classes of `figure.css`.

    Attributes:
        name: of the file, without its suffix.
        title: what is shown, for those who cannot see it too.
        caption: how to read it.
        height: of the canvas.
    """

    name: str
    title: str
    caption: str
    height: float = 0
    shapes: list[Markup] = field(default_factory=list)

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        look: str,
        *,
        opacity: float = 1.0,
        hint: str = "",
    ) -> None:
        """Draw a rectangle; a hint is shown to who points at it."""
        inside = Markup("<title>{}</title>").format(_plain(hint)) if hint else ""
        faint = Markup(' fill-opacity="{}"').format(_number(opacity)) if opacity < 1 else ""
        self._add(
            '<rect x="{}" y="{}" width="{}" height="{}" class="{}"{}>{}</rect>',
            *map(_number, (x, y, width, height)),
            look,
            faint,
            inside,
        )

    def cells(
        self,
        corners: Iterable[tuple[float, float]],
        size: tuple[float, float],
        look: str,
        opacity: float,
    ) -> None:
        """Draw rectangles of one size and look as one shape."""
        width, height = map(_number, size)
        path = "".join(f"M{_number(x)} {_number(y)}h{width}v{height}h-{width}z" for x, y in corners)
        if path:
            self._add('<path d="{}" class="{}" fill-opacity="{}"/>', path, look, _number(opacity))

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        """Draw a straight line."""
        places = map(_number, (x1, y1, x2, y2))
        self._add('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>', *places, look)

    def dot(self, x: float, y: float, radius: float, look: str, hint: str = "") -> None:
        """Draw a circle."""
        inside = Markup("<title>{}</title>").format(_plain(hint)) if hint else ""
        places = map(_number, (x, y, radius))
        self._add('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>', *places, look, inside)

    def outline(self, points: Iterable[tuple[float, float]], look: str) -> None:
        """Draw the area inside of a line through the points."""
        path = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self._add('<path d="M{}z" class="{}"/>', path, look)

    def path(self, points: Iterable[tuple[float, float]], look: str) -> None:
        """Draw a line through the points."""
        path = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self._add('<path d="M{}" class="{}"/>', path, look)

    def text(self, x: float, y: float, words: str, look: str, anchor: str = "start") -> None:
        """Write words; `anchor` is the end of them that stands at x: start, middle or end."""
        self._add(
            '<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>',
            *map(_number, (x, y)),
            look,
            anchor,
            words,
        )

    def inline(self) -> Markup:
        """The drawing as a part of a page, whose style holds `STYLE`."""
        return self._svg(Markup())

    def file(self) -> bytes:
        """The drawing as a file of its own."""
        style = Markup('<style>{}</style><rect width="100%" height="100%" fill="#fff"/>')
        return f"{self._svg(style.format(STYLE))}\n".encode()

    def _svg(self, style: Markup) -> Markup:
        opening = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" class="figure" role="img" '
            'aria-labelledby="{name}-title {name}-caption"><title id="{name}-title">{}</title>'
            '<desc id="{name}-caption">{}</desc>{}'
        ).format(
            WIDTH,
            _number(self.height),
            _plain(self.title),
            _plain(self.caption),
            style,
            name=self.name,
        )
        return opening + Markup("\n").join(self.shapes) + Markup("</svg>")

    def _add(self, pattern: str, *values: object) -> None:
        self.shapes.append(Markup(pattern).format(*map(_plain, values)))


def _plain(value: object) -> Markup:
    """A text as XML can hold it: most signs that nobody can see are not allowed."""
    return value if isinstance(value, Markup) else escape(printable(str(value)))


def _number(value: float) -> str:
    """A length with at most two digits after the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
