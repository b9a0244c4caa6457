"""The verb `relearn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli_options import (
    BaseOption,
    CacheOption,
    CheckpointArgument,
    JsonOption,
    OwnRecipeOption,
    QuietOption,
    SetOption,
    print_json,
    style_of,
)
from pipeline.errors import EXIT_PASS, InputError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.relearn import Relearning

FULL_RATE, ADAPTER_RATE = 5e-5, 5e-4


def relearn(
    checkpoint: CheckpointArgument,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another checkpoint of the same base: NAME=FOLDER; repeatable."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of scored forget text to learn.")
    ] = 20000,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 4 rows of 128 tokens.")] = 100,
    every: Annotated[int, typer.Option(min=1, help="Measure after so many steps.")] = 10,
    judged: Annotated[int, typer.Option(min=1, help="Tokens of each held-out text.")] = 2000,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train low-rank adapters only; extra `relearn`.")
    ] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help=f"Default {FULL_RATE:g}, with --lora {ADAPTER_RATE:g}."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows' order and the adapters.")] = 0,
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The output goes to OUT/<checkpoint>-relearn; default: beside it."),
    ] = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Fine-tune base, release and a random cut on forget text: how fast is it learned again?"""
    progress = Progress(style_of(json_, quiet))
    with progress.stage("Libraries"):
        from pipeline.cache import Cache
        from pipeline.evaluation.adapters import check_adapters
        from pipeline.evaluation.tuning import Manner
        from pipeline.relearn import check_others, check_place, write
        from pipeline.relearn import relearn as relearn_all
        from pipeline.sources.releases import short_name
        from pipeline.verify import open_release

    if lora:
        check_adapters()
    others = dict(map(_named, also or ()))
    check_others(others)
    cache = Cache(cache_dir)
    release = open_release(
        checkpoint, base, recipe, set_ or (), needs_recipe=True, cache=cache, progress=progress
    )
    target = _place(checkpoint, release.folder, out) / f"{short_name(checkpoint)}-relearn"
    check_place(target, release.folder)
    rate = learning_rate or (ADAPTER_RATE if lora else FULL_RATE)
    manner = Manner(steps, every, rate, lora, seed)
    found = relearn_all(release, others, manner, tokens, judged, cache, progress)
    files = write(found, target)
    if json_:
        print_json({"event": "result", "folder": str(target), "files": files, **found.as_dict()})
    else:
        show(found, target, files)
    return EXIT_PASS


def show(found: Relearning, target: Path, files: list[str]) -> None:
    """Print what each model lost, and how fast it learned it again."""
    from pipeline.release.show import terminal

    texts = (f"{side}: {name}" for name, side in found.judges.sides.items())
    what = "adapters" if found.manner.adapters else "all weights"
    title = (
        f"{found.manner.steps} steps of AdamW at {found.manner.learning_rate:g} ({what}) on "
        f"{found.tokens:,} tokens of forget text; judged on {', '.join(texts)}"
    )
    table = Table(title=escape(title), title_justify="left")
    columns = ("parameters", "forget drop", "retain drop", "half regained after", "behind the base")
    for column in ("", *columns, "seconds"):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, own in found.figures().items():
        table.add_row(
            escape(name),
            f"{own['parameters']:,}",
            *(
                f"{own[key]:.1%} → {own[f'{key}_after']:.1%}"
                for key in ("forget_drop", "retain_drop")
            ),
            _half(own["steps_to_half"], own["forget_drop"], found.manner.steps),
            f"{100 * own['area']:.1f} points",
            f"{own['seconds']:.0f}",
        )
    terminal().print(table)
    typer.echo(f"Where:   {target}  ({', '.join(files)})")


def _half(steps: float | None, lost: float, last: int) -> str:
    if lost <= 0:
        return "nothing lost"
    return f"not within {last} steps" if steps is None else f"{steps:.1f} steps"


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InputError(
            f"{text!r} names no checkpoint",
            where="--also",
            remedy="write NAME=FOLDER, such as npo=out/npo",
        )
    return name, Path(folder).expanduser()


def _place(checkpoint: str, folder: Path, out: Path | None) -> Path:
    """Where to write: beside a folder that was named, in the working folder what the Hub has."""
    if out is not None:
        return out.expanduser()
    return folder.resolve().parent if Path(checkpoint).expanduser().is_dir() else Path()
