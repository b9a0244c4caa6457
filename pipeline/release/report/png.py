"""Figures as PNG, by resvg, which the extra `figures` installs."""

from __future__ import annotations

from pipeline.errors import check_package

PACKAGE = "resvg_py"
ZOOM = 3  # dots for each unit of a figure: 1440 across


def check_png() -> None:
    """Refuse `--png` without the package that draws it.

    Raises:
        InputError: it is not installed.
    """
    check_package(PACKAGE, "draws PNG", extra="figures", where="--png")


def as_png(drawing: bytes) -> bytes:
    """An SVG file as PNG."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=drawing.decode(), zoom=ZOOM))
