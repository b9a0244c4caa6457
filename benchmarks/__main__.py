"""`make bench`: what scoring, surgery and verification cost on the default recipe's model.

Scoring is measured against a bare forward pass of the same decoder over the same tokens (without
the language-model head, which scoring does not run: the stricter of two comparisons; the other is
shown), surgery with writing against copying the base's weights file, verification against reading
the files of base and release, and a checkpoint without a quarter of its neurons and a third of its
heads, cut or with zeros in their place, against its base. Contestants take turns, so that a machine
that slows down slows all of them. The fastest turns are compared, as `timeit` does:
what else runs on a machine only ever adds time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline.architectures.registry import output_modules
from pipeline.cache import HASH_CHUNK_BYTES, Cache, digest_of_file, write_json
from pipeline.export.checkpoint import copy_companions, pruned_config
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest import write_manifest
from pipeline.export.maps import write_maps
from pipeline.progress import Progress
from pipeline.recipe_file import load_recipe
from pipeline.scoring.collection import CapturePoints, Collector, collect
from pipeline.selection.plan import LayerPlan, Plan, Shape
from pipeline.sources.models import resolve_model
from pipeline.stages.base import Base, load_model, open_base
from pipeline.stages.cut import cuts_and_config
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.coordinates import tensor_cuts
from pipeline.surgery.cut import cut_checkpoint
from pipeline.verify import open_release, verify

SEQUENCE = 512
BATCH_TOKENS = 4096
FORWARD_TOKENS = 4096
GENERATED_TOKENS = 64


def main() -> None:
    """Measure and print two tables."""
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
        _measure(table, against, contestants, options.rounds)
    with _scratch() as folder:
        _release(base, folder)
        _measure(table, "reading both checkpoints", _verification(base, folder), options.rounds)
    Console().print(table)
    with _scratch() as folder:
        Console().print(_speed_of_smaller(_smaller(base, folder), options.rounds))


def _measure(
    table: Table, against: str, contestants: dict[str, Callable[[], object]], rounds: int
) -> None:
    seconds = _take_turns(contestants, rounds)
    reference = next(iter(seconds.values()))
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / reference:.2f}", against)
    table.add_section()


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

    def scored(moments: frozenset[str] = frozenset(), heads: bool = False) -> None:
        widths = (sizes.ffn, sizes.heads * sizes.head_dim)
        collector = Collector(points, widths, skip_positions=1, moments=moments, heads=heads)
        collect(decoder, ids, collector, BATCH_TOKENS, lambda _: None)

    return {
        "forward pass": lambda: bare(decoder),
        "forward pass, with logits": lambda: bare(model),
        "scoring, first-order sums": scored,
        "scoring, with products of each group": lambda: scored(heads=True),
        "scoring, with FFN second moments": lambda: scored(frozenset({"ffn"})),
    }


def _surgery(base: Base) -> dict[str, Callable[[], object]]:
    plan, maps = _cut_of_a_sixteenth(base)
    cuts = tensor_cuts(base.architecture, base.dimensions, plan)

    def in_new_folder(write: Callable[[Path], object]) -> None:
        with _scratch() as folder:
            write(folder)
            for file in folder.iterdir():
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


def _verification(base: Base, release: Path) -> dict[str, Callable[[], object]]:
    files = [file for folder in (base.model.path, release) for file in folder.glob("*.safetensors")]

    def read() -> None:
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.read(HASH_CHUNK_BYTES):
                    pass

    def hash_both() -> None:
        for file in files:
            digest_of_file(file)

    def from_disk(run: Callable[[], None]) -> None:
        for file in files:
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        run()

    def check() -> None:
        cache, progress = Cache(), Progress("quiet")
        opened = open_release(
            str(release),
            str(base.model.path),
            None,
            (),
            needs_recipe=False,
            cache=cache,
            progress=progress,
        )
        found = verify(opened, cache=cache, progress=progress)
        # The manifest of a release that nobody evaluated is not complete.
        wrong = [finding for finding in found.findings if finding.where != MANIFEST]
        assert not wrong, wrong

    return {
        "reading, from memory": read,
        "reading, from disk": lambda: from_disk(read),
        "SHA-256 of both": hash_both,
        "verify, from memory": check,
        "verify, from disk": lambda: from_disk(check),
    }


def _speed_of_smaller(models: dict[str, Any], rounds: int) -> Table:
    """Tokens a second of the base and of what is left of it, and the time that it saves.

    The last column of each is the share of the base's time that is saved, against the share of its
    parameters that is removed: 1 is as many times faster as it is smaller.
    """
    table = Table(title="Smaller checkpoints, fastest turns")
    for column in ("", "parameters", "", "tokens/s", "time", "saved / removed"):
        table.add_column(column, justify="right" if table.columns else "left")
    counts = {name: sum(each.numel() for each in m.parameters()) for name, m in models.items()}
    for work, run, tokens in (
        ("forward pass", _forward, FORWARD_TOKENS),
        ("generation", _generate, GENERATED_TOKENS),
    ):
        seconds = _take_turns({name: partial(run, model) for name, model in models.items()}, rounds)
        for name, value in seconds.items():
            left, time_ = counts[name] / counts["base"], value / seconds["base"]
            table.add_row(
                f"{work}, {name}",
                f"{counts[name] / 1e6:.1f} M",
                f"{left - 1:+.1%}",
                f"{tokens / value:,.0f}",
                f"{time_:.2f}",
                f"{(1 - time_) / (1 - left):.2f}" if left < 1 else "",
            )
        table.add_section()
    return table


def _smaller(base: Base, folder: Path) -> dict[str, Any]:
    """The base, and what is left of it, cut and with zeros in the place of what is removed."""
    sizes = base.dimensions
    groups = tuple(range(sizes.kv_heads * 2 // 3))
    heads = tuple(range(len(groups) * sizes.heads_per_group))
    layer = LayerPlan(tuple(range(sizes.ffn * 3 // 4)), heads, groups)
    every = LayerPlan(
        tuple(range(sizes.ffn)), tuple(range(sizes.heads)), tuple(range(sizes.kv_heads))
    )
    narrow = LayerPlan(tuple(range(sizes.ffn // 2)), heads, groups)
    wide = LayerPlan(every.ffn, heads, groups)
    plans = {
        "uniform": (layer,) * sizes.layers,
        "padded": (every, *(layer,) * (sizes.layers - 1)),  # the widest sets the width
        "ragged": ((narrow, wide) * sizes.layers)[: sizes.layers],  # as many gone as in uniform
    }
    models = {"base": load_model(base.model.path, "bfloat16")}
    for name, layers in plans.items():
        target = folder / name
        target.mkdir()
        plan = Plan(sizes.ffn, sizes.heads, sizes.kv_heads, layers)
        cuts, config = cuts_and_config(base, plan, Shape(ragged=name == "ragged"))
        cut_checkpoint(base.model.path, target, cuts, {}, lambda _: None)
        write_json(target / "config.json", config)
        models[name] = load_model(target, "bfloat16")
    return models


@torch.inference_mode()
def _forward(model: Any) -> None:
    model(input_ids=torch.arange(FORWARD_TOKENS).view(-1, SEQUENCE), use_cache=False)


@torch.inference_mode()
def _generate(model: Any) -> None:
    length = {"max_new_tokens": GENERATED_TOKENS, "min_new_tokens": GENERATED_TOKENS}
    model.generate(torch.arange(1, 17)[None], do_sample=False, **length)


def _release(base: Base, folder: Path) -> None:
    """Write a release as far as `verify` reads it."""
    plan, maps = _cut_of_a_sixteenth(base)
    cuts = tensor_cuts(base.architecture, base.dimensions, plan)
    report = cut_checkpoint(base.model.path, folder, cuts, maps, lambda _: None)
    config = pruned_config(base.model.path, base.architecture, base.dimensions, plan)
    write_json(folder / "config.json", config)
    copy_companions(base.model.path, folder)
    write_maps(folder, maps)
    before, after = zip(report.parameters, report.bytes, strict=True)
    manifest = {
        "name": "bench",
        "base": dict(zip(("parameters", "bytes"), before, strict=True)),
        "pruned": dict(zip(("parameters", "bytes"), after, strict=True)),
        "units": {
            kind: dict(zip(("kept", "total"), n, strict=True)) for kind, n in plan.counts().items()
        },
        "tensors": {
            "sliced": report.sliced,
            "compensated": report.compensated,
            "untouched": report.untouched,
        },
        "plan": json.loads(plan.to_json()),
    }
    write_manifest(folder, manifest)


def _cut_of_a_sixteenth(base: Base) -> tuple[Plan, dict[str, CompensationMap]]:
    sizes = base.dimensions
    keep = sizes.ffn * 15 // 16
    layer = LayerPlan(tuple(range(keep)), tuple(range(sizes.heads)), tuple(range(sizes.kv_heads)))
    plan = Plan(sizes.ffn, sizes.heads, sizes.kv_heads, (layer,) * sizes.layers)
    output = f"{base.architecture.feed_forward.output}.weight"
    maps = {
        base.architecture.tensor(number, output): CompensationMap(
            layer.ffn,
            plan.removed_ffn(number),
            torch.full((sizes.ffn - keep, keep), 1e-3),
            torch.bfloat16,
        )
        for number in range(sizes.layers)
    }
    return plan, maps


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on the base's disk, so that all contestants read and write the same one."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Cache().root) as folder:
        yield Path(folder)


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
