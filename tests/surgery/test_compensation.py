from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.errors import BrokenError
from pipeline.surgery.compensation import CompensationMap, compensation_map

TOKENS, UNITS, HIDDEN, KEPT = 3000, 60, 24, 45
S, P = list(range(KEPT)), list(range(KEPT, UNITS))


def activations(seed: int = 0, noise: float = 0.3, massive: float = 1.0) -> Tensor:
    """Units that share causes, so that some can be told from others; three may be massive."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x_TU = normal(TOKENS, 12) @ normal(12, UNITS) / 12**0.5 + noise * normal(TOKENS, UNITS)
    x_TU[:, :3] *= massive
    return x_TU


def weight(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(HIDDEN, UNITS, generator=generator, dtype=torch.float64)


def our_map(moments_UU: Tensor, ridge: float = 0.01) -> Tensor:
    return compensation_map(
        moments_UU, S, P, ridge=ridge, dtype=torch.float64, where="layer 0"
    ).map_PS.double()


def map_with_ridge_of_the_mean(moments_UU: Tensor, ridge: float = 0.01) -> Tensor:
    """The wrong way: massive units set the ridge of all others."""
    system_SS = moments_UU[S][:, S] + ridge * moments_UU.diagonal()[S].mean() * torch.eye(KEPT)
    return torch.linalg.solve(system_SS, moments_UU[S][:, P]).T


def damage(x_TU: Tensor, map_PS: Tensor) -> float:
    """Mean squared error of the output, as a share of what was removed."""
    weight_HP = weight()[:, P]
    lost_TH = (x_TU[:, P] - x_TU[:, S] @ map_PS.T) @ weight_HP.T
    return float(lost_TH.square().sum() / (x_TU[:, P] @ weight_HP.T).square().sum())


def least_squares(x_TU: Tensor) -> Tensor:
    return torch.linalg.lstsq(x_TU[:, S], x_TU[:, P]).solution.T


@pytest.mark.parametrize("ridge", [1e-4, 0.01, 0.5])
def test_it_is_the_ridge_regression_of_removed_on_kept_units(ridge: float) -> None:
    x_TU = activations()
    own_S = x_TU[:, S].square().sum(dim=0)
    design = torch.cat([x_TU[:, S], torch.diag((ridge * own_S).sqrt())])
    target = torch.cat([x_TU[:, P], torch.zeros(KEPT, len(P), dtype=torch.float64)])
    expected_PS = torch.linalg.lstsq(design, target).solution.T
    torch.testing.assert_close(
        our_map(x_TU.T @ x_TU / TOKENS, ridge), expected_PS, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("weighs", [0.1, 1.0, 10.0])
def test_what_stands_in_keeps_silent_on_forget_text(weighs: float) -> None:
    """As ridge regression with the forget text's own rows, whose target is nothing."""
    x_TU, forget_TU = activations(), activations(seed=3)
    moments_UU, forget_UU = (each.T @ each / TOKENS for each in (x_TU, forget_TU))
    design = torch.cat(
        [
            x_TU[:, S],
            weighs**0.5 * forget_TU[:, S],
            torch.diag((0.01 * x_TU[:, S].square().sum(dim=0)).sqrt()),
        ]
    )
    nothing = torch.zeros(TOKENS + KEPT, len(P), dtype=torch.float64)
    expected_PS = torch.linalg.lstsq(design, torch.cat([x_TU[:, P], nothing])).solution.T
    found_PS = compensation_map(
        moments_UU,
        S,
        P,
        ridge=0.01,
        dtype=torch.float64,
        where="",
        silent_UU=weighs * forget_UU,
    ).map_PS.double()
    torch.testing.assert_close(found_PS, expected_PS, rtol=1e-6, atol=1e-7)
    loud, silent = (
        (forget_TU[:, S] @ each.T).square().sum() for each in (our_map(moments_UU), found_PS)
    )
    assert silent < loud


def test_the_compensated_columns_are_weight_plus_removed_times_map() -> None:
    x_TU, weight_HU = activations(), weight()
    result = compensation_map(
        x_TU.T @ x_TU / TOKENS, S, P, ridge=0.01, dtype=torch.bfloat16, where=""
    )
    exact = weight_HU[:, S] + weight_HU[:, P] @ result.map_PS.double()
    assert torch.equal(result.kept_columns(weight_HU), exact.bfloat16().double())
    stored = weight_HU.bfloat16()  # surgery holds the stored type, the proof a wider one
    assert result.kept_columns(stored).dtype == torch.bfloat16
    assert torch.equal(result.kept_columns(stored).float(), result.kept_columns(stored.float()))


