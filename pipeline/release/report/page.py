"""`report.html` and `figures/` of a released folder, from the manifest alone.

The page holds all that it shows: no script, no link, no font, no image from elsewhere, and its
Content-Security-Policy allows none. The same manifest gives the same bytes, so that whoever checks
a release can make them again. A section is a template of its name; one without content is left out.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment
from markupsafe import Markup

from pipeline.cache import json_bytes
from pipeline.release.facts import (
    RemovedUnits,
    baselines,
    maps_were_learned,
    named_base,
    removed_units,
)
from pipeline.release.report.curves import released_curve
from pipeline.release.report.figures import gates_figure, results_figure
from pipeline.release.report.network import layers_figure, score_figures
from pipeline.release.report.results import gate_rows, headlines, measured
from pipeline.release.report.svg import STYLE, Drawing
from pipeline.release.report.verdict import verdict_words
from pipeline.release.results import size_rows
from pipeline.rendering import environment

NAME = "report.html"
FIGURES = "figures"
MINUTE = 60


class Section(NamedTuple):
    """A part of the page: the name of its template, its title, and whether it has content."""

    name: str
    title: str
    shown: bool = True


def write_report(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the report of a released folder, and its figures."""
    for name, content in report_files(manifest).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def report_files(manifest: dict[str, Any]) -> dict[str, bytes]:
    """The page and its figures, by their names in the release."""
    manifest = json.loads(json_bytes(manifest))  # as whoever checks it will read it
    figures = _figures(manifest)
    drawings = [drawing for group in figures.values() for drawing in group]
    return {
        NAME: _page(manifest, figures).encode(),
        **{f"{FIGURES}/{drawing.name}.svg": drawing.file() for drawing in drawings},
    }


def _figures(manifest: dict[str, Any]) -> dict[str, list[Drawing]]:
    """The figures of each section."""
    select = manifest["recipe"].get("select", {})
    found: dict[str, Sequence[Drawing | None]] = {
        "results": [gates_figure(gate_rows(manifest)), results_figure(measured(manifest))],
        "curve": [released_curve(manifest)],
        "network": [layers_figure(manifest["plan"]), *score_figures(manifest["scores"], select)],
    }
    return {name: [each for each in group if each] for name, group in found.items()}


def _page(manifest: dict[str, Any], figures: dict[str, list[Drawing]]) -> str:
    style = _style()
    rows, removed = measured(manifest), removed_units(manifest["units"])
    evaluation, recipe = manifest["evaluation"], manifest["recipe"]
    sections = (
        Section("results", "Before and after"),
        Section("curve", "Forgetting against its cost", bool(figures["curve"])),
        Section("network", "Where in the network the units were", bool(figures["network"])),
        Section("examples", "What it writes", bool(manifest["prompts"])),
        Section("cost", "What it weighs and how fast it is"),
        Section("method", "How it was made"),
        Section("repeat", "Repeat it, check it"),
        Section("limits", "What it does not claim"),
    )
    return _environment().get_template("report/page.html.jinja").render(
        m=manifest,
        model=manifest["base"]["name"].split("/")[-1],
        style=style,
        style_hash=f"sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}",
        sections=[section for section in sections if section.shown],
        figures=figures,
        search=manifest.get("search"),
        curve=manifest.get("curve"),
        verdict=verdict_words(manifest["verdict"], evaluation["gates"]),
        removed=removed,
        removed_words=_removed_words(removed),
        baselines=baselines(recipe.get("select", {})),
        policy=recipe.get("select", {}).get("policy"),
        protected=manifest["scores"].get("ffn", {}).get("protected"),
        lists=[
            ("What it should lose", headlines(rows, "forget"), "The less is left, the better."),
            ("What it should keep", headlines(rows, "retain"), "The more is left, the better."),
        ],
        tasks=[[*group] for _, group in groupby(rows, key=lambda row: row.row.task)],
        meanings=sorted({(r.row.metric, r.meaning) for r in rows if r.meaning != r.row.metric}),
        gates=gate_rows(manifest),
        controlled="control" in evaluation,
        sizes=size_rows(manifest),
        evaluated=_duration(
            sum(
                task["seconds"]
                for model in ("base", "pruned", "control")
                for task in evaluation.get(model, {"tasks": {}})["tasks"].values()
            )
        ),
        base=named_base(manifest["base"]["origin"]),
        taught=maps_were_learned(manifest["recipe"]),
        recipe_name=manifest["name"],
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100),
        digests=_digests(manifest),
    )  # fmt: skip


def _environment() -> Environment:
    templates = environment("pipeline.release", html=True)
    templates.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{100 * value:.1f} %",
        "figure": lambda value: f"{value:.2g}",
        "duration": _duration,
        "listed": lambda origin: ", ".join(f"{key} {value}" for key, value in origin.items()),
    }
    return templates


def _style() -> Markup:
    folder = files("pipeline.release") / "templates" / "report"
    names = ("page.css", "figure-dark.css")
    page, dark = (Markup((folder / name).read_text("utf-8")) for name in names)
    return page + STYLE + dark


def _removed_words(removed: Sequence[RemovedUnits]) -> str:
    parts = [f"{unit.gone:,} of its {unit.total:,} {unit.kind}" for unit in removed]
    return " and ".join(parts) or "any change"


def _digests(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What is named by its hash: weights, recipe, settings of the base and texts."""
    base = manifest["base"]
    return [
        ("weights of the base", base["weights_sha256"]),
        ("weights of the pruned model", manifest["pruned"]["weights_sha256"]),
        ("recipe", manifest["recipe_sha256"]),
        *((f"{name} of the base", digest) for name, digest in base["files"].items()),
        *(
            (f"{corpus['name']}, {words}", corpus[key])
            for corpus in manifest["corpora"]
            for key, words in (("scored_sha256", "scored"), ("held_out_sha256", "held out"))
            if corpus[key]
        ),
    ]


def _duration(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE)} s"
