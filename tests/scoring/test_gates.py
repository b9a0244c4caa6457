"""Gates that are learned: on a network of which it is known what each neuron serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.scoring.gates import Goal, first_gates, gated, learn_gates
from pipeline.scoring.learning import Manner

WORDS = 8  # of which the first half is forget text, and the other half retain text
GOAL = Goal(share=0.5, by_layer=True)
MANNER = Manner(steps=40, learning_rate=0.3, retain_weight=4.0, where="select.ffn.gates")


class Counting(nn.Module):
    """Says the next word of the same half; neuron w fires on word w, in two layers that agree."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WORDS, WORDS, bias=False) for _ in range(2))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            layer.weight.data = 4.0 * functional.one_hot(_after(torch.arange(WORDS))).float().T

    def logits(self, ids_NT: Tensor) -> Tensor:
        x_NTW = functional.one_hot(ids_NT, WORDS).float()
        return torch.stack([layer(x_NTW) for layer in self.layers]).sum(dim=0)


def _after(words: Tensor) -> Tensor:
    half = WORDS // 2
    return (words + 1) % half + words // half * half


def _counted(start: int, length: int = 12) -> Tensor:
    words = [torch.tensor(start)]
    for _ in range(length - 1):
        words.append(_after(words[-1]))
    return torch.stack(words)


def _batches() -> Iterator[tuple[Tensor, Tensor]]:
    forget, retain = (torch.stack([_counted(w) for w in half]) for half in ((0, 1), (4, 6)))
    return repeat((forget, retain))


def _learn(ranking_LU: Tensor, held_LU: Tensor, goal: Goal = GOAL) -> Tensor:
    model, steps = Counting().requires_grad_(False), []
    scores_LU = learn_gates(
        model.logits,
        list(model.layers),
        ranking_LU,
        held_LU,
        _batches(),
        goal,
        MANNER,
        steps.append,
    )
    assert steps == [1] * MANNER.steps
    return scores_LU


@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_what_serves_forget_text_alone_goes_first(by_layer: bool, seed: int) -> None:
    ranking_LU = torch.rand(2, WORDS, generator=torch.Generator().manual_seed(seed))
    none_LU = torch.zeros(2, WORDS, dtype=torch.bool)
    scores_LU = _learn(ranking_LU, none_LU, replace(GOAL, by_layer=by_layer))
    assert scores_LU.dtype == torch.float64
    for row in scores_LU:
        assert row[: WORDS // 2].min() > row[WORDS // 2 :].max()


def test_what_is_held_stays() -> None:
    held_LU = torch.zeros(2, WORDS, dtype=torch.bool)
    held_LU[:, 1] = True
    scores_LU = _learn(torch.ones(2, WORDS), held_LU, replace(GOAL, share=0.375))
    assert (scores_LU[:, 1] == -6.0).all()  # as it began
    forgotten = scores_LU[:, [0, 2, 3]]
    assert (forgotten.min(dim=1).values > scores_LU[:, [1, 4, 5, 6, 7]].max(dim=1).values).all()


@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize(
    ("share", "steps", "learning_rate"),
    [(0.125, 7, 0.3), (0.25, 7, 0.3), (0.6, 7, 0.3), (0.25, 300, 0.5), (0.25, 50, 10.0)],
)
def test_so_much_is_removed_at_every_step(
    by_layer: bool, share: float, steps: int, learning_rate: float
) -> None:
    model, shares = Counting().requires_grad_(False), []
    goal = Goal(share, by_layer)
    manner = replace(MANNER, learning_rate=learning_rate, steps=steps)
    ones_NTW = torch.ones(1, 1, WORDS)

    def logits(ids_NT: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # within the gates: what is left of each neuron's 1
            weights = [layer.weight for layer in model.layers]
            for layer in model.layers:
                layer.weight.data = torch.eye(WORDS)
            left_LU = torch.cat([layer(ones_NTW)[0] for layer in model.layers])
            shares.append(1 - left_LU.detach())
            for layer, weight in zip(model.layers, weights, strict=True):
                layer.weight = weight
        return model.logits(ids_NT)

    ranking_LU = torch.rand(2, WORDS, generator=torch.Generator().manual_seed(1))
    none_LU = torch.zeros(2, WORDS, dtype=torch.bool)
    learn_gates(
        logits, list(model.layers), ranking_LU, none_LU, _batches(), goal, manner, lambda _: None
    )
    assert len(shares) == steps
    for removed_LU in shares:
        parts = removed_LU.mean(dim=1) if by_layer else removed_LU.mean()[None]
        assert torch.allclose(parts, torch.full_like(parts, share), atol=1e-5)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model, steps = Counting().requires_grad_(False), []

    def logits(ids_NT: Tensor) -> Tensor:
        return model.logits(ids_NT) * (torch.inf if len(steps) == 2 else 1.0)

    none_LU = torch.zeros(2, WORDS, dtype=torch.bool)
    with pytest.raises(InputError, match="step 3 has a loss or gradients that are not finite"):
        learn_gates(
            logits,
            list(model.layers),
            torch.ones(2, WORDS),
            none_LU,
            _batches(),
            GOAL,
            MANNER,
            steps.append,
        )


def test_gates_begin_with_the_ranking() -> None:
    ranking_LU = torch.tensor([[0.1, 5.0, 0.2, 0.3], [9.0, 8.0, 7.0, 6.0]])
    by_layer = first_gates(ranking_LU, replace(GOAL, share=0.25))
    assert by_layer.argmin(dim=1).tolist() == [1, 0]
    overall = first_gates(ranking_LU, replace(GOAL, share=0.25, by_layer=False))
    assert set(overall.flatten().argsort()[:2].tolist()) == {4, 5}
    assert torch.equal(first_gates(ranking_LU.exp(), GOAL), first_gates(ranking_LU, GOAL))


def test_a_gate_multiplies_what_its_module_is_given() -> None:
    modules = [nn.Identity(), nn.Identity()]
    gates_LU = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    x = torch.tensor([[2.0, 3.0, 4.0]])
    with gated(modules, gates_LU):
        assert modules[0](x).tolist() == [[0.0, 3.0, 2.0]]
        assert modules[1](x).tolist() == x.tolist()
    assert modules[0](x).tolist() == x.tolist()
