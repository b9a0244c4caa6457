"""The verb `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import CheckpointArgument, JsonOption, QuietOption, print_json, style_of
from pipeline.errors import EXIT_PASS
from pipeline.progress import Progress


def report(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: CHECKPOINT-report beside it.")
    ] = None,
    png: Annotated[
        bool, typer.Option(help="Write each figure as PNG too; extra `figures`.")
    ] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write the report of a release and its figures to a folder of their own."""
    from pipeline.reporting import make_report

    found = make_report(checkpoint, out, png, Progress(style_of(json_, quiet)))
    if json_:
        print_json({"event": "result", **found})
    else:
        typer.echo("\n".join(str(Path(found["folder"]) / name) for name in found["files"]))
    return EXIT_PASS
