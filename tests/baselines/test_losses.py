"""The other ways to unlearn: their losses against hand computation, and what they change."""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import Any

import pytest
import torch
from tiny_models import load
from torch import Tensor

from pipeline.baselines.npo import log_probability, npo_loss
from pipeline.baselines.objective import Subject
from pipeline.baselines.rmu import steered_layer
from pipeline.baselines.ways import WAYS
from pipeline.evaluation.tuning import descend, language_loss
from pipeline.stages.base import Base


def subject_of(base: Base) -> Subject:
    return Subject(load(base.model.path, torch.float32), base.architecture, seed=0)


def ids(seed: int) -> Tensor:
    return torch.randint(1, 20, (4, 12), generator=torch.Generator().manual_seed(seed))


def run(subject: Subject, name: str, steps: int, rate: float, strength: float = 1.0) -> None:
    objective = WAYS[name].prepare(subject, strength)
    taken = descend(objective.parameters, lambda: objective.loss(ids(1), ids(2)), rate)
    list(islice(taken, steps))


@pytest.fixture
def subject(tiny_base: Any) -> Subject:
    return subject_of(tiny_base("llama"))


@pytest.mark.parametrize("name", ["ga", "gd", "npo"])
def test_the_loss_of_forget_text_rises(subject: Subject, name: str) -> None:
    before = language_loss(subject.model, ids(1)).item()
    run(subject, name, 8, 1e-3)
    assert language_loss(subject.model, ids(1)).item() > before + 0.1


@pytest.mark.parametrize("name", ["gd", "npo"])
def test_that_of_retain_text_rises_less_than_by_ascent(tiny_base: Any, name: str) -> None:
    after = {}
    for each in ("ga", name):
        subject = subject_of(tiny_base("llama"))
        run(subject, each, 8, 1e-3)
        after[each] = language_loss(subject.model, ids(2)).item()
    assert after[name] < after["ga"]


def test_gradient_ascent_is_minus_the_loss_and_difference_adds_retain(subject: Subject) -> None:
    forget, retain = (language_loss(subject.model, ids(seed)).item() for seed in (1, 2))
    ascent = WAYS["ga"].prepare(subject, 1.0).loss(ids(1), ids(2))
    difference = WAYS["gd"].prepare(subject, 3.0).loss(ids(1), ids(2))
    assert ascent.item() == pytest.approx(-forget)
    assert difference.item() == pytest.approx(3 * retain - forget, rel=1e-5)


def test_npo_against_the_formula_of_the_paper() -> None:
    now, before = torch.tensor([-10.0, -30.0]), torch.tensor([-12.0, -25.0])
    beta = 0.5
    ratios = [math.exp(2.0), math.exp(-5.0)]  # π / π_ref
    expected = sum(2 / beta * math.log(1 + ratio**beta) for ratio in ratios) / 2
    assert npo_loss(now, before, beta).item() == pytest.approx(expected, rel=1e-5)


def test_npo_begins_at_its_reference_with_half_the_gradient_of_ascent(subject: Subject) -> None:
    """At π = π_ref the loss is 2/β · log 2, and its gradient that of log π."""
    loss = WAYS["npo"].prepare(subject, 0.0).loss(ids(1), ids(2))
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-5)
    weight = subject.model.lm_head.weight
    (found,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(log_probability(subject.model, ids(1)).mean(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_rows_log_probability_is_its_loss(subject: Subject) -> None:
    total = log_probability(subject.model, ids(1))
    assert total.shape == (4,)
    assert total.sum().item() == pytest.approx(
        -language_loss(subject.model, ids(1)).item() * 4 * 11, rel=1e-4
    )


def test_rmu_changes_the_output_projections_of_its_layers_alone(tiny_base: Any) -> None:
    subject = subject_of(tiny_base("llama", num_hidden_layers=8))
    before = copy.deepcopy(subject.model.state_dict())
    layer = steered_layer(8)
    assert layer == 2
    run(subject, "rmu", 3, 1e-3, strength=5.0)
    changed = {
        name
        for name, tensor in subject.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {f"model.layers.{each}.mlp.down_proj.weight" for each in (0, 1, 2)}


def test_rmu_leads_forget_text_to_its_goal_and_holds_retain_text(tiny_base: Any) -> None:
    subject = subject_of(tiny_base("llama"))
    reference = copy.deepcopy(subject.model)
    run(subject, "rmu", 60, 3e-3, strength=5.0)
    layer = steered_layer(3)
    moved = []
    for seed in (1, 2):
        hidden = [
            model.get_decoder()(ids(seed), output_hidden_states=True).hidden_states[layer + 1]
            for model in (subject.model, reference)
        ]
        moved.append((hidden[0] - hidden[1]).norm().item())
    assert moved[0] > 1.5 * moved[1]
