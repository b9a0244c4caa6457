"""Tables on the terminal: the result of a run, a forecast, the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.release.checks.findings import printable
from pipeline.release.results import metric_rows, size_rows

COLOURS = {"PASS": "green", "FAIL": "red", "UNJUDGED": "yellow"} | {
    "INCONCLUSIVE": "yellow",
    "VERIFIED": "green",
    "DIFFERENT": "red",
    "UNVERIFIED COMPENSATION": "yellow",
}
FINDINGS_SHOWN = 20
PIPE_WIDTH = 120  # rich assumes 80 columns where there is no terminal, and would wrap


def terminal() -> Console:
    """Where results are printed; wide where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_result(folder: Path, manifest: dict[str, Any], console: Console | None = None) -> None:
    """Print one table with sizes, tasks, gates and verdict, and where things are."""
    console = console or terminal()
    verdict = manifest["verdict"]
    table = _comparison(
        f"{manifest['name']}: {escape(manifest['base']['name'])}", manifest["evaluation"]
    )
    for size in size_rows(manifest):
        table.add_row(size.what, size.before, size.after, size.change)
    _show_metrics(table, manifest["evaluation"], console)
    console.print(f"Verdict: [bold {COLOURS[verdict]}]{verdict}[/]")
    if verdict == "UNJUDGED":
        console.print("  the recipe has no gates")
    proof = manifest["proof"]
    console.print(
        f"Proof:   logits equal the masked original's up to {proof['max_difference']:.1e} "
        f"on {proof['tokens']:,} tokens"
    )
    console.print(f"Where:   {escape(str(folder))}  (report.html, README.md, evaluation.json)")


