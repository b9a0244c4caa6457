"""Verbs that look at models and releases, and make nothing: `inspect`, `diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli_options import (
    CacheOption,
    CheckpointArgument,
    JsonOption,
    QuietOption,
    print_json,
    style_of,
)
from pipeline.errors import EXIT_PASS
from pipeline.progress import Progress


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, organisation/name@revision, .gguf file or package:name/file."
        ),
    ],
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
) -> int:
    """Say what a model is made of, and what can be cut out of it."""
    from pipeline.cache import Cache
    from pipeline.inspection import inspect as inspect_model
    from pipeline.release.show import show_inspection

    found = inspect_model(model, Cache(cache_dir))
    if json_:
        print_json(found)
    else:
        show_inspection(found)
    return EXIT_PASS


def diff(
    one: CheckpointArgument,
    other: CheckpointArgument,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Compare two releases: units, results, texts, recipes, environments and files."""
    from pipeline.difference import difference
    from pipeline.release.show_difference import show_difference

    found = difference(one, other, Progress(style_of(json_, quiet)))
    if json_:
        print_json({"event": "result", **found})
    else:
        show_difference(found)
    return EXIT_PASS
