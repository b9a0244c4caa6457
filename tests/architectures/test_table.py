"""The table of docs/architectures.md is what cutting tiny models comes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_models import FAMILIES, cut, random_plan

from pipeline.stages.base import Base
from pipeline.surgery.safetensors_stream import stored_tensors

TinyBase = Callable[..., Base]
DOCS = Path(__file__).parents[2] / "docs/architectures.md"


def outcomes(base: Base, folder: Path, tensor: str, axis: int, **kept: int) -> str:
    """What a cut does in a stock checkpoint, and in a ragged one."""
    stock = outcome(base, folder / "stock", tensor, axis, ragged=False, **kept)
    ragged = outcome(base, folder / "ragged", tensor, axis, ragged=True, **kept)
    assert ragged == "cut" or stock == "zeros"
    return f"{stock} | {ragged}"


def outcome(base: Base, folder: Path, tensor: str, axis: int, *, ragged: bool, **kept: int) -> str:
    """Whether a cut made a tensor shorter, or left zeros."""
    cut(base, folder, random_plan(base.dimensions, 0, **kept), ragged=ragged)
    name = base.architecture.tensor(0, f"{tensor}.weight")
    after = {each.name: each for each in stored_tensors(folder)}[name]
    if after.shape[axis] < base.tensors[name].shape[axis]:
        return "cut"
    assert (after.read() == 0).all(dim=1 - axis).any()
    return "zeros"


def test_the_documented_table_is_what_the_cuts_do(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = []
    for family in FAMILIES:
        base = tiny_base(family)
        block, attention = base.architecture.feed_forward, base.architecture.attention
        ffn = outcomes(base, tmp_path / family / "ffn", block.output, block.output_axis, ffn=32)
        heads = "refused | refused"
        if not attention.untouchable:
            groups, per_group = (1, 0) if base.dimensions.kv_heads > 1 else (0, 1)
            heads = outcomes(
                base,
                tmp_path / family / "heads",
                attention.output,
                attention.output_axis,
                groups=groups,
                per_group=per_group,
            )
        rows.append(f"| {family} | {ffn} | {heads} |")
    text = DOCS.read_text(encoding="utf-8")
    documented = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert documented == rows, "the table should be:\n" + "\n".join(rows)
