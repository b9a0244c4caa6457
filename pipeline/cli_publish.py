"""The verb `publish`, and publishing what a run has made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

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

if TYPE_CHECKING:  # they bring torch, which `unlearn --help` does not need
    from pipeline.cache import Cache
    from pipeline.publishing import Agree, Offer
    from pipeline.recipe_file import LoadedRecipe

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Publish without asking, as in CI.")]


def publish(
    checkpoint: CheckpointArgument,
    to: Annotated[str, typer.Option(help="Repository on the Hub, as organisation/name.")],
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    set_: SetOption = None,
    recompute: Annotated[
        bool, typer.Option(help="Verify the compensation by scoring the recipe's texts again.")
    ] = False,
    public: Annotated[bool, typer.Option(help="Let everybody see it; default: private.")] = False,
    revision: Annotated[
        str, typer.Option(help="Branch; made from main if there is none of this name.")
    ] = "main",
    pull_request: Annotated[
        bool, typer.Option(help="Open a pull request, and leave the branch as it is.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="Tag that the commit is given.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    extra: Annotated[
        list[Path] | None,
        typer.Option(help="Image or text to add in the folder extra/; repeatable."),
    ] = None,
    even_if_failed: Annotated[
        bool, typer.Option(help="Publish what did not pass its gates; the card says so.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace whatever the repository holds.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check and show everything, send nothing.")] = False,
    yes: YesOption = False,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Publish a release on the Hugging Face Hub, if it is what it says and passed its gates."""
    from pipeline.cache import Cache
    from pipeline.publishing import Wish
    from pipeline.publishing import publish as publish_release
    from pipeline.release.hub.destination import Destination
    from pipeline.verify import open_release

    cache, progress = Cache(cache_dir), Progress(style_of(json_, quiet))
    destination = Destination(to, public, revision, pull_request, tag, message, force)
    wish = Wish(destination, even_if_failed, tuple(extra or ()), recompute)
    agree = agreement(yes or dry_run, progress)
    release = open_release(
        checkpoint,
        base,
        recipe,
        set_ or (),
        needs_recipe=recompute,
        cache=cache,
        progress=progress,
    )
    result = publish_release(
        release, wish, agree=agree, dry_run=dry_run, cache=cache, progress=progress
    )
    show_publication(result, json_, event="result")
    return EXIT_PASS


def publishing_of(
    loaded: LoadedRecipe, yes: bool, cache: Cache, progress: Progress
) -> Callable[[Path, str], dict[str, Any] | None]:
    """What publishes the run of a recipe, if it says so; whether it can is found out now.

    The function takes the output folder and its verdict, and returns what was published.

    Raises:
        InputError: nobody could agree, there is no token, or the place cannot be written to.
        BrokenError: the Hub cannot be reached.
    """
    section = loaded.recipe.publish
    if section is None:
        return lambda _folder, _verdict: None
    from pipeline.publishing import check_reachable, wish_of
    from pipeline.publishing import publish as publish_release
    from pipeline.verify import open_release

    wish, agree = wish_of(section, loaded.folder), agreement(yes, progress)
    with progress.stage("Hub"):
        check_reachable(wish, loaded.recipe.name)

    def after(folder: Path, verdict: str) -> dict[str, Any] | None:
        if verdict != "PASS" and not wish.even_if_failed:
            progress.say(f"Not published: the verdict is {verdict}")
            return None
        release = open_release(
            str(folder),
            None,
            str(loaded.path),
            loaded.overrides,
            needs_recipe=True,
            cache=cache,
            progress=progress,
        )
        return publish_release(release, wish, agree=agree, cache=cache, progress=progress)

    return after


def show_publication(result: dict[str, Any], as_json: bool, event: str = "published") -> None:
    """Print what was published."""
    from pipeline.release.hub.show import show_published

    if as_json:
        print_json({"event": event, **result})
    else:
        show_published(result, Console(highlight=False))


def agreement(yes: bool, progress: Progress) -> Agree:
    """What shows an offer, and asks unless the answer is known.

    Raises:
        InputError: nobody is there to be asked.
    """
    from pipeline.release.hub.show import show_offer

    if not yes and not sys.stdin.isatty():
        raise InputError(
            "nobody is here to agree to what would be sent",
            where="--yes",
            remedy="add --yes, or see with --dry-run what would be sent",
        )

    def agree(offer: Offer) -> None:
        if not yes or progress.style in ("terminal", "plain"):
            show_offer(offer.as_dict(), progress.console)
        if not yes and not typer.confirm("Publish this?", err=True):
            raise InputError("you did not agree, and nothing was sent", where="--yes")

    return agree
