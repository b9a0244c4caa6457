"""`make bench`: what scoring and surgery cost on the default recipe's model.

Scoring is measured against a bare forward pass of the same decoder over the same tokens (without
the language-model head, which scoring does not run: the stricter of two comparisons; the other is
shown), and surgery with writing against copying the base's weights file. Contestants take turns, so
that a machine that slows down slows all of them. The fastest turns are compared, as `timeit` does:
what else runs on a machine only ever adds time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pipeline.architectures.registry import output_modules
from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.recipe_file import load_recipe
from pipeline.scoring.collection import CapturePoints, Collector, collect
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.sources.models import resolve_model
from pipeline.stages.base import Base, load_model, open_base
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.coordinates import tensor_cuts
from pipeline.surgery.cut import cut_checkpoint

SEQUENCE = 512
BATCH_TOKENS = 4096


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each contestant runs")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a forward pass")
    options = parser.parse_args()
    loaded = load_recipe("no-code")
    resolved = resolve_model(loaded.recipe.model, loaded.folder, Cache(), Progress("plain"))
    base = open_base(resolved)
    table = Table(title=f"{base.model.name}, {torch.get_num_threads()} threads, fastest turns")
    for column in ("", "seconds", "ratio", "against"):
        table.add_column(column, justify="left" if column in ("", "against") else "right")
    for against, contestants in (
        ("bare forward pass", _scoring(base, options.tokens)),
        ("copying the file", _surgery(base)),
    ):
        seconds = _take_turns(contestants, options.rounds)
        reference = next(iter(seconds.values()))
        for name, value in seconds.items():
            table.add_row(name, f"{value:.2f}", f"{value / reference:.2f}", against)
        table.add_section()
    Console().print(table)


def _scoring(base: Base, tokens: int) -> dict[str, Callable[[], object]]:
    model = load_model(base.model.path, "bfloat16")
    decoder = model.get_decoder()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(base.config.vocab_size, (tokens // SEQUENCE, SEQUENCE), generator=generator)
    sizes, architecture = base.dimensions, base.architecture
    points = CapturePoints(
        output_modules(model, architecture, architecture.feed_forward.output),
        output_modules(model, architecture, architecture.attention.output),
        sizes.kv_heads,
    )

    @torch.inference_mode()
    def bare(module: Callable[..., object]) -> None:
        for batch in ids.split(BATCH_TOKENS // SEQUENCE):
            module(input_ids=batch, use_cache=False)

    def scored(moments: frozenset[str]) -> None:
        widths = (sizes.ffn, sizes.heads * sizes.head_dim)
        collector = Collector(points, widths, skip_positions=1, moments=moments)
        collect(decoder, ids, collector, BATCH_TOKENS, lambda _: None)

    return {
        "forward pass": lambda: bare(decoder),
        "forward pass, with logits": lambda: bare(model),
        "scoring, first-order sums": lambda: scored(frozenset()),
        "scoring, with FFN second moments": lambda: scored(frozenset({"ffn"})),
    }


def _surgery(base: Base) -> dict[str, Callable[[], object]]:
    sizes = base.dimensions
    keep = sizes.ffn * 15 // 16
    layer = LayerPlan(tuple(range(keep)), tuple(range(sizes.heads)), tuple(range(sizes.kv_heads)))
    plan = Plan(sizes.ffn, sizes.heads, sizes.kv_heads, (layer,) * sizes.layers)
    maps = {
        base.architecture.module(
            number, f"{base.architecture.feed_forward.output}.weight"
        ): CompensationMap(
            layer.ffn,
            plan.removed_ffn(number),
            torch.full((sizes.ffn - keep, keep), 1e-3),
            torch.bfloat16,
        )
        for number in range(sizes.layers)
    }
    cuts = tensor_cuts(base.architecture, plan, sizes.head_dim)

    def in_new_folder(write: Callable[[Path], object]) -> None:
        # On the base's disk, so that both read and write the same one.
        with tempfile.TemporaryDirectory(prefix="bench-", dir=Cache().root) as folder:
            write(Path(folder))
            for file in Path(folder).iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())

    def copy(folder: Path) -> None:
        for file in base.model.path.glob("*.safetensors"):
            shutil.copyfile(file, folder / file.name)

    def cut(folder: Path, compensated: bool) -> None:
        used = maps if compensated else {}
        cut_checkpoint(base.model.path, folder, cuts, used, lambda _: None)

    return {
        "copy": lambda: in_new_folder(copy),
        "surgery and write": lambda: in_new_folder(lambda folder: cut(folder, False)),
        "surgery with compensation and write": lambda: in_new_folder(
            lambda folder: cut(folder, True)
        ),
    }


def _take_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Fewest seconds of each contestant; all run once before, unmeasured, and then in turn."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
