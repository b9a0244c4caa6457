"""Figures of curves: against hand-made numbers, and the coverage of their intervals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.curves import LIMIT, Judges, figures, forgetting_at, selectivity

Numbers = NDArray[np.float64]


def documents(accuracy: float, n: int = 50, tokens: int = 100) -> Numbers:
    """Documents that are all alike: bootstrap intervals are empty."""
    return np.tile([accuracy * tokens, float(tokens)], (n, 1))


def curve(*drops: tuple[float, float]) -> tuple[Judges, list[dict[str, Numbers]]]:
    """Points with exactly these drops of the forget and of the retain side."""
    sides = {"code": "forget", "prose": "retain", "fiction": "retain"}
    base = {"code": documents(0.5), "prose": documents(0.4), "fiction": documents(0.2)}
    points = [
        {
            "code": documents(0.5 * (1 - forget)),
            "prose": documents(0.4 * (1 - retain)),
            "fiction": documents(0.2 * (1 - retain)),
        }
        for forget, retain in drops
    ]
    return Judges(sides, base), points  # type: ignore[arg-type]


def at(forget: Numbers, retain: Numbers, budget: float) -> float:
    return float(forgetting_at(forget, retain, np.array([budget]))[0])


def test_drops_are_shares_of_the_base_and_means_over_texts() -> None:
    judges, points = curve((0.4, 0.1))
    points[0]["fiction"] = documents(0.2 * 0.7)
    forget, retain = judges.drops(points)
    assert forget == pytest.approx([0.4]) and retain == pytest.approx([(0.1 + 0.3) / 2])


def test_long_documents_weigh_more() -> None:
    base = np.array([[50.0, 100.0], [5.0, 10.0]])
    judges = Judges({"a": "forget", "b": "retain"}, {"a": base, "b": base})
    point = np.array([[25.0, 100.0], [5.0, 10.0]])
    forget, _ = judges.drops([{"a": point, "b": base}])
    assert forget == pytest.approx([1 - 30 / 55])


def test_the_figures_of_a_curve() -> None:
    judges, points = curve((0.2, 0.01), (0.5, 0.03), (0.7, 0.11), (0.9, 0.5))
    found = figures(judges, points)
    assert found["headline"].value == pytest.approx(0.7 - 0.11)  # 0.9 is beyond the limit
    assert found["at_0.01"].value == pytest.approx(0.2)
    assert found["at_0.02"].value == pytest.approx(0.35)  # between the first and the second
    assert found["at_0.05"].value == pytest.approx(0.5 + 0.2 * 2 / 8)
    knots = [(0, 0), (0.01, 0.2), (0.03, 0.5), (0.11, 0.7), (LIMIT, 0.7 + 0.2 * 19 / 39)]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(knots))
    assert found["area"].value == pytest.approx(area / LIMIT, abs=0.01)
    for figure in found.values():  # all documents are alike
        assert figure.low == pytest.approx(figure.value) == pytest.approx(figure.high)


def test_selectivity_is_the_area_beyond_random_cuts() -> None:
    judges, points = curve((0.5, 0.1), (0.7, 0.2))
    _, matched = curve((0.1, 0.1), (0.2, 0.25))
    areas = [figures(judges, own)["area"].value for own in (points, matched)]
    found = selectivity(judges, points, matched)
    assert found.value == pytest.approx(areas[0] - areas[1])
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)
    assert selectivity(judges, points, points) == pytest.approx((0, 0, 0))


def test_its_interval_draws_the_same_documents_for_both() -> None:
    """Two curves that differ by the same on every document differ by that in every draw."""
    generator = np.random.default_rng(1)
    hits = generator.integers(20, 60, 40)
    tokens, other = np.full(40, 100), documents(0.5, 40)
    base = {"a": np.stack([tokens, tokens], 1), "b": other}
    judges = Judges({"a": "forget", "b": "retain"}, base)
    cost = {"b": np.stack([other[:, 0] * 0.9, other[:, 1]], 1)}
    points = [{"a": np.stack([hits, tokens], 1), **cost}]
    matched = [{"a": np.stack([hits + 20, tokens], 1), **cost}]
    found = selectivity(judges, points, matched)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)
    area = figures(judges, points)["area"]
    assert area.high - area.low > 0.01


def test_what_is_not_reached_is_not_made_up() -> None:
    forget, retain = np.array([0.1, 0.3]), np.array([0.002, 0.01])
    assert at(forget, retain, 0.05) == 0.3  # of the last point: a lower bound
    assert at(forget[:0], retain[:0], 0.05) == 0.0


def test_a_curve_that_turns_back_counts_where_it_first_costs_too_much() -> None:
    forget, retain = np.array([0.2, 0.4, 0.6]), np.array([0.04, 0.01, 0.06])
    assert at(forget, retain, 0.02) == pytest.approx(0.1)


def test_a_curve_may_begin_below_nothing() -> None:
    """Cutting a little may make a model better on some text."""
    forget, retain = np.array([0.1, 0.3]), np.array([-0.01, 0.03])
    assert at(forget, retain, 0.01) == pytest.approx(0.2)


def test_the_interval_holds_what_it_says() -> None:
    """Of 90 %: the true forgetting lies in it as often, in draws of whole data sets."""
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(120):
        skill = generator.beta(20, 20, 60)
        tokens = np.full(60, 80.0)
        base = np.stack([generator.binomial(80, skill), tokens], 1)
        kept = np.clip(generator.normal(0.4, 0.1, 60), 0, 1)
        point = np.stack([generator.binomial(80, skill * kept), tokens], 1)
        judges = Judges({"a": "forget", "b": "retain"}, {"a": base, "b": documents(0.5, 60)})
        headline = figures(judges, [{"a": point, "b": documents(0.5, 60)}])["headline"]
        inside += headline.low <= 0.6 <= headline.high
    assert 0.82 <= inside / 120 <= 0.97
