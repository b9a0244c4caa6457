"""docs/reference/cli.md: every verb, argument and option, out of the command itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

from documentation.markdown import GENERATED, anchor, code, table
from pipeline.cli import app

INTRODUCTION = """\
# The command line

{generated}

`unlearn VERB --help` says the same in a terminal, and the README what the
[exit codes](../../README.md#the-command) mean. Options and arguments can stand in any order.
*Repeatable* options are given once for each value.
"""
TYPES = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}
HELP = "--help, -h"


def cli_page() -> str:
    """The whole page."""
    root = verbs()
    lines = [*INTRODUCTION.format(generated=GENERATED).splitlines(), "", "## Verbs", ""]
    rows = [
        (f"[`{name}`]({anchor(f'unlearn {name}')})", command.help)
        for name, command in root.commands.items()
    ]
    lines += [*table(("verb", "what it does"), rows), "", "## Without a verb", ""]
    lines += _options(root.params)
    for name, command in root.commands.items():
        lines += ["", f"## unlearn {name}", "", command.help, "", *_usage(name, command.params)]
        if arguments := [each for each in command.params if _is_argument(each)]:
            shown = [each for each in arguments if not each.hidden]
            lines += ["", *table(("argument", "meaning"), [_argument(each) for each in shown])]
        lines += ["", *_options(command.params)]
    return "\n".join(lines) + "\n"


def verbs() -> Any:
    """The command with its verbs, as the shell sees it."""
    return typer.main.get_command(app)


def _usage(name: str, parameters: list[Any]) -> list[str]:
    arguments = [_name(each) for each in parameters if _is_argument(each) and not each.hidden]
    required = [
        f"{each.opts[0]} …" for each in parameters if not _is_argument(each) and each.required
    ]
    return ["```text", " ".join(["unlearn", name, *arguments, *required, "[OPTIONS]"]), "```"]


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.rstrip("_").upper())


def _argument(argument: Any) -> tuple[str, str]:
    return code(_name(argument)), argument.help


def _options(parameters: list[Any]) -> list[str]:
    rows = [_option(each) for each in parameters if not _is_argument(each) and not each.hidden]
    rows.append((", ".join(map(code, HELP.split(", "))), "", "", "Show what the command takes."))
    return table(("option", "type", "default", "meaning"), rows)


def _option(option: Any) -> tuple[str, str, str, str]:
    names = ", ".join(map(code, (*option.opts, *option.secondary_opts)))
    return names, ", ".join(_type(option)), _default(option), _meaning(option)


def _type(option: Any) -> Iterator[str]:
    annotation = option.type_descriptor.annotation
    if kind := TYPES[get_args(annotation)[0] if get_args(annotation) else annotation]:
        yield f"{kind} ≥ {option.min:g}" if option.min is not None else kind
    if option.multiple:
        yield "repeatable"


def _default(option: Any) -> str:
    if option.required:
        return "*required*"
    if option.default in (None, False):
        return ""
    if option.default is True:
        return code(option.opts[0])
    return code(option.default)


def _meaning(option: Any) -> str:
    variable = f" Also from `${option.envvar}`." if option.envvar else ""
    return f"{option.help}{variable}"
