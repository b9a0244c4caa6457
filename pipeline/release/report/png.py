"""Figures as PNG, by resvg, which the extra `figures` installs."""

from __future__ import annotations

import importlib.util

from pipeline.errors import InputError

PACKAGE = "resvg_py"
ZOOM = 3  # dots for each unit of a figure: 1440 across


def check_png() -> None:
    """Refuse `--png` without the package that draws it.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"the package {PACKAGE}, which draws PNG, is not installed",
            where="--png",
            remedy='install it: pip install "unlearn-pipeline[figures]"',
        )


def as_png(drawing: bytes) -> bytes:
    """An SVG file as PNG."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=drawing.decode(), zoom=ZOOM))
