"""Card and report of a release: each is made anew from the manifest, and compared to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.card import NAME as CARD
from pipeline.release.card import card_text
from pipeline.release.checks.findings import Finding, shortened
from pipeline.release.report.page import FIGURES, report_files
from pipeline.release.report.page import NAME as REPORT

Make = Callable[[dict[str, Any]], dict[str, bytes]]


def check_made(folder: Path, manifest: Mapping[str, Any]) -> tuple[list[Finding], list[str]]:
    """Compare the card, the report and its figures with those that the manifest gives.

    A release may leave them out, and what another version made cannot be made again.

    Returns:
        What is not what the manifest gives, and what could not be compared.
    """
    figures = sorted(path.relative_to(folder).as_posix() for path in folder.glob(f"{FIGURES}/*"))
    findings: list[Finding] = []
    notes: list[str] = []
    made: tuple[tuple[str, list[str], Make], ...] = (
        ("card", [CARD], _card),
        ("report", [REPORT, *figures], report_files),
    )
    for what, names, make in made:
        present = [name for name in names if (folder / name).is_file()]
        if present and not of_this_version(manifest):
            said = shortened(str(_version(manifest)), 60)
            notes.append(
                f"not compared: the {what}, which version {said} is said to have made; "
                f"this is {__version__}"
            )
        elif present:
            findings += _compare(folder, manifest, what, present, make)
    return findings, notes


def of_this_version(manifest: Mapping[str, Any]) -> bool:
    """Whether a release is said to be of this version, so that its words can be made again."""
    return bool(_version(manifest) == __version__)


def _version(manifest: Mapping[str, Any]) -> Any:
    environment = manifest.get("environment")
    return environment.get("unlearn-pipeline") if isinstance(environment, dict) else None


def _compare(
    folder: Path, manifest: Mapping[str, Any], what: str, names: list[str], make: Make
) -> Iterator[Finding]:
    try:
        expected = make(dict(manifest))
    except Exception as error:  # whatever a template meets in a manifest that lies
        yield Finding(MANIFEST, f"no {what} can be made of it ({error!r})")
        return
    for name in names:
        path, content = folder / name, expected.get(name)
        if content is None:
            yield Finding(name, f"is no part of the {what} that the manifest gives")
        elif path.stat().st_size != len(content) or path.read_bytes() != content:
            yield Finding(name, f"is not the {what} that the manifest gives")


def _card(manifest: dict[str, Any]) -> dict[str, bytes]:
    return {CARD: card_text(manifest).encode()}
