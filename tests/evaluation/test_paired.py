"""The interval of a drop: against formulas, in its limits, and how often it is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import pipeline.evaluation.studentised
from pipeline.evaluation.paired import Interval, Paired, interval_of_drop

Generator = np.random.Generator
LEVEL = 0.05


def table(both: int, worse: int, better: int, neither: int) -> Paired:
    """Documents that are right or wrong, by the cells of their paired table."""
    cells = [(1, 1)] * both + [(1, 0)] * worse + [(0, 1)] * better + [(0, 0)] * neither
    base, pruned = np.array(cells, dtype=float).T
    ones = np.ones(len(cells))
    return Paired(np.stack([base, ones], 1), np.stack([pruned, ones], 1))


def means(base: list[float], pruned: list[float]) -> Paired:
    ones = np.ones(len(base))
    return Paired(np.stack([np.array(base), ones], 1), np.stack([np.array(pruned), ones], 1))


def absolute(paired: Paired, level: float = LEVEL) -> Interval:
    return interval_of_drop(
        paired, level=level, higher_is_better=True, relative=False, min_differing=0
    )


def relative(paired: Paired, level: float = LEVEL, chance: float | None = None) -> Interval:
    return interval_of_drop(
        paired, level=level, higher_is_better=True, relative=True, chance=chance, min_differing=0
    )


def without_skewness(find: Callable[[Paired], Interval], paired: Paired) -> Interval:
    """The interval that supposes symmetry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.evaluation.studentised, "_skewness", lambda *_: 0.0)
        patch.setattr(pipeline.evaluation.studentised, "SKEWNESS_ERRORS", 0.0)
        return find(paired)


loss = st.floats(1.1, 9)  # were all between 0 and 1, they would be tested in another way
losses = st.lists(st.tuples(loss, loss), min_size=3, max_size=40)


