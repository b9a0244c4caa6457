from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.plan import LayerPlan, Plan, complement, overlap

FFN, HEADS, GROUPS = 12, 6, 3


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def some(total: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.sets(st.integers(0, total - 1), min_size=1))))

    layers = tuple(LayerPlan(some(FFN), some(HEADS), some(GROUPS)) for _ in range(2))
    return Plan(FFN, HEADS, GROUPS, layers)


@given(plans())
def test_the_text_of_a_plan_is_canonical(plan: Plan) -> None:
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert again.to_json() == text
    shuffled = dict(reversed(json.loads(text).items()))
    assert Plan.from_dict(shuffled).to_json() == text
    assert " " not in text


@given(plans())
def test_kept_and_removed_are_all(plan: Plan) -> None:
    for layer, kept in enumerate(plan.layers):
        assert sorted((*kept.ffn, *plan.removed_ffn(layer))) == list(range(FFN))
        assert sorted((*kept.query_heads, *plan.removed_heads(layer))) == list(range(HEADS))
    assert plan.counts()["ffn"] == (sum(len(layer.ffn) for layer in plan.layers), 2 * FFN)


@given(plans(), plans())
def test_overlap(one: Plan, other: Plan) -> None:
    assert overlap(one, other) == overlap(other, one)
    assert all(0 <= share <= 1 for share in overlap(one, other).values())
    assert set(overlap(one, one).values()) <= {1.0}


def test_overlap_counts_removed_units() -> None:
    def plan(*kept: int) -> Plan:
        return Plan(4, 1, 1, (LayerPlan(kept, (0,), (0,)),))

    assert overlap(plan(0, 1), plan(0, 2)) == {"ffn": 1 / 3}  # {2, 3} and {1, 3}
    assert overlap(plan(0, 1, 2, 3), plan(0, 1, 2, 3)) == {}
    assert complement((1, 3), 5) == (0, 2, 4)