def test_it_reduces_the_damage_on_text_that_it_has_not_seen() -> None:
    seen, unseen = activations(0), activations(0)
    seen, unseen = seen[: TOKENS // 2], unseen[TOKENS // 2 :]
    map_PS = our_map(seen.T @ seen / len(seen))
    assert damage(unseen, torch.zeros_like(map_PS)) == pytest.approx(1.0)
    assert damage(unseen, map_PS) < 0.3


@pytest.mark.parametrize("massive", [1e2, 1e3])  # second moments 1e4 and 1e6 times as large
def test_massive_units_do_not_decide_the_ridge_of_the_others(massive: float) -> None:
    x_TU = activations(massive=massive)
    moments_UU = x_TU.T @ x_TU / TOKENS
    best = damage(x_TU, least_squares(x_TU))
    ours = damage(x_TU, our_map(moments_UU))
    wrong = damage(x_TU, map_with_ridge_of_the_mean(moments_UU))
    assert ours < 1.1 * best
    assert wrong > 3 * ours
    # nothing about the units' scales changes what is computed
    plain = activations()
    assert ours == pytest.approx(damage(plain, our_map(plain.T @ plain / TOKENS)), rel=1e-3)


def test_units_that_never_fire_stay_out() -> None:
    x_TU = activations()
    x_TU[:, [5, 6, KEPT + 1]] = 0.0
    map_PS = our_map(x_TU.T @ x_TU / TOKENS)
    assert map_PS.isfinite().all()
    assert (map_PS[:, [5, 6]] == 0).all()
    assert (map_PS[1] == 0).all()
    alive = [unit for unit in S if unit not in (5, 6)]
    assert damage(x_TU, map_PS) < 1.1 * damage(x_TU, least_squares(x_TU))
    assert (map_PS[0, alive] != 0).all()


def test_nothing_measured_at_all_changes_nothing() -> None:
    assert (our_map(torch.zeros(UNITS, UNITS, dtype=torch.float64)) == 0).all()


def test_copies_of_one_unit_do_not_break_it() -> None:
    x_TU = activations()
    x_TU[:, 1] = x_TU[:, 0]
    assert our_map(x_TU.T @ x_TU / TOKENS).isfinite().all()


@pytest.mark.parametrize("bad", ["indefinite", "nan"])
def test_moments_that_cannot_be_right_are_refused(bad: str) -> None:
    x_TU = activations()
    moments_UU = x_TU.T @ x_TU / TOKENS
    if bad == "nan":
        moments_UU[2, 3] = moments_UU[3, 2] = torch.nan
    else:
        moments_UU[2, 3] = moments_UU[3, 2] = 2 * moments_UU.diagonal().max()
    with pytest.raises(BrokenError, match="not positive definite") as caught:
        our_map(moments_UU)
    assert caught.value.where == "layer 0"
    assert "compensate.ridge" in caught.value.remedy


def test_a_map_so_large_that_it_explains_anything_explains_nothing() -> None:
    """Removed columns that are alike, times ±2⁵⁰: what the sum is rounded to can be any noise."""
    torch.manual_seed(0)
    weight_HU = torch.randn(32, 12, dtype=torch.float64).bfloat16()
    weight_HU[:, 11] = weight_HU[:, 10]
    noise_S = torch.randn(10) * 0.1
    large_PS = torch.stack([2.0**50 + noise_S, -(2.0**50) * torch.ones(10)])
    for map_PS, wrong in ((torch.randn(2, 10), 0), (large_PS, 320)):
        own = CompensationMap(tuple(range(10)), (10, 11), map_PS, torch.bfloat16)
        assert own.unexplained(weight_HU, own.kept_columns(weight_HU)) == wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sum_in_another_order_is_explained(dtype: torch.dtype) -> None:
    """In float64 it is rounded to values between the ends of its bound."""
    torch.manual_seed(0)
    weight_HU = torch.randn(64, 200, dtype=torch.float64).to(dtype)
    own = CompensationMap(tuple(range(100)), tuple(range(100, 200)), torch.randn(100, 100), dtype)
    turned = torch.arange(99, -1, -1)
    other_HS = weight_HU[:, :100].double()
    other_HS = other_HS + weight_HU[:, 100:].double()[:, turned] @ own.map_PS.double()[turned]
    stored_HS = other_HS.to(dtype)
    if dtype == torch.float64:
        assert not torch.equal(stored_HS, own.kept_columns(weight_HU))
    assert own.unexplained(weight_HU, stored_HS) == 0
    stored_HS[3, 5] *= 1.02
    assert own.unexplained(weight_HU, stored_HS) == 1
