"""Verbs for whoever starts: `doctor`, `new`, `recipes`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import CacheOption, JsonOption, QuietOption, print_json, style_of
from pipeline.errors import EXIT_PASS, EXIT_USAGE
from pipeline.progress import Progress


def doctor(
    out: Annotated[Path, typer.Option(help="Where outputs would go.")] = Path("out"),
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Say what this machine has and lacks, what needs it, and how to get it."""
    progress = Progress(style_of(json_, quiet))
    with progress.stage("Looking at this machine"):
        from pipeline.cache import Cache
        from pipeline.doctor import can_run, examine

        checks = examine(Cache(cache_dir), out)
    found = [check.as_dict() for check in checks]
    if json_:
        print_json({"event": "result", "can_run": can_run(checks), "checks": found})
    else:
        from pipeline.release.show_checks import show_checks

        show_checks(found, can_run(checks))
    return EXIT_PASS if can_run(checks) else EXIT_USAGE


def new(
    name: Annotated[str, typer.Argument(help="Name of the new recipe, such as no-poems.")],
    forget: Annotated[
        list[str],
        typer.Option(
            help="Text that shows what to forget: file (jsonl, json, csv, parquet, arrow, txt), "
            "folder or quoted pattern; repeatable."
        ),
    ],
    retain: Annotated[
        list[str], typer.Option(help="Text that shows what to keep, likewise; repeatable.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, organisation/name@revision, .gguf file or package:name/file; default: "
            "the model of no-code."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the recipe.")] = Path("recipes"),
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write a commented recipe of your own around a text to forget and a text to keep."""
    progress = Progress(style_of(json_, quiet))
    with progress.stage("Texts and model"):
        from pipeline.cache import Cache
        from pipeline.new_recipe import new_recipe
        from pipeline.recipe_file import own_folders

        made = new_recipe(name, forget, retain, model, out.expanduser(), Cache(cache_dir), progress)
    known = out.expanduser().resolve() in [folder.resolve() for folder in own_folders()]
    written = [str(path) for path in (made.path, *made.texts)]
    if json_:
        print_json({"event": "result", "written": written, "notes": made.notes})
        return EXIT_PASS
    for path in written:
        print(f"Wrote {path}")
    for note in made.notes:
        print(f"Note: {note}")
    again = name if known else str(made.path)
    print(f"Next: fill in its TODO lines, then `unlearn check {again}` and `unlearn run {again}`")
    return EXIT_PASS


def recipes(json_: JsonOption = False) -> int:
    """List the recipes that can be run by name: your own and those that came with this tool."""
    from pipeline.recipe_file import list_recipes
    from pipeline.release.show import show_recipes

    found = list_recipes()
    if json_:
        print(json.dumps([{"name": r.name, "path": str(r.path)} for r in found]))
        return EXIT_PASS
    show_recipes([(r.name, r.description, r.own_path) for r in found])
    return EXIT_PASS


def schema() -> int:
    """Print the JSON Schema of recipes, for editors."""
    from pipeline.recipe_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return EXIT_PASS
