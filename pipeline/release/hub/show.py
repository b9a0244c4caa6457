"""What would be published, and what was, on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.release.checks.findings import printable
from pipeline.release.show import COLOURS

SHOWN = 12
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show_offer(offer: dict[str, Any], console: Console) -> None:
    """Print what would be sent and deleted, where, and how large it is."""
    console.print(f"Publish:  {_place(offer)}", soft_wrap=True)
    verdict = offer["verdict"]
    line = f"Verdict:  [bold {COLOURS[verdict]}]{verdict}[/]"
    console.print(line + (", to be published all the same" if offer["even_if_failed"] else ""))
    total = f"{offer['files']} files, {_size(offer['bytes'])}"
    if not offer["send"] and not offer["delete"]:
        console.print(f"Send:     nothing; all of it ({total}) is there")
    else:
        console.print(
            f"Send:     {len(offer['send'])} of {total}: {_size(offer['send_bytes'])} at most"
        )
    largest = sorted(offer["send"].items(), key=lambda item: -item[1])
    for name, size in largest[:SHOWN]:
        console.print(f"          {_size(size):>9}  {_plain(name)}")
    if (more := len(largest) - SHOWN) > 0:
        console.print(f"          and {more} smaller ones")
    for name in offer["delete"]:
        console.print(f"Delete:   {_plain(name)}")
    for note in offer["notes"]:
        console.print(f"Note:     {_plain(note)}", soft_wrap=True)


def show_published(result: dict[str, Any], console: Console) -> None:
    """Print where the release is, and how others check it."""
    if not result["published"]:
        show_offer(result, console)
        console.print("Nothing was sent.")
        return
    name = f"{result['repository']}@{result['commit']}"
    console.print(f"Published: {_place(result)}", soft_wrap=True)
    if result["pull_request_url"]:
        console.print(f"Proposed:  {_plain(result['pull_request_url'])}", soft_wrap=True)
    console.print(f"Commit:    {result['commit']}, whose hashes are the manifest's", soft_wrap=True)
    console.print(f"Manifest:  sha256 {result['manifest_sha256']}", soft_wrap=True)
    console.print(f"Check:     unlearn verify {_plain(name)} --base …", soft_wrap=True)


def _place(offer: dict[str, Any]) -> str:
    seen = "private" if offer["private"] else "[yellow]public[/]"
    made = ", made for it" if offer["made"] else ""
    way = "a pull request to" if offer["pull_request"] else "branch"
    tag = f", tag {_plain(offer['tag'])}" if offer["tag"] else ""
    return f"{_plain(offer['repository'])} ({seen}{made}), {way} {_plain(offer['revision'])}{tag}"


def _size(size: int) -> str:
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} B"


def _plain(text: str) -> str:
    return escape(printable(text))
