"""Figures as PNG, by resvg, which the extra `figures` installs."""

from __future__ import annotations

from pipeline.errors import check_package

PACKAGE = "resvg_py"
ZOOM = 3  # dots for each unit of a figure: 1440 across
# resvg takes sans-serif to be Arial, and draws no letter where a machine lacks it.
SANS_SERIF = ("Liberation Sans", "DejaVu Sans", "Noto Sans", "Cantarell")


def check_png() -> None:
    """Refuse `--png` without the package that draws it.

    Raises:
        InputError: it is not installed.
    """
    check_package(PACKAGE, "draws PNG", extra="figures", where="--png")


def as_png(drawing: bytes) -> bytes:
    """An SVG file as PNG."""
    import resvg_py

    families = ", ".join(f"'{name}'" for name in SANS_SERIF)
    named = drawing.decode().replace("sans-serif", f"{families}, sans-serif")
    return bytes(resvg_py.svg_to_bytes(svg_string=named, zoom=ZOOM))
