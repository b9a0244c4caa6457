"""How two releases differ, on the terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.release.checks.findings import printable, shortened
from pipeline.release.results import shown_metrics
from pipeline.release.show import COLOURS, terminal

BLOCKS = "▁▂▃▄▅▆▇█"
NO_UNITS = "·"  # a layer of which neither removed any
FILES_SHOWN = 12
VALUE_LENGTH = 60
ANOTHER = {"base": "another", "plan": "another", "weights": "other", "recipe": "another"}


def show_difference(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what two releases have in common, and in what they differ."""
    console = console or terminal()
    for letter, side in (("A", found["one"]), ("B", found["other"])):
        verdict = side["verdict"]
        console.print(
            f"[bold]{letter}[/]  {_plain(side['checkpoint'])}: {_plain(side['name'])}, "
            f"{side['parameters']:,} parameters, [{COLOURS[verdict]}]{verdict}[/]",
            soft_wrap=True,
        )
    same = found["same"]
    words = [
        f"same {what}" if same[what] else f"[yellow]{another} {what}[/]"
        for what, another in ANOTHER.items()
    ]
    console.print(", ".join(words))
    _show_pairs("Base", found["base"], console)
    _show_units(found["units"], console)
    _show_results(found["results"], console)
    _show_texts(found["texts"], console)
    _show_pairs("Recipe", found["recipe"], console)
    _show_pairs("Environment", found["environment"], console)
    _show_files(found["files"], console)


def _show_units(units: list[dict[str, Any]], console: Console) -> None:
    table = _table("Removed units", "A", "B", "in common")
    for row in units:
        counts = [
            f"{removed:,} of {total:,}"
            for removed, total in zip(row["removed"], row["total"], strict=True)
        ]
        table.add_row(row["kind"].replace("_", " "), *counts, _share(row))
    console.print(table)
    for row in units:
        if row["overlap"] is not None:
            layers = row["overlap_of_layers"]
            known = [(share, number) for number, share in enumerate(layers) if share is not None]
            (low, least), (high, most) = min(known), max(known)
            console.print(
                f"  {row['kind'].replace('_', ' ')}, layer by layer: {_bars(layers)} "
                f"({low:.0%} in {least} to {high:.0%} in {most})",
                soft_wrap=True,
            )


def _share(row: dict[str, Any]) -> str:
    if row["overlap_of_layers"] is None:
        return "of other shape"
    return "–" if row["overlap"] is None else f"{row['overlap']:.1%} of all removed"


def _bars(layers: list[float | None]) -> str:
    """A bar for every layer, as high as the share is large."""
    top = len(BLOCKS) - 1
    return "".join(NO_UNITS if share is None else BLOCKS[round(share * top)] for share in layers)


def _show_results(results: list[dict[str, Any]], console: Console) -> None:
    """The metrics that are shown first; `--json` has them all."""
    table = _table("Results of the released models, ± paired standard error", "A", "B", "B − A")
    side = None
    reasons: dict[str, list[str]] = {}
    for row in results:
        metrics = {r["metric"]: r for r in results if r["task"] == row["task"]}
        if row["metric"] not in shown_metrics(metrics):
            continue
        if row["side"] != side:
            table.add_section()
            table.add_row(f"[bold]{row['side']}[/]")
            side = row["side"]
        table.add_row(
            f"{_plain(row['task'])} {_plain(row['metric'])} [dim]({_documents(row)})[/]",
            _number(row["one"]),
            _number(row["other"]),
            _difference(row),
        )
        if row["difference"] is not None and row["unpaired"]:
            reasons.setdefault(row["unpaired"], []).append(row["task"])
    if results:
        console.print(table)
    for reason, tasks in reasons.items():
        named = ", ".join(dict.fromkeys(map(_plain, tasks)))
        console.print(f"  no paired error, {reason}: {named}", soft_wrap=True)


def _documents(row: dict[str, Any]) -> str:
    return " and ".join(dict.fromkeys("–" if n is None else f"{n:,}" for n in row["documents"]))


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "–"
    error = row["standard_error"]
    if row["difference"] == 0 and error == 0:
        return "[dim]the same[/]"
    return f"{row['difference']:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _show_texts(texts: list[dict[str, Any]], console: Console) -> None:
    other = [
        f"{_plain(text['name'])} ({_which(text)})"
        for text in texts
        if not (text["scored"] and text["held_out"])
    ]
    said = f"other documents in {', '.join(other)}" if other else "the same documents in all"
    console.print(f"Texts: {said}", soft_wrap=True)


def _which(text: dict[str, Any]) -> str:
    if text["scored"] is None:
        return "in one of them"
    uses = {"scored": "scored", "held_out": "held out"}
    return " and ".join(words for use, words in uses.items() if not text[use])


def _show_pairs(title: str, pairs: list[dict[str, Any]], console: Console) -> None:
    if not pairs:
        console.print(f"{title}: no difference")
        return
    table = Table(title=f"{title}: what differs", title_justify="left")
    for column in ("", "A", "B"):
        table.add_column(column, overflow="fold")
    for row in pairs:
        table.add_row(_plain(row["key"]), _value(row, "one"), _value(row, "other"))
    console.print(table)


def _value(row: dict[str, Any], side: str) -> str:
    if side not in row:
        return "[dim]absent[/]"
    value = row[side]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _plain(shortened(text, VALUE_LENGTH))


def _show_files(files: dict[str, list[str]], console: Console) -> None:
    console.print(f"Files: {len(files['same'])} the same, by the manifests' digests")
    words = {"different": "different", "only_one": "only in A", "only_other": "only in B"}
    for key, title in words.items():
        for name in files[key][:FILES_SHOWN]:
            console.print(f"  {title:10} {_plain(name)}", soft_wrap=True)
        if (more := len(files[key]) - FILES_SHOWN) > 0:
            console.print(f"  {title:10} and {more:,} more; --json has them all")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _plain(text: str) -> str:
    return escape(printable(str(text)))