def show_verification(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what a verification compared, what it found, and its verdict."""
    console = console or terminal()
    tensors, verdict = found["tensors"], found["verdict"]
    console.print(f"Release:  {escape(found['checkpoint'])}")
    console.print(f"Base:     {escape(found['base'])}")
    console.print(
        f"Tensors:  {tensors['untouched']} untouched and {tensors['sliced']} sliced, equal to the "
        f"byte; {tensors['compensated']} compensated as stated"
    )
    if tensors["unverified"]:
        console.print(
            f"          [yellow]{tensors['unverified']} said to be compensated, and checked by "
            "nothing[/]"
        )
    if tensors["compensated"]:
        console.print(
            f"          compensation changed no projection by more than "
            f"{tensors['largest_change']:.1%} of its norm"
        )
    for note in found["notes"]:
        console.print(f"Note:     {_plain(note)}")
    for finding in found["findings"][:FINDINGS_SHOWN]:
        console.print(f"  [red]differs[/]  {_plain(finding['where'])}: {_plain(finding['what'])}")
    if (more := len(found["findings"]) - FINDINGS_SHOWN) > 0:
        console.print(f"  and {more:,} more; --json has them all")
    console.print(f"Manifest: sha256 {found['manifest_sha256']}")
    console.print(
        f"Verdict:  [bold {COLOURS[verdict]}]{verdict}[/]: {escape(found['sentence'])}",
        soft_wrap=True,
    )


def show_export(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what file was written, and how far llama.cpp agrees with the checkpoint."""
    console = console or terminal()
    console.print(f"File:     {escape(found['file'])}")
    console.print(f"Size:     {found['bytes'] / 1e6:,.1f} MB, matrices in {found['type']}")
    console.print(f"SHA-256:  {found['sha256']}")
    if found["tensors_in_f16"]:
        console.print(
            f"Note:     {len(found['tensors_in_f16'])} matrices are in F16: their rows are no "
            f"multiple of a block of {found['type']}, as select.ffn.multiple_of: 32 would make them"
        )
    for note in found["notes"]:
        console.print(f"Note:     {escape(note)}")
    if (agreement := found["llama_cpp"]) is not None:
        verdict = "[green]agrees[/]" if found["agrees"] else "[red]DISAGREES[/]"
        console.print(
            f"llama.cpp {verdict}: {agreement['same_tokens']} of {agreement['tokens']} next tokens "
            f"and {agreement['same_tokenization']} of {agreement['texts']} tokenizations are the "
            f"checkpoint's; log-probabilities differ by up to {agreement['max_difference']:.1e}"
        )


def show_validation(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what a validation verified and measured, and its verdict."""
    console = console or terminal()
    show_verification(found["verification"], console)
    console.print(f"Recipe:   {escape(found['recipe'])}")
    for note in found["notes"]:
        console.print(f"Note:     {_plain(note)}")
    if found["evaluation"] is not None:
        title = f"{found['name']}: {escape(found['verification']['base'])}"
        table = _comparison(title, found["evaluation"])
        _show_metrics(table, found["evaluation"], console)
    for finding in found["findings"]:
        console.print(f"  [red]FAIL[/]  {_plain(finding['where'])} {_plain(finding['what'])}")
    if found["unchecked"]:
        mark = "[yellow]ACCEPTED UNCHECKED[/]" if found["accepted"] else "[red]NOT CHECKED[/]"
        console.print(f"  {mark}  {found['unchecked']}", soft_wrap=True)
    verdict, seconds = found["verdict"], found["seconds"]
    console.print(f"Validation: [bold {COLOURS[verdict]}]{verdict}[/]")
    console.print(f"Time:     {seconds['evaluation']} s of {seconds['total']} s was evaluation")


def show_forecast(forecast: dict[str, Any], console: Console | None = None) -> None:
    """Print what a run would do."""
    console = console or terminal()
    title = f"[bold]{forecast['recipe']}[/]: {escape(forecast['description'])}"
    console.print(title, soft_wrap=True)
    if forecast["extends"]:
        console.print(f"Recipe:  extends {escape(', '.join(forecast['extends']))}")
    model = forecast["model"]
    console.print(f"Model:   {escape(model['name'])} ({model['kind']}, {model['architecture']})")
    for line in forecast["units"]:
        console.print(f"Units:   {line}", soft_wrap=True)
    table = Table(title="Texts", title_justify="left")
    for column in ("name", "side", "genre", "licence", "tokens scored", "held out"):
        table.add_column(
            column, justify="right" if column in ("tokens scored", "held out") else "left"
        )
    for corpus in forecast["corpora"]:
        table.add_row(
            corpus["name"],
            corpus["side"],
            escape(corpus["genre"]),
            escape(corpus["licence"]),
            f"{corpus['scored_tokens']:,}" if corpus["scored_tokens"] else "–",
            f"{corpus['held_out_documents']:,} documents" if corpus["held_out_documents"] else "–",
        )
    console.print(table)
    tasks = Table(title="Evaluation", title_justify="left")
    for column in ("task", "side", "documents", "tokens, at most"):
        tasks.add_column(column, justify="left" if column in ("task", "side") else "right")
    for task in forecast["tasks"]:
        at_most = "at most " if task["at_most"] else ""
        documents = f"{at_most}{task['documents']:,}" if task["documents"] else "–"
        tasks.add_row(escape(task["task"]), task["side"], documents, f"{task['tokens']:,}")
    console.print(tasks)
    for gate in forecast["gates"]:
        console.print(f"Gate:    {escape(gate)}", soft_wrap=True)
    if (to := forecast["publish"]) is not None:
        seen, when = "public" if to["public"] else "private", "whatever its verdict"
        when = when if to["even_if_failed"] else "if it passes"
        console.print(f"Publish: {escape(to['to'])} ({seen}), {when}")
    for warning in forecast["warnings"]:
        console.print(f"[yellow]Warning[/]: {escape(warning)}", soft_wrap=True)
    low, high = (round(minutes) for minutes in forecast["minutes"])
    minutes = f"{low} to {high} minutes" if low < high else f"{high} min"
    console.print(f"Time:    about {minutes} on this machine, if nothing is cached")
    console.print(
        f"Disk:    {forecast['output_bytes'] / 1e6:,.0f} MB for the output, "
        f"{forecast['cache_bytes'] / 1e6:,.0f} MB in the cache"
    )
    console.print(
        "No weights were downloaded, nothing was converted or scored, and no output was written.",
        soft_wrap=True,
    )


def show_inspection(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what a model is made of."""
    console = console or terminal()
    units, parameters = found["units_of_a_layer"], found["parameters"]
    each, total = found["parameters_of_a_unit"], parameters["total"]
    console.print(
        f"Model:      {escape(found['model'])} ({found['kind']}, {found['architecture']})"
    )
    console.print(f"Layers:     {found['layers']}, hidden size {found['hidden']:,}")
    neurons = f"{units['ffn']:,} FFN neurons"
    if "experts" in units:
        neurons += f" in each of {units['experts']} experts"
    if "shared_expert" in units:
        neurons += f", {units['shared_expert']:,} in the shared one"
    console.print(
        f"Units:      {neurons}, {units['query_heads']} query heads and "
        f"{units['kv_heads']} key/value heads of {units['head_dim']} in each layer"
    )
    kinds = {
        "ffn": "FFN neurons",
        "attention": "heads",
        "other": "other in the layers",
        "outside_layers": "embeddings and other",
    }
    shares = ", ".join(
        f"{words} {parameters[kind]:,} ({parameters[kind] / total:.1%})"
        for kind, words in kinds.items()
    )
    console.print(f"Parameters: {total:,}: {shares}", soft_wrap=True)
    console.print(
        f"            a neuron has {each['ffn']:,}, a key/value group {each['kv_group']:,}"
    )
    console.print(f"FFN widths: {found['ffn_widths']}", soft_wrap=True)
    counts = found["head_counts"]
    if "refused" in counts:
        console.print(f"Heads:      none can go: {counts['refused']}", soft_wrap=True)
    for way, words in (("kv_group", "whole groups"), ("query_head", "the same in each group")):
        if counts.get(way):
            legal = ", ".join(map(str, counts[way]))
            console.print(f"Heads:      {words} (select.attention.unit={way}): {legal} query heads")
    if "note" in counts:
        console.print(f"Heads:      {counts['note']}")
    if found["expert_counts"]:
        console.print(f"Experts:    {found['expert_counts']}")
    for row in found["shrink"]:
        console.print(
            f"Shrink:     {row['setting']} → {row['units']} in each layer, "
            f"{row['parameters']:,} parameters ({row['share'] - 1:+.1%})",
            soft_wrap=True,
        )


def show_recipes(found: list[tuple[str, str, str]], console: Console | None = None) -> None:
    """Print names and descriptions, and where the user's own are."""
    console = console or terminal()
    table = Table.grid(padding=(0, 2))
    for name, description, place in found:
        own = f"\n[dim]{_plain(place)}[/]" if place else ""
        table.add_row(f"[bold]{escape(name)}[/]", escape(description) + own)
    console.print(table)


def _plain(text: str) -> str:
    return escape(printable(text))


def _comparison(title: str, evaluation: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    control = ["control"] if "control" in evaluation else []
    for column in ("", "base", "pruned", "change", *control):
        table.add_column(column, justify="left" if not column else "right")
    return table


def _show_metrics(table: Table, evaluation: dict[str, Any], console: Console) -> None:
    """Add a row for every metric, and print the table and the gates."""
    side = None
    for row in metric_rows(evaluation):
        if row.side != side:
            table.add_section()
            table.add_row(f"[bold]{row.side}[/]")
            side = row.side
        name = f"{escape(row.task)} {escape(row.metric)} [dim]({row.n})[/]"
        control = [row.control] if row.control else []
        table.add_row(name, row.before, row.after, row.change, *control)
    console.print(table)
    for gate in evaluation["gates"]:
        decision = gate["decision"]
        mark = f"[{COLOURS[decision]}]{decision}[/]"
        console.print(f"  {mark}  {escape(gate['sentence'])}", soft_wrap=True)
