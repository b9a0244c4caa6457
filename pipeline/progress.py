"""What the user sees while waiting: stages, progress, throughput and remaining time.

One `Progress` is handed down from the command line to every stage. On a terminal it draws a live
bar, elsewhere it prints plain lines at most every few seconds, with `--json` one JSON object a
line, and with `--quiet` nothing but the final result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Style = Literal["terminal", "plain", "json", "quiet"]
Advance = Callable[[float], None]

PLAIN_INTERVAL_SECONDS = 10.0


class Progress:
    """Reports stages and their progress in one of four styles.

    Args:
        style: "terminal" (live bars), "plain" (lines), "json" (one object a line) or "quiet".
        stream: console to write to; standard error by default, so that results can be piped.

    Attributes:
        seconds: time of every finished stage by its name.
    """

    def __init__(self, style: Style = "plain", stream: Console | None = None) -> None:
        self.style = style
        self.seconds: dict[str, float] = {}
        self.console = stream or Console(
            file=sys.stderr,
            highlight=False,
            soft_wrap=style != "terminal",
        )

    def say(self, text: str, **fields: object) -> None:
        """Print one line of information; `fields` go into the JSON object only."""
        if self.style == "json":
            self._json("message", text=text, **fields)
        elif self.style != "quiet":
            self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and how long it took."""
        started = time.monotonic()
        if self.style == "json":
            self._json("stage", name=name, state="started")
        elif self.style != "quiet":
            self.console.print(f"[bold cyan]▶ {name}[/]" if self._live else f"> {name}")
        yield
        seconds = round(time.monotonic() - started, 1)
        self.seconds[name] = seconds
        if self.style == "json":
            self._json("stage", name=name, state="done", seconds=seconds)
        elif self.style != "quiet":
            self.console.print(f"  done in {seconds:.1f} s", style="dim" if self._live else None)

    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """Yield a function that is called with each finished amount of `unit`.

        Args:
            name: what is being counted.
            total: amount at which the work is done.
            unit: what one is called ("tokens", "documents", "bytes").
        """
        if self._live:
            with self._live_bar(name, total, unit) as advance:
                yield advance
        else:
            yield self._plain_bar(name, total, unit)

    @property
    def _live(self) -> bool:
        return self.style == "terminal"

    @contextmanager
    def _live_bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
        )
        with RichProgress(*columns, console=self.console, transient=True) as live:
            task = live.add_task(name, total=total, rate="")
            started, done = time.monotonic(), 0.0

            def advance(amount: float) -> None:
                nonlocal done
                done += amount
                live.update(task, advance=amount, rate=_rate(done, started, unit))

            yield advance

    def _plain_bar(self, name: str, total: float, unit: str) -> Advance:
        started = last = time.monotonic()
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if self.style == "quiet" or (now - last < PLAIN_INTERVAL_SECONDS and done < total):
                return
            last = now
            remaining = (now - started) * (total - done) / done if done else 0.0
            if self.style == "json":
                self._json(
                    "progress",
                    name=name,
                    done=done,
                    total=total,
                    unit=unit,
                    remaining_seconds=round(remaining, 1),
                )
                return
            self.console.print(
                f"  {name}: {done:,.0f}/{total:,.0f} {unit}, {_rate(done, started, unit)}, "
                f"{remaining:.0f} s left",
                markup=False,
            )

        return advance

    def _json(self, event: str, **fields: object) -> None:
        print(json.dumps({"event": event, **fields}), file=self.console.file, flush=True)


def _rate(done: float, started: float, unit: str) -> str:
    seconds = max(time.monotonic() - started, 1e-6)
    return f"{done / seconds:,.0f} {unit}/s"
