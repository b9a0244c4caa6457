"""The report of any release, made anew outside of it: of an earlier format too, and as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cache import unwritable
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest_schema import problems, upgraded
from pipeline.progress import Progress
from pipeline.release.report.page import report_files
from pipeline.release.report.png import as_png, check_png
from pipeline.sources.releases import fetch_release, short_name
from pipeline.verify import manifest_of


def make_report(reference: str, out: Path | None, png: bool, progress: Progress) -> dict[str, Any]:
    """Write the report of a release and its figures; JSON-able result.

    Args:
        reference: folder or Hub id of the release.
        out: the folder to write to; default: beside the release, named after it.
        png: write each figure as PNG too.
        progress: where to report.

    Raises:
        InputError: there is no such release, no report can be made of its manifest, or the folder
            is the release's own.
        BrokenError: the disk has no room.
    """
    if png:
        check_png()
    folder = fetch_release(reference, progress, only=(MANIFEST,))
    target = out or Path(f"{short_name(reference)}-report")
    if out is None and Path(reference).is_dir():
        target = folder.resolve().with_name(target.name)
    if target.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "nothing is written into a release: its manifest lists all that is in it",
            where=str(target),
            remedy="choose another place with --out",
        )
    files = _files(manifest_of(folder), folder)
    if png:
        drawings = {name: content for name, content in files.items() if name.endswith(".svg")}
        files |= {f"{name[:-4]}.png": as_png(content) for name, content in drawings.items()}
    try:
        for name, content in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError("this is no place for a folder", where=str(target)) from error
    except OSError as error:
        raise unwritable(error, target) from error
    return {"checkpoint": str(folder), "folder": str(target), "files": sorted(files)}


def _files(manifest: dict[str, Any], folder: Path) -> dict[str, bytes]:
    wrong = next(problems(manifest), None)
    if wrong is None:
        try:
            return report_files(upgraded(manifest))
        except Exception as error:  # whatever a template meets in a manifest that lies
            wrong = repr(error)
    raise InputError(
        f"no report can be made of this manifest: {wrong}",
        where=str(folder / MANIFEST),
        remedy="`unlearn verify` says whether the release is what it says",
    )
