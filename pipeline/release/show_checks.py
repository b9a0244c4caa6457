"""What a machine has and lacks, on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.release.show import terminal

COLOURS = {"ok": "green", "limited": "yellow", "missing": "red"}
NOT_NEEDED = "[yellow]missing[/]"  # by the default recipe


def show_checks(
    checks: list[dict[str, Any]], can_run: bool, console: Console | None = None
) -> None:
    """Print what was found, then for each thing that is missing what needs it and how to get it."""
    console = console or terminal()
    table = Table.grid(padding=(0, 2))
    for check in checks:
        found = escape(check["found"])
        table.add_row(_mark(check), f"[bold]{escape(check['name'])}[/]", found)
    console.print(table)
    for check in checks:
        if check["remedy"]:
            console.print(f"\n{_mark(check)} [bold]{escape(check['name'])}[/]")
            if check["needed_for"]:
                console.print(f"  needed for {escape(check['needed_for'])}", soft_wrap=True)
            console.print(f"  → {escape(check['remedy'])}", soft_wrap=True)
    if can_run:
        console.print("\n[bold green]Ready[/]: `unlearn run no-code` can run here.")
    else:
        console.print("\n[bold red]Not ready[/]: `unlearn run no-code` cannot run here.")


def _mark(check: dict[str, Any]) -> str:
    state = check["state"]
    if state == "missing" and not check["required"]:
        return NOT_NEEDED
    return f"[{COLOURS[state]}]{state}[/]"
