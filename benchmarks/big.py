"""`python -m benchmarks.big`: surgery and comparison of a checkpoint that should not be held whole.

Builds a synthetic sharded Llama in bfloat16 (zeros, but for some entries of each tensor), cuts
an eighth of its FFN neurons and a quarter of its heads, compensates and compares, each in a
process of its own, so that peak memory is known. Copying the same files is the measure of time. All
files go to a folder of the cache's disk and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from pipeline.cache import Cache, write_json
from pipeline.export.checkpoint import copy_companions, pruned_config
from pipeline.release.checks.tensors import check_tensors
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.sources.models import ResolvedModel
from pipeline.stages.base import Base, open_base
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.coordinates import head_coordinates, tensor_cuts
from pipeline.surgery.cut import cut_checkpoint
from pipeline.surgery.safetensors_stream import stored_tensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
LAYER_BYTES = 436_224_000
EMBEDDING_BYTES = 2 * 2 * 128_256 * 4096
WORKS = ("nothing", "copy", "cut", "cut and compensate", "compare")


def main() -> None:
    """Build, measure each work in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.big", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(_measured(options.work, options.folder)))
        return
    Cache().root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="big-", dir=Cache().root) as folder:
        size = _build(Path(folder) / "base", options.gigabytes)
        table = Table(title=f"Llama of {size / 1e9:.1f} GB in bfloat16")
        for column in ("", "seconds", "ratio to copying", "peak memory above the interpreter's"):
            table.add_column(column, justify="right" if column else "left")
        found = {work: _in_a_process(work, Path(folder)) for work in WORKS}
        idle, copied = found["nothing"]["megabytes"], found["copy"]["seconds"]
        for work in WORKS[1:]:
            seconds, megabytes = found[work]["seconds"], found[work]["megabytes"] - idle
            table.add_row(work, f"{seconds:.1f}", f"{seconds / copied:.2f}", f"{megabytes:,.0f} MB")
        Console().print(table)


def _in_a_process(work: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.big", "--work", work, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(work: str, folder: Path) -> dict[str, float]:
    base = open_base(ResolvedModel(folder / "base", "big", {}, "", None))
    target = folder / work.replace(" ", "-")
    run: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,
        "copy": lambda: shutil.copytree(folder / "base", target),
        "cut": lambda: _cut(base, target, compensated=False),
        "cut and compensate": lambda: _cut(base, target, compensated=True),
        "compare": lambda: _compare(base, folder / "cut"),
    }
    started = time.perf_counter()
    run[work]()
    for file in target.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    if work != "cut":  # which is compared afterwards
        shutil.rmtree(target, ignore_errors=True)
    return {"seconds": seconds, "megabytes": _peak_kilobytes() / 1024}


def _peak_kilobytes() -> int:
    """Peak resident memory of this process alone: `getrusage` also knows that of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _plan(base: Base) -> Plan:
    sizes = base.dimensions
    groups = tuple(range(sizes.kv_heads * 3 // 4))
    heads = tuple(range(len(groups) * sizes.heads_per_group))
    layer = LayerPlan(tuple(range(0, sizes.ffn * 7 // 8)), heads, groups)
    return Plan(sizes.ffn, sizes.heads, sizes.kv_heads, (layer,) * sizes.layers)


def _cut(base: Base, target: Path, *, compensated: bool) -> None:
    target.mkdir()
    plan, sizes = _plan(base), base.dimensions
    maps = {}
    if compensated:
        blocks = (
            (base.architecture.feed_forward, plan.layers[0].ffn, plan.removed_ffn(0)),
            (
                base.architecture.attention,
                head_coordinates(plan.layers[0].query_heads, sizes.head_dim),
                head_coordinates(plan.removed_heads(0), sizes.head_dim),
            ),
        )
        for block, kept, removed in blocks:
            shared = torch.full((len(removed), len(kept)), 1e-3)
            for layer in range(sizes.layers):
                name = base.architecture.tensor(layer, f"{block.output}.weight")
                maps[name] = CompensationMap(kept, removed, shared, torch.bfloat16)
    cuts = tensor_cuts(base.architecture, sizes, plan)
    cut_checkpoint(base.model.path, target, cuts, maps, lambda _: None)
    config = pruned_config(base.model.path, base.architecture, sizes, plan)
    write_json(target / "config.json", config)
    copy_companions(base.model.path, target)


def _compare(base: Base, release: Path) -> None:
    """What `verify` does with the tensors of a release that was only sliced."""
    cuts = tensor_cuts(base.architecture, base.dimensions, _plan(base))
    released = stored_tensors(release)
    report = check_tensors(base.tensors, released, cuts, frozenset(), None, lambda _: None)
    assert not report.findings, report.findings[:3]


def _build(folder: Path, gigabytes: float) -> int:
    """Write the checkpoint, one shard a layer, and return its bytes."""
    folder.mkdir(parents=True)
    layers = max(round((gigabytes * 1e9 - EMBEDDING_BYTES) / LAYER_BYTES), 1)
    write_json(folder / "config.json", CONFIG | {"num_hidden_layers": layers})
    hidden, ffn, kv = 4096, 14_336, 1024
    shapes = [
        {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_proj": (ffn, hidden),
                "mlp.up_proj": (ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items()
        }
        for layer in range(layers)
    ]
    vocabulary = (128_256, hidden)
    shapes.append({"model.embed_tokens.weight": vocabulary, "model.norm.weight": (hidden,)})
    shapes.append({"lm_head.weight": vocabulary})
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shapes):
        file = f"model-{number + 1:05d}-of-{len(shapes):05d}.safetensors"
        tensors = {name: _sparse(shape, generator) for name, shape in shard.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return size


def _sparse(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    tensor = torch.zeros(shape, dtype=torch.bfloat16)
    tensor.view(-1)[::997] = torch.rand(len(tensor.view(-1)[::997]), generator=generator).bfloat16()
    return tensor


if __name__ == "__main__":
    main()
