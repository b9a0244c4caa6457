"""Compensation maps that are learned: on a network whose removed neurons have twins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.scoring.learning import Manner, descend
from pipeline.scoring.stand_ins import StandIn, learn_maps, share_of_rate

WORDS = 8  # of which the first half is forget text, and the other half retain text
MANNER = Manner(steps=80, learning_rate=0.05, retain_weight=4.0, where="compensate.learning")


class Twins(nn.Module):
    """Says the next word of the same half; neurons w and w + 8 both fire on word w.

    The first eight fire three times as much as the others do if these fire by 1.
    """

    def __init__(self, fires: float = 1.0) -> None:
        super().__init__()
        self.fires = fires
        self.projection = nn.Linear(2 * WORDS, WORDS, bias=False)
        words = torch.arange(WORDS)
        half = WORDS // 2
        after = (words + 1) % half + words // half * half
        weight_WW = functional.one_hot(after, WORDS).float().T
        self.projection.weight.data = torch.cat([2.0 * weight_WW, 2.0 / fires * weight_WW], dim=1)

    def logits(self, ids_NT: Tensor) -> Tensor:
        x_NTW = functional.one_hot(ids_NT, WORDS).float()
        logits: Tensor = self.projection(torch.cat([3.0 * x_NTW, self.fires * x_NTW], dim=2))
        return logits

    def stand_in(self) -> StandIn:
        """For the first eight, nothing yet."""
        removed, kept = torch.arange(2 * WORDS).split(WORDS)
        scale_U = torch.tensor([3.0] * WORDS + [self.fires] * WORDS)
        return StandIn(self.projection, kept, removed, torch.zeros(WORDS, WORDS), scale_U)


def _batches() -> Iterator[tuple[Tensor, Tensor]]:
    forget = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0]])
    return repeat((forget, forget + WORDS // 2))


def _learn(model: Twins, stand_in: StandIn, manner: Manner = MANNER) -> Tensor:
    steps: list[int] = []
    (map_PS,) = learn_maps(model.logits, [stand_in], nullcontext, _batches(), manner, steps.append)
    assert steps == [1] * manner.steps
    return map_PS


def test_twins_stand_in_on_retain_text_and_not_on_forget_text() -> None:
    model = Twins().requires_grad_(False)
    weight = model.projection.weight.clone()
    map_PS = _learn(model, model.stand_in())
    assert map_PS.dtype == torch.float32 and not map_PS.requires_grad
    x_WU = torch.eye(WORDS)
    given_WU = torch.cat([x_WU @ map_PS.T, x_WU], dim=1)
    after_WW = (given_WU @ weight.T).softmax(dim=1)
    before_WW = model.logits(torch.arange(WORDS)[None])[0].softmax(dim=1)
    said = before_WW.argmax(dim=1, keepdim=True)
    kept = (after_WW / before_WW).gather(1, said).flatten()
    half = WORDS // 2
    assert kept[half:].min() > 0.98
    assert kept[:half].max() < 0.05
    assert torch.equal(model.projection.weight, weight)
    assert model.projection.weight.grad is None and not model.projection._forward_pre_hooks


def test_it_begins_with_the_map_that_is_given() -> None:
    model = Twins().requires_grad_(False)
    twins = replace(model.stand_in(), map_PS=3.0 * torch.eye(WORDS))
    found_PS = _learn(model, twins, replace(MANNER, learning_rate=1e-9))
    assert torch.allclose(found_PS, twins.map_PS, atol=1e-5)


def test_how_much_units_fire_changes_nothing() -> None:
    models = [Twins(fires).requires_grad_(False) for fires in (1.0, 500.0, 0.002)]
    first, *others = (_learn(each, each.stand_in()) * each.fires for each in models)
    for other in others:
        assert torch.allclose(first, other, rtol=1e-3, atol=1e-4)


def test_units_that_never_fire_stay_out() -> None:
    model = Twins().requires_grad_(False)
    first = model.stand_in()
    never = torch.arange(2 * WORDS) % WORDS == 5
    scale_U = torch.where(never, 0.0, first.scale_U)
    map_PS = _learn(model, replace(first, scale_U=scale_U))
    assert not map_PS[5].any() and not map_PS[:, 5].any()
    assert map_PS[4].any() and map_PS[:, 4].any()


def test_the_rate_grows_then_falls_to_nothing() -> None:
    shares = [share_of_rate(step, 40) for step in range(40)]
    assert shares[0] == pytest.approx(0.2) and shares[4] == pytest.approx(0.9)
    assert max(shares) == shares[4]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[-1] == pytest.approx(1 / 40)


def test_a_share_of_the_rate_is_taken() -> None:
    """Adam's steps are as long as its rate, whatever the gradient."""
    weight, moves = torch.zeros(WORDS, requires_grad=True), []

    def logits(ids_NT: Tensor) -> Tensor:
        moves.append(float(weight.detach().abs().max()))
        return functional.one_hot(ids_NT, WORDS) + weight

    manner = replace(MANNER, steps=3)
    shares = [1.0, 0.0, 0.5]
    arguments = (logits, _batches(), manner, lambda _: None, shares.__getitem__)
    descend([weight], lambda _: nullcontext(), *arguments)
    assert moves[1] == pytest.approx(0.0) and moves[3] == pytest.approx(0.05, rel=1e-3)
    assert moves[5] == moves[3]  # its share was 0
    assert float(weight.detach().abs().max()) > moves[5]


def test_what_is_not_finite_ends_it() -> None:
    model = Twins().requires_grad_(False)
    first = replace(model.stand_in(), map_PS=torch.full((WORDS, WORDS), torch.nan))
    with pytest.raises(InputError, match="step 1 has a loss or gradients") as raised:
        _learn(model, first)
    assert raised.value.where == "compensate.learning"
