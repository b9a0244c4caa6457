"""The verb `curve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli_options import (
    CacheOption,
    JsonOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    print_json,
    style_of,
)
from pipeline.errors import EXIT_PASS, InputError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.curve import Curves
    from pipeline.stages.settings import Setting


def curve(
    recipe: RecipeArgument,
    settings: Annotated[
        str, typer.Option(help="Ways to select, with commas; `all` for every one of them.")
    ] = "recipe,taker-abs-once,random",
    also: Annotated[
        list[str] | None,
        typer.Option(help="A way of your own: NAME:KEY=VALUE,KEY=VALUE; repeatable."),
    ] = None,
    fractions: Annotated[
        str | None, typer.Option(help="Fractions of what selects at once, with commas.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each judged text.")] = 4000,
    png: Annotated[bool, typer.Option("--png", help="Write the figure as PNG too.")] = False,
    out: Annotated[Path, typer.Option(help="The output goes to OUT/<recipe>-curve.")] = Path("out"),
    set_: SetOption = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Draw forgetting against its cost over the range of fractions, for several ways to select."""
    from pipeline.cache import Cache
    from pipeline.curve import draw, write
    from pipeline.recipe_file import load_recipe
    from pipeline.release.report.png import check_png
    from pipeline.stages.settings import FRACTIONS

    if png:
        check_png()
    loaded = load_recipe(recipe, set_ or ())
    chosen = [*_known(settings), *map(_own, also or ())]
    wanted = FRACTIONS if fractions is None else _numbers(fractions)
    cache, progress = Cache(cache_dir), Progress(style_of(json_, quiet))
    curves = draw(loaded, chosen, wanted, tokens, cache, progress)
    target = out.expanduser() / f"{loaded.recipe.name}-curve"
    files = write(curves, target, png)
    if json_:
        print_json({"event": "result", "folder": str(target), "files": files, **curves.as_dict()})
    else:
        show(curves, target, files)
    return EXIT_PASS


def show(curves: Curves, target: Path, files: list[str]) -> None:
    """Print the figures of each curve, with their intervals."""
    texts: dict[str, list[str]] = {"forget": [], "retain": []}
    for name, side in curves.judges.sides.items():
        texts[side].append(name)
    title = "; ".join(f"{side}: {', '.join(names)}" for side, names in texts.items())
    table = Table(title=f"{curves.recipe}, judged on {title}")
    columns = ["headline", "at 1 %", "at 2 %", "at 5 %", "area"]
    if any("selectivity" in found for found in curves.figures.values()):
        columns.append("selectivity")
    for column in ("", *columns, "cost"):
        justify: Literal["left", "right"] = "right" if table.columns else "left"
        table.add_column(column, justify=justify, min_width=len(column))
    costs = curves.costs()
    for setting, found in curves.figures.items():
        cells = [
            f"{100 * figure.value:.1f} ({100 * figure.low:.1f} … {100 * figure.high:.1f})"
            for figure in found.values()
        ]
        cells += [""] * (len(columns) - len(cells))  # random cuts have no selectivity
        seconds, room = costs[setting]
        table.add_row(setting, *cells, f"{seconds:,.0f} s, {room / 1e6:,.0f} MB")
    Console().print(table)
    typer.echo(
        "headline: points; at 1 %: forgotten where retain text has lost so much; cost: scoring, "
        "selecting and compensating one cut, and the sums held beside the model"
    )
    typer.echo(f"Where:   {target}  ({', '.join(files)})")


def _known(text: str) -> list[Setting]:
    from pipeline.stages.settings import SETTINGS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(SETTINGS.values())
    if unknown := [name for name in names if name not in SETTINGS]:
        raise InputError(
            f"there is no setting {unknown[0]!r}",
            where="--settings",
            remedy=f"choose {', '.join(SETTINGS)}, or write your own with --also",
        )
    return [SETTINGS[name] for name in names]


def _own(text: str) -> Setting:
    from pipeline.stages.settings import Setting

    name, colon, rest = text.partition(":")
    overrides = tuple(part.strip() for part in rest.split(",") if part.strip())
    if not (name and colon and overrides):
        raise InputError(
            f"{text!r} is no setting",
            where="--also",
            remedy="write NAME:KEY=VALUE,KEY=VALUE, such as rms:select.ffn.score=ratio",
        )
    return Setting(name, ", ".join(overrides), overrides)


def _numbers(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < number < 1 for number in found):
        raise InputError(
            f"{text!r} are no fractions",
            where="--fractions",
            remedy="write numbers between 0 and 1 with commas, such as 0.02,0.05,0.1",
        )
    return found
