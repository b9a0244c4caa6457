"""Two answers to one prompt on a terminal: side by side, or below each other where it is narrow."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.release.checks.findings import printable

SIDE_BY_SIDE = 80  # columns from which two answers have room beside each other
TITLES = ("base", "pruned")
REFRESH_PER_SECOND = 8
LINES_AROUND = 4  # titles, and the line below the answers
BETWEEN = 3
LEFT_FREE = 2  # at the end of a line: a terminal writes ^C there, and would begin a new one


def show_answers(
    names: tuple[str, str], answers: Iterable[tuple[str, str]], console: Console
) -> tuple[str, str]:
    """Show answers while they are written, and return them as far as they came.

    An interruption ends them, and what was written stays on the screen.

    Args:
        names: of base and pruned model.
        answers: what both have written so far, again and again.
        console: the terminal; elsewhere nothing is shown before both are done.
    """
    now, stopped = ("", ""), False
    screen = Live(console=console, transient=True, refresh_per_second=REFRESH_PER_SECOND)
    try:
        with screen if console.is_terminal else nullcontext():
            for now in answers:
                if console.is_terminal:
                    screen.update(_beside(names, now, console, last_lines=True))
    except KeyboardInterrupt:
        stopped = True
    console.print(_beside(names, now, console), soft_wrap=not console.is_terminal)
    if stopped:
        console.print("(stopped, and not remembered)", style="yellow")
    return now


def _beside(
    names: tuple[str, str], texts: tuple[str, str], console: Console, last_lines: bool = False
) -> RenderableType:
    """Both answers; the last lines alone if they are longer than the terminal."""
    wide = console.is_terminal and console.width >= SIDE_BY_SIDE
    width = console.width - LEFT_FREE
    width = width // 2 - BETWEEN if wide else width
    room = console.height - LINES_AROUND
    room = room if wide else room // 2 - 1
    titles = [
        Text(f"{title}: {_plain(name)}", style="bold", overflow="ellipsis", no_wrap=True)
        for title, name in zip(TITLES, names, strict=True)
    ]
    bodies: list[Text] = []
    for text in texts:
        body = Text(_plain(text.strip()))
        if console.is_terminal:
            lines = body.wrap(console, width)
            body = Text("\n").join(lines[-max(room, 1) :] if last_lines else lines)
        bodies.append(body)
    if not wide:
        return Group(titles[0], bodies[0], Text(), titles[1], bodies[1])
    table = Table(box=None, padding=(0, BETWEEN, 0, 0), pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, width=width, overflow="fold")
    table.add_row(*bodies)
    return table


def _plain(text: str) -> str:
    """Text without what would steer the terminal: a model can write anything."""
    return "\n".join(printable(line.expandtabs(4)) for line in text.split("\n"))
