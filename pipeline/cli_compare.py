"""The verb `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
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
    from pipeline.baselines.ways import Way
    from pipeline.stages.compared import Comparison

RELEARNING_RATE = 5e-5


def compare(
    recipe: RecipeArgument,
    ways: Annotated[
        str, typer.Option(help="Other ways to unlearn, with commas: ga, gd, npo, rmu.")
    ] = "ga,gd,npo,rmu",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="For each of them, all of its trials together.")
    ] = 10.0,
    retain_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="What each may cost selection text; default: what pruning does."
        ),
    ] = None,
    every: Annotated[
        int, typer.Option(min=1, help="Ask selection text after so many steps of training.")
    ] = 4,
    judged: Annotated[int, typer.Option(min=1, help="Tokens of each held-out text.")] = 2000,
    no_relearn: Annotated[
        bool, typer.Option("--no-relearn", help="Do not let all of them learn forget text again.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that are learned again.")] = 20000,
    steps: Annotated[int, typer.Option(min=1, help="Steps in which they are.")] = 100,
    out: Annotated[Path, typer.Option(help="The output goes to OUT/<recipe>-compare.")] = Path(
        "out"
    ),
    set_: SetOption = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Compare a recipe's pruning with ways to unlearn that train the model."""
    progress = Progress(style_of(json_, quiet))
    with progress.stage("Libraries"):
        from pipeline.cache import Cache
        from pipeline.compare import FILES, write
        from pipeline.compare import compare as compare_all
        from pipeline.evaluation.tuning import Manner
        from pipeline.recipe_file import load_recipe
        from pipeline.stages.compared import Terms
        from pipeline.stages.output import check_own_folder

    chosen = _chosen(ways)
    loaded = load_recipe(recipe, set_ or ())
    target = out.expanduser() / f"{loaded.recipe.name}-compare"
    check_own_folder(target, FILES, "compare")
    manner = None if no_relearn else Manner(steps, max(1, steps // 10), RELEARNING_RATE)
    terms = Terms(minutes, retain_drop, every, judged, manner, tokens)
    found = compare_all(loaded, chosen, terms, Cache(cache_dir), progress)
    files = write(found, target)
    if json_:
        print_json({"event": "result", "folder": str(target), "files": files, **found.as_dict()})
    else:
        show(found, target, files)
    return EXIT_PASS


def show(found: Comparison, target: Path, files: list[str]) -> None:
    """Print a row for each way."""
    from pipeline.release.show import terminal

    texts = (f"{side}: {name}" for name, side in found.judges.sides.items())
    title = (
        f"{found.recipe}: {found.terms.minutes:g} minutes for each trained way, at most "
        f"{found.budget:.1%} of retain accuracy on selection text; judged on {', '.join(texts)}"
    )
    table = Table(title=escape(title), title_justify="left")
    again = ("half regained after", "behind the base") if found.terms.relearning else ()
    for column in ("", "forget drop", "retain drop", "parameters", "seconds", "rate", *again):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, row in found.rows.items():
        if row["forget_drop"] is None:
            table.add_row(name, "nothing within the budget", "", "", f"{row['seconds']:.0f}")
            continue
        cells = [f"{row['forget_drop']:.1%}", f"{row['retain_drop']:.1%}", f"{row['parameters']:,}"]
        seconds = f"{row['seconds']:.0f}" + (" + scoring" if row["scoring_was_cached"] else "")
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        if found.terms.relearning:
            last, half = found.terms.relearning.steps, row["steps_to_half"]
            regained = f"not within {last} steps" if half is None else f"{half:.1f} steps"
            cells_again = [regained, f"{100 * row['area']:.1f} points"]
        else:
            cells_again = []
        table.add_row(name, *cells, seconds, rate, *cells_again)
    terminal().print(table)
    typer.echo(f"Where:   {target}  ({', '.join(files)})")


def _chosen(text: str) -> list[Way]:
    from pipeline.baselines.ways import WAYS

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in WAYS]:
        raise InputError(
            f"there is no way to unlearn called {unknown[0]!r}",
            where="--ways",
            remedy=f"choose {', '.join(WAYS)}",
        )
    return [WAYS[name] for name in names]
