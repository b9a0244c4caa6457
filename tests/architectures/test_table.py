"""The table of docs/architectures.md is what cutting tiny models comes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_models import FAMILIES, base_of, cut, random_plan

from pipeline.stages.base import Base
from pipeline.surgery.projections import Projection, projections
from pipeline.surgery.safetensors_stream import stored_tensors

TinyBase = Callable[..., Base]
DOCS = Path(__file__).parents[2] / "docs/architectures.md"


def outcomes(base: Base, folder: Path, projection: Projection, **kept: int) -> str:
    """What a cut does in a stock checkpoint, and in a ragged one."""
    stock = outcome(base, folder / "stock", projection, ragged=False, **kept)
    if base.dimensions.experts:
        return f"{stock} | refused"
    ragged = outcome(base, folder / "ragged", projection, ragged=True, **kept)
    assert ragged == "cut" or stock == "zeros"
    return f"{stock} | {ragged}"


def outcome(base: Base, folder: Path, projection: Projection, *, ragged: bool, **kept: int) -> str:
    """Whether a cut made a projection narrower, or left zeros."""
    cut(base, folder, random_plan(base.dimensions, 0, **kept), ragged=ragged)
    after = {each.name: each for each in stored_tensors(folder)}[projection.tensor]
    columns = projection.columns(after.read())
    if columns.shape[1] < len(projection.units):
        return "cut"
    assert (columns == 0).all(dim=0).any()
    return "zeros"


def test_the_documented_table_is_what_the_cuts_do(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = []
    for family in FAMILIES:
        base = tiny_base(family)
        of_neurons, *_, of_heads = projections(base.architecture, base.dimensions, 0)
        ffn = outcomes(base, tmp_path / family / "ffn", of_neurons, ffn=16)
        heads = "refused | refused"
        if not base.architecture.attention.untouchable:
            groups, per_group = (1, 0) if base.dimensions.kv_heads > 1 else (0, 1)
            heads = outcomes(
                base, tmp_path / family / "heads", of_heads, groups=groups, per_group=per_group
            )
        experts = "—"
        if base.dimensions.experts:
            plan = random_plan(base.dimensions, 0, experts=3)
            cut(base, tmp_path / family / "experts", plan)
            left = base_of(tmp_path / family / "experts").dimensions.experts
            experts = {3: "cut"}[left]
        rows.append(f"| {family} | {ffn} | {heads} | {experts} |")
    text = DOCS.read_text(encoding="utf-8")
    documented = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert documented == rows, "the table should be:\n" + "\n".join(rows)
