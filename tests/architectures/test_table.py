"""The table of docs/architectures.md is what cutting tiny models comes to.

`make docs` writes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import FAMILIES, base_of, cut, random_plan
from tiny_recipe import tiny_recipe

from pipeline.errors import InputError
from pipeline.stages.base import Base
from pipeline.stages.preflight import kept_sizes
from pipeline.surgery.projections import Projection, projections
from pipeline.surgery.safetensors_stream import stored_tensors

TinyBase = Callable[..., Base]
DOCS = Path(__file__).parents[2] / "docs/architectures.md"
HEADER = [
    "| family | FFN neurons | … ragged | heads, whole groups | … ragged | whole experts |",
    "|---|---|---|---|---|---|",
]


def outcomes(
    base: Base, folder: Path, projection: Projection, settings: tuple[str, ...], **kept: int
) -> str:
    """What a cut does in a stock checkpoint, and in a ragged one."""
    found = []
    for stock, policies in ((True, ("uniform", "padded")), (False, ("ragged",))):
        if all(refused(base, folder, f"select.policy={each}", *settings) for each in policies):
            found.append("refused")
        else:
            place = folder / policies[0]
            found.append(outcome(base, place, projection, ragged=not stock, **kept))
    assert found != ["cut", "zeros"]
    return " | ".join(found)


def refused(base: Base, folder: Path, *settings: str) -> bool:
    """Whether a run would refuse such settings."""
    recipe = tiny_recipe(folder, base.model.path, "select.ffn.fraction=0", *settings).recipe
    try:
        kept_sizes(recipe, base.architecture, base.dimensions)
    except InputError:
        return True
    return False


def outcome(base: Base, folder: Path, projection: Projection, *, ragged: bool, **kept: int) -> str:
    """Whether a cut made a projection narrower, or left zeros."""
    cut(base, folder, random_plan(base.dimensions, 0, **kept), ragged=ragged)
    after = {each.name: each for each in stored_tensors(folder)}[projection.tensor]
    columns = projection.columns(after.read())
    if columns.shape[1] < len(projection.units):
        return "cut"
    assert (columns == 0).all(dim=0).any()
    return "zeros"


def experts(base: Base, folder: Path) -> str:
    """What becomes of a whole expert."""
    if not base.dimensions.experts:
        return "—"
    assert not refused(base, folder, "select.experts.fraction=0.25")
    cut(base, folder / "cut", random_plan(base.dimensions, 0, experts=3))
    return {3: "cut"}[base_of(folder / "cut").dimensions.experts]


def test_the_documented_table_is_what_the_cuts_do(
    tiny_base: TinyBase, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rows = [*HEADER]
    for family in FAMILIES:
        base, folder = tiny_base(family), tmp_path / family
        of_neurons, *_, of_heads = projections(base.architecture, base.dimensions, 0)
        neurons = outcomes(base, folder / "ffn", of_neurons, ("select.ffn.fraction=0.5",), ffn=16)
        whole = base.dimensions.kv_heads > 1
        unit = f"select.attention.unit={'kv_group' if whole else 'query_head'}"
        heads = outcomes(
            base,
            folder / "heads",
            of_heads,
            ("select.attention.fraction=0.3", unit),
            **({"groups": 1} if whole else {"per_group": 1}),
        )
        rows.append(f"| {family} | {neurons} | {heads} | {experts(base, folder / 'experts')} |")
    text = DOCS.read_text(encoding="utf-8")
    documented = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    if pytestconfig.getoption("write_docs"):
        DOCS.write_text(text.replace(documented, "\n".join(rows)), encoding="utf-8")
    else:
        assert documented == "\n".join(rows), "`make docs` writes it anew"