@given(losses)
def test_an_absolute_drop_of_a_mean_is_the_paired_t_test(rows: list[tuple[float, float]]) -> None:
    base, pruned = (list(side) for side in zip(*rows, strict=True))
    difference = np.array(base) - np.array(pruned)
    assume(difference.std() > 1e-6)
    found = without_skewness(absolute, means(base, pruned))
    expected = stats.ttest_rel(base, pruned).confidence_interval(1 - 2 * LEVEL)
    assert found.drop == pytest.approx(difference.mean(), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(losses, st.floats(-0.5, 0.9))
def test_a_relative_bound_is_the_t_test_of_its_contrast(
    rows: list[tuple[float, float]], bound: float
) -> None:
    base, pruned = (np.array(side) for side in zip(*rows, strict=True))
    contrast = (1 - bound) * base - pruned  # its mean is above 0 where the drop is above the bound
    assume(contrast.std() > 1e-6)
    found = without_skewness(relative, means(list(base), list(pruned)))
    assume(math.isfinite(found.low))
    p = stats.ttest_1samp(contrast, 0.0, alternative="greater").pvalue
    assume(abs(p - LEVEL) > 1e-6 and abs(p - (1 - LEVEL)) > 1e-6)
    assert (found.low > bound) == (p < LEVEL)
    assert (found.high < bound) == (p > 1 - LEVEL)


def test_hall_s_transformation_is_inverted() -> None:
    """g(t) = t + γ/√n (t²/3 + 1/6) + γ² t³ / 27n of the result is the quantile."""
    for n in (20, 1000):
        for skewness in (-1.5, -1e-9, 0.0, 0.3, 2.0):
            t = pipeline.evaluation.studentised._unskewed(1.7, skewness, n)
            cube = skewness**2 * t**3 / (27 * n)
            back = t + skewness / math.sqrt(n) * (t**2 / 3 + 1 / 6) + cube
            assert back == pytest.approx(1.7, abs=1e-6)


def test_skewness_widens_the_bound_that_it_endangers() -> None:
    """Of rises that are mostly small, few documents say little about how large they are at most."""
    rises = [0.0] * 15 + [1.0] * 4 + [6.0]
    few = means([10.0] * 20, [10.0 - rise for rise in rises])
    many = means([10.0] * 4000, [10.0 - rise for rise in rises] * 200)
    for paired, share in ((few, 0.3), (many, 0.0)):
        plain, found = without_skewness(absolute, paired), absolute(paired)
        assert found.high > plain.high + share * (plain.high - plain.drop)
        assert found.low == pytest.approx(plain.low, abs=0.3 * (plain.drop - plain.low))
    assert found.high == pytest.approx(plain.high, abs=0.05 * (plain.high - plain.drop))


def test_agreement_on_a_few_documents_is_no_certainty() -> None:
    few_solved = [0.0] * 19 + [0.3]  # pass@1 of ten samples
    for paired in (table(20, 0, 0, 5), table(25, 0, 0, 0), means(few_solved, few_solved)):
        found = absolute(paired)
        assert found.drop == 0
        # The rule of three: a share that n documents do not show is at most 1 - level^(1/n).
        assert found.high == pytest.approx(1 - LEVEL ** (1 / paired.n))
        assert found.low == -found.high
        needed = found.documents_needed(0.001, LEVEL, 0.8)
        assert needed is not None and 2900 < needed < 3100
    assert relative(table(20, 0, 0, 5)).high > 0.03
    assert relative(means(few_solved, few_solved)).high > 0.5


def test_documents_without_bounds_say_nothing_if_hardly_any_differs() -> None:
    """What the rest may lose, nobody knows; of all that lose alike, it is certain, and not true."""
    same = [2.0 + number / 7 for number in range(30)]
    for lost in ([], [5.0], [5.0 + number for number in range(9)]):
        pruned = [loss + rise for loss, rise in zip(same, lost + [0.0] * 30, strict=False)]
        for shift in (0.0, 1.0):  # all but a few rise by the same
            risen = means(same, [loss + shift for loss in pruned])
            found = interval_of_drop(risen, level=LEVEL, higher_is_better=False, relative=False)
            assert risen.differing == len(lost)
            assert (found.low, found.high) == (-math.inf, math.inf)
            assert f"{len(lost)} of 30 documents differ" in found.unknown
            assert found.drop == pytest.approx(sum(lost) / 30 + shift)
    ten = means(same, [loss + max(0, number - 19) for number, loss in enumerate(same)])
    assert math.isfinite(
        interval_of_drop(ten, level=LEVEL, higher_is_better=False, relative=True).high
    )


def test_long_documents_weigh_more() -> None:
    base = np.array([[8.0, 10], [50, 100], [9, 10]])
    pruned = np.array([[1.0, 10], [25, 100], [2, 10]])
    assert relative(Paired(base, pruned)).drop == pytest.approx(1 - 28 / 67)


def test_of_a_loss_higher_is_worse() -> None:
    paired = means([2.0, 3.0, 2.5], [4.0, 6.5, 5.0])
    found = interval_of_drop(
        paired, level=LEVEL, higher_is_better=False, relative=True, min_differing=0
    )
    assert found.drop == pytest.approx(15.5 / 7.5 - 1)
    assert 0 < found.low < found.drop < found.high


def test_a_base_that_may_know_nothing_has_no_relative_drop() -> None:
    found = relative(table(2, 3, 2, 40), chance=0.1)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.unknown == "the base is not shown to be better than chance (0.1)"
    # 23 of 30 are above a chance of 0.75 by half a document; so are 24 of 32, by none.
    for right, of in ((23, 30), (24, 32)):
        found = relative(table(right - 2, 2, 0, of - right), chance=0.75)
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert "chance (0.75)" in found.unknown
        assert found.documents_needed(0.5, LEVEL, 0.8) is None or found.drop > 0
    assert "0" in relative(means([0.0] * 20, [50.0] * 20)).unknown


def test_a_metric_below_0_has_a_relative_drop() -> None:
    """Such as a log-likelihood: its whole is its distance from 0."""
    base, pruned = [-2.0, -3.0, -2.5], [-4.0, -6.5, -5.0]
    found = relative(means(base, pruned))
    assert found.drop == pytest.approx(15.5 / 7.5 - 1)
    assert 0 < found.low < found.drop < found.high


def test_more_documents_are_asked_for_the_closer_the_bound() -> None:
    found = absolute(table(300, 40, 10, 150))
    needed = [found.documents_needed(bound, LEVEL, 0.8) for bound in (0.2, 0.1, 0.07, 0.061)]
    assert None not in needed
    assert sorted(needed) == needed  # type: ignore[type-var]
    assert found.documents_needed(found.drop, LEVEL, 0.8) is None
    more = found.documents_needed(0.07, LEVEL, 0.99)
    assert more is not None and needed[2] is not None and more > needed[2]


# ── error rates ──────────────────────────────────────────────────────────────────────────────────


def next_tokens(n: int, drop: float) -> Callable[..., Paired]:
    """Documents of unlike length, skill and drop."""

    def draw(generator: Generator) -> Paired:
        length = generator.integers(20, 400, n)
        skill = generator.beta(9, 21, n)
        kept = generator.beta((1 - drop) * 40, drop * 40, n)
        hits = generator.binomial(length, skill), generator.binomial(length, skill * kept)
        base, pruned = (np.stack([each, length], 1).astype(float) for each in hits)
        return Paired(base, pruned)

    return draw


@pytest.mark.parametrize(
    ("draw", "truth"), [(next_tokens(24, 0.5), 0.5), (next_tokens(100, 0.08), 0.08)]
)
def test_each_side_is_wrong_about_as_often_as_its_level(
    draw: Callable[..., Paired], truth: float
) -> None:
    generator = np.random.default_rng(1)
    found = [relative(draw(generator)) for _ in range(600)]
    for wrong in (sum(i.low > truth for i in found), sum(i.high < truth for i in found)):
        # Five in a hundred, and what a binomial of 600 draws may add.
        assert wrong / 600 < 0.085


def test_a_few_documents_that_lose_all_do_not_go_unnoticed() -> None:
    """A twentieth of 20 documents is lost, which one sample in three does not show."""
    generator = np.random.default_rng(2)
    drop, passed = 0.05, 0
    for _ in range(200):
        lost = generator.random(20) < drop
        base = np.where(lost, 1.0, generator.binomial(10, 0.3, 20) / 10)
        passed += absolute(means(list(base), list(np.where(lost, 0.0, base)))).high <= drop
    assert passed / 200 <= LEVEL


@given(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), st.integers(5, 90))
def test_the_difference_of_two_drops_of_equal_error_is_symmetric(
    row: tuple[float, float, float], n: int
) -> None:
    drop, error, other = row
    quantile = float(stats.norm.ppf(1 - LEVEL))
    one, two = (
        Interval(d, d - quantile * e, d + quantile * e, n, (e * e, 0.0, 0.0))
        for d, e in ((drop, error), (0.25, other))
    )
    found = one.minus(two)
    both = math.hypot(error, other)
    assert found.drop == pytest.approx(drop - 0.25)
    assert (found.low, found.high) == pytest.approx(
        (found.drop - quantile * both, found.drop + quantile * both)
    )
    assert found.standard_error(0.3) == pytest.approx(both)
    assert found.n == 2 * n
