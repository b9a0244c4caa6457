"""The model card: `README.md` of a released folder, from the manifest alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Template

from pipeline.release.checks.findings import printable
from pipeline.release.facts import (
    baselines,
    curve_points,
    gates_were_learned,
    maps_were_learned,
    named_base,
    removed_units,
    told_base,
)
from pipeline.release.metadata import metadata_block
from pipeline.release.results import metric_rows, size_rows
from pipeline.rendering import environment

NAME = "README.md"
CELL_LENGTH = 1000


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card of a released folder."""
    (folder / NAME).write_text(card_text(manifest), encoding="utf-8")


def card_text(manifest: dict[str, Any]) -> str:
    """The card as Markdown with the Hub's metadata block."""
    return template("card.md.jinja").render(
        m=manifest,
        metadata=metadata_block(manifest),
        publication=manifest.get("publication") or {"even_if_failed": False, "extra": []},
        search=manifest.get("search"),
        curve=manifest.get("curve"),
        points=curve_points(manifest.get("curve")),
        base=named_base(manifest["base"]["origin"]),
        base_told=told_base(manifest["base"]),
        metrics=metric_rows(manifest["evaluation"]),
        controlled="control" in manifest["evaluation"],
        sizes=size_rows(manifest),
        remote_code=manifest["base"]["origin"].get("remote_code"),
        ragged=manifest["recipe"].get("select", {}).get("policy") == "ragged",
        baselines=baselines(manifest["recipe"].get("select", {})),
        learned=gates_were_learned(manifest["recipe"].get("select", {})),
        taught=maps_were_learned(manifest["recipe"]),
        removed=removed_units(manifest["units"]),
    )


def template(name: str) -> Template:
    """A Markdown template of this package; `cell` makes a text fit into a table's cell."""
    templates = environment("pipeline.release")  # Markdown, not HTML
    templates.filters["cell"] = _cell
    return templates.get_template(name)


def _cell(text: object) -> str:
    """Text for a table's cell, in which nothing but words is left: no HTML, image or link."""
    plain = printable(str(text).replace("\n", " "))
    if len(plain) > CELL_LENGTH:
        plain = plain[: CELL_LENGTH - 1] + "…"
    return re.sub(r"([\\|<`]|(?<=\])\()", r"\\\1", plain)
