"""Verbs that look at models and releases, and make nothing: `inspect`, `diff`, `chat`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:  # it brings torch, which `unlearn --help` does not need
    from pipeline.chat import Conversation

QUIT, RESET = ("/quit", "/exit"), "/reset"
COMMAND = re.compile(r"/[a-z?]+")
HELP = "/reset starts anew, /quit or Ctrl-D ends, Ctrl-C stops an answer"


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


def chat(
    base_or_pruned: Annotated[
        str,
        typer.Argument(
            metavar="[BASE] PRUNED",
            help="The base, then the release; the release alone takes the base of its recipe.",
        ),
    ],
    pruned: Annotated[str | None, typer.Argument(hidden=True)] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Answer this and end; repeatable; else prompts are asked for."),
    ] = None,
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    set_: SetOption = None,
    chat_template: Annotated[
        bool, typer.Option(help="Talk through the models' chat template, if they have one.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token every time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers, if any.")] = 0,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Show what base and pruned model answer to the same prompt, side by side."""
    progress = Progress(style_of(json_, quiet))
    with progress.stage("Libraries"):
        from pipeline.cache import Cache
        from pipeline.chat import converse
        from pipeline.evaluation.streaming import Manner
    conversation = converse(
        base_or_pruned,
        pruned,
        base,
        recipe,
        set_ or (),
        template=chat_template,
        manner=Manner(max_new_tokens, temperature, seed),
        cache=Cache(cache_dir),
        progress=progress,
    )
    if prompt:
        for each in prompt:
            _answer(conversation, each, json_)
            conversation.reset()
        return EXIT_PASS
    if not conversation.with_template:
        progress.say("Each prompt is a text that both go on with; nothing is remembered")
    progress.say(HELP)
    for line in _prompts():
        if line == RESET:
            conversation.reset()
            progress.say("What was said is forgotten")
            continue
        if COMMAND.fullmatch(line):
            progress.say(HELP)
            continue
        try:
            _answer(conversation, line, json_)
        except InputError as error:  # too long, mostly: the conversation goes on
            progress.console.print(str(error), style="red", markup=False)
    return EXIT_PASS


def _answer(conversation: Conversation, prompt: str, as_json: bool) -> None:
    from pipeline.release.show_answers import show_answers

    one, other = (speaker.name for speaker in conversation.speakers)
    answers = conversation.ask(prompt)
    if not as_json:
        show_answers((one, other), answers, Console(highlight=False))
        return
    for now in answers:
        texts = now
    print_json(
        {
            "event": "result",
            "prompt": prompt,
            "base": {"name": one, "answer": texts[0]},
            "pruned": {"name": other, "answer": texts[1]},
        }
    )


def _prompts() -> Iterator[str]:
    """Yield what is typed, until it is a word to quit or ends; empty lines are passed over."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # gives `input` its editing and history
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        if line in QUIT:
            return
        if line:
            yield line
