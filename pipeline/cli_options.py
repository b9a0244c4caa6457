"""Options that several verbs of the command share, and how they print."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.progress import Style


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Names of recipes that begin with what was typed, and what they do, for a shell's completion.

    Where there is none, the shell completes names of files.
    """
    from pipeline.recipe_file import list_recipes

    with suppress(OSError):  # of a folder that may not be read: nobody waits for an error here
        return [(r.name, r.description) for r in list_recipes() if r.name.startswith(incomplete)]
    return []


CheckpointArgument = Annotated[
    str, typer.Argument(help="A released folder, or organisation/name@revision of the Hub.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        help="The base: folder, organisation/name@revision, .gguf file or package:name/file. "
        "Default: the recipe's model."
    ),
]
OwnRecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Your own recipe; default: the one of the manifest's name that came with this tool.",
        autocompletion=recipe_names,
    ),
]
RecomputeOption = Annotated[
    bool, typer.Option(help="Score the recipe's texts again, and derive the compensation.")
]
ManifestOption = Annotated[str | None, typer.Option(help="SHA-256 that the manifest must have.")]
PublicKeyOption = Annotated[
    Path | None, typer.Option(help="The release must be signed with this key (PEM).")
]
IdentityOption = Annotated[
    str | None, typer.Option(help="The release must be signed by this identity, through Sigstore.")
]
ProviderOption = Annotated[str | None, typer.Option(help="URL of who vouches for the identity.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(help="Name of a recipe, or path of a YAML file.", autocompletion=recipe_names),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: `--set select.ffn.fraction=0.2`; repeatable."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir", help="Finished stages; default $UNLEARN_CACHE or ~/.cache/unlearn."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Events and result as JSON lines.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


def print_json(value: dict[str, Any]) -> None:
    """Print a result as one line of JSON."""
    from pipeline.cache import plain_json

    print(json.dumps(plain_json(value), allow_nan=False))


def style_of(as_json: bool, quiet: bool) -> Style:
    """How progress is shown, by the options and by whether anybody looks at a terminal."""
    if as_json:
        return "json"
    if quiet:
        return "quiet"
    return "terminal" if sys.stderr.isatty() else "plain"
