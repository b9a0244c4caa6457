"""Pages of a release that a browser opens: whichever version made them, they can do nothing.

What they say is compared elsewhere, where it can be made anew. Here it is made sure of that nobody
who opens the report of a release runs its uploader's script or tells him of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from pipeline.release.checks.findings import Finding
from pipeline.release.report.page import FIGURES
from pipeline.release.report.page import NAME as REPORT

MOST_BYTES = 1 << 23
# A policy in the first bytes counts for all that follows, and later ones can only forbid more.
BEGINNING = re.compile(
    rb'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    rb'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    rb"style-src 'sha256-[A-Za-z0-9+/=]{44}'; base-uri 'none'; form-action 'none'\">\n"
)
SVG = "{http://www.w3.org/2000/svg}"
SHAPES = """
svg title desc style rect path line circle text
"""
HARMLESS = """
viewBox class role aria-labelledby id x y width height fill fill-opacity d x1 y1 x2 y2 cx cy r
text-anchor
"""
DECLARATIONS = (b"<!", b"<?")
FETCHING = ("url", "import", "image", "src", "\\")  # in a style; a backslash can hide a name


def check_pages(folder: Path) -> Iterator[Finding]:
    """Yield what a browser would run or fetch of the report and its figures, or might."""
    if (path := folder / REPORT).is_file() and not _forbids(path):
        yield Finding(REPORT, "does not begin with the policy that forbids scripts and network")
    for path in sorted(folder.glob(f"{FIGURES}/*")):
        if path.is_file() and (what := _active(path)):
            yield Finding(path.relative_to(folder).as_posix(), what)


def _forbids(path: Path) -> bool:
    with path.open("rb") as stream:
        return BEGINNING.match(stream.read(1024)) is not None


def _active(path: Path) -> str:
    """What of a figure is more than a drawing; empty if nothing is."""
    if path.stat().st_size > MOST_BYTES:
        return "is too large for a figure"
    content = path.read_bytes()
    if any(each in content for each in DECLARATIONS):
        return "declares something, which no figure needs"
    try:
        root = ElementTree.fromstring(content.decode())
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        return f"is no SVG ({error})"
    shapes, harmless = {f"{SVG}{name}" for name in SHAPES.split()}, {*HARMLESS.split()}
    for element in root.iter():
        if element.tag not in shapes or not harmless.issuperset(element.attrib):
            return f"holds <{element.tag.removeprefix(SVG)}> with more than a drawing needs"
        style = element.text or "" if element.tag == f"{SVG}style" else element.get("fill", "")
        if any(each in style.lower() for each in FETCHING):
            return "has a style that may fetch something"
    return ""
