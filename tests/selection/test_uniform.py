from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.selection import scores
from pipeline.selection.uniform import keep_lowest, kept_groups, kept_per_group, kept_width

fractions = st.floats(0.0, 1.0, exclude_max=True, allow_subnormal=False)


@given(total=st.integers(2, 20_000), fraction=fractions, multiple=st.integers(1, 256))
def test_a_kept_width_is_a_smaller_multiple_and_never_nothing(
    total: int, fraction: float, multiple: int
) -> None:
    if fraction == 0:
        assert kept_width(total, fraction, multiple) == total
        return
    if multiple >= total:
        with pytest.raises(InputError, match=f"multiple of {multiple}") as caught:
            kept_width(total, fraction, multiple)
        assert caught.value.where == "select.ffn.multiple_of"
        return
    kept = kept_width(total, fraction, multiple)
    assert 0 < kept < total
    assert kept % multiple == 0
    legal = range(multiple, total, multiple)
    wanted = total * (1 - fraction)
    assert abs(kept - wanted) <= min(abs(width - wanted) for width in legal) + 1e-6


@given(total=st.integers(64, 5000), low=fractions, high=fractions)
def test_a_larger_fraction_never_keeps_more(total: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert kept_width(total, high, 32) <= kept_width(total, low, 32)


def test_widths_of_the_default_model() -> None:
    assert kept_width(1536, 0.15, 1) == 1306  # 1305.6
    assert kept_width(1536, 0.05, 32) == 1472  # 1459.2
    assert kept_width(1000, 0.1, 100) == 900  # the decimal that was written, not its float


def test_the_highest_scores_go_and_ties_keep_the_lower_index() -> None:
    scores_LU = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert keep_lowest(scores_LU, 2) == [[1, 3], [0, 1]]
    assert keep_lowest(scores_LU, 3) == [[1, 2, 3], [0, 1, 2]]
    assert scores_LU[0, 0] == 3.0  # the caller's scores stay as they were


def test_ties_are_broken_alike_however_wide_a_layer_is() -> None:
    assert keep_lowest(torch.zeros(1, 5000), 4000) == [list(range(4000))]


def test_protected_units_stay_whatever_their_score() -> None:
    scores_LU = torch.arange(8.0).repeat(2, 1)
    protected_LU = torch.zeros(2, 8, dtype=torch.bool)
    protected_LU[1, 6:] = True
    assert keep_lowest(scores_LU, 4, protected_LU) == [[0, 1, 2, 3], [0, 1, 6, 7]]
    with pytest.raises(InputError, match="layer 1 has more protected neurons than the 1"):
        keep_lowest(scores_LU, 1, protected_LU)


def test_units_with_massive_activations_are_recognised() -> None:
    retain_LU = torch.ones(2, 9, dtype=torch.float64)
    norms_LU = torch.ones(2, 9, dtype=torch.float64)
    retain_LU[0, 4] = 30.0
    norms_LU[1, 2] = 24.0
    found = scores.massive(retain_LU, norms_LU, 25.0)
    assert found.nonzero().tolist() == [[0, 4]]
    assert scores.massive(retain_LU * 1e6, norms_LU, 25.0).equal(found)  # scale does not matter


def test_random_removes_the_same_number_everywhere_and_follows_the_seed() -> None:
    kept = keep_lowest(scores.random(4, 100, seed=1), 70)
    assert [len(row) for row in kept] == [70] * 4
    assert kept == keep_lowest(scores.random(4, 100, seed=1), 70)
    assert kept != keep_lowest(scores.random(4, 100, seed=2), 70)
    assert len({tuple(row) for row in kept}) == 4


def test_scores_rank_what_serves_forget_and_not_retain() -> None:
    forget_LU = torch.tensor([[1.0, 4.0, 1.0, 4.0]], dtype=torch.float64)
    retain_LU = torch.tensor([[1.0, 1.0, 4.0, 4.0]], dtype=torch.float64)
    norms_LU = torch.tensor([[1.0, 1.0, 1.0, 9.0]], dtype=torch.float64)
    ratio = scores.ratio(forget_LU, retain_LU, 0.0)
    assert ratio[0].tolist() == [1.0, 4.0, 0.25, 1.0]
    floor = 0.1 * 2.5
    assert scores.ratio(forget_LU, retain_LU, 0.1)[0, 1] == pytest.approx((4 + floor) / (1 + floor))
    contribution = scores.contribution(forget_LU, retain_LU, norms_LU, 0.0)
    mean = (1 + 4 + 1 + 36) / 4
    expected = torch.tensor([4.0]).double().log() * (4 / mean) ** 0.5
    assert contribution[0, 1] == pytest.approx(float(expected))
    assert contribution[0].tolist()[0::3] == [0.0, 0.0]
    assert scores.magnitude(norms_LU)[0].argmin() == 3


def test_a_layer_that_is_silent_on_retain_text_gives_no_nan() -> None:
    silent = torch.zeros(1, 4, dtype=torch.float64)
    active = torch.ones(1, 4, dtype=torch.float64)
    for forget_LU, retain_LU in ((silent, silent), (silent, active)):
        assert scores.ratio(forget_LU, retain_LU, 0.05).isfinite().all()
        assert scores.contribution(forget_LU, retain_LU, active, 0.05).isfinite().all()
    assert not scores.ratio(active, silent, 0.05).isnan().any()


def dividing(hidden: int | None) -> Callable[[int], bool]:
    """Numbers of heads that divide the hidden size, or any."""
    return lambda heads: hidden is None or hidden % heads == 0


@pytest.mark.parametrize(
    ("fraction", "hidden", "groups"),
    [
        (0.0, 576, 3),
        (0.01, 576, 2),  # above 0 removes something
        (0.34, 576, 2),
        (0.9, 576, 1),
        (0.2, None, 2),
    ],
)
def test_groups_of_the_default_model(fraction: float, hidden: int | None, groups: int) -> None:
    assert kept_groups(3, 9, fraction, dividing(hidden)) == groups


def test_a_config_that_wants_divisors_gets_them() -> None:
    # 8 groups of 4 heads, hidden 4096: 7 · 4 = 28 heads do not divide it, 4 · 4 = 16 do.
    assert kept_groups(8, 32, 0.125, dividing(None)) == 7
    assert kept_groups(8, 32, 0.125, dividing(4096)) == 4
    assert kept_per_group(8, 32, 0.25, dividing(None)) == 3
    assert kept_per_group(8, 32, 0.25, dividing(4096)) == 2
    for kept in (
        kept_groups(8, 32, 0.125, dividing(4096)) * 4,
        kept_per_group(8, 32, 0.25, dividing(4096)) * 8,
    ):
        assert 4096 % kept == 0


def test_heads_that_cannot_be_cut_are_an_error_with_a_remedy() -> None:
    with pytest.raises(InputError, match="1 query heads in each of 6 groups") as caught:
        kept_per_group(6, 6, 0.2, dividing(None))
    assert "select.attention.unit" in caught.value.remedy
    with pytest.raises(InputError, match="1 key/value groups"):
        kept_groups(1, 4, 0.2, dividing(None))
