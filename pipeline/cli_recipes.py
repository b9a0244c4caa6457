"""Verbs for whoever writes a recipe: `recipes`, `schema`."""

from __future__ import annotations

import json

from pipeline.cli_options import JsonOption
from pipeline.errors import EXIT_PASS


def recipes(json_: JsonOption = False) -> int:
    """List the recipes that can be run by name."""
    from pipeline.recipe_file import list_recipes
    from pipeline.release.show import show_recipes

    found = list_recipes()
    if json_:
        print(json.dumps([{"name": r.name, "path": str(r.path)} for r in found]))
    else:
        show_recipes([(r.name, r.description) for r in found])
    return EXIT_PASS


def schema() -> int:
    """Print the JSON Schema of recipes, for editors."""
    from pipeline.recipe_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return EXIT_PASS
