"""Figures of what is learned again, and training itself, on numbers that can be checked by hand."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.evaluation.relearning import area_between, steps_to_regain
from pipeline.evaluation.tuning import Manner, batches, descend, rows_of


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ([0.8, 0.6, 0.2], 15.0),  # half of 0.8 is reached midway between the last two
        ([0.8, 0.4, 0.1], 10.0),
        ([0.8, 0.2, 0.1], 20 / 3),
        ([0.8, 0.7, 0.5], None),
        ([0.8, 0.9, 0.3], 10 + 50 / 6),
        ([0.0, 0.0, 0.0], None),
        ([-0.1, -0.2, -0.3], None),
    ],
)
def test_half_is_regained_between_the_measured_steps(
    drops: list[float], expected: float | None
) -> None:
    found = steps_to_regain([0, 10, 20], np.array(drops))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_area_is_the_mean_distance_whatever_the_steps() -> None:
    base = np.array([0.0, -0.1, -0.2])
    assert area_between([0, 10, 20], base, base) == 0
    assert area_between([0, 10, 20], base + 0.3, base) == pytest.approx(0.3)
    behind = np.array([0.4, -0.1, -0.2])
    assert area_between([0, 10, 40], behind, base) == pytest.approx(2 / 40)


def test_it_is_measured_at_first_every_so_often_and_at_last() -> None:
    assert Manner(10, 4, 1e-3).measured_at() == [0, 4, 8, 10]
    assert Manner(8, 4, 1e-3).measured_at() == [0, 4, 8]


def test_rows_are_as_many_tokens_from_all_over() -> None:
    ids = torch.arange(40 * 512).view(40, 512)
    rows = rows_of(ids, 1280, seed=0)
    assert rows.shape == (10, 128)
    assert len({int(row[0]) // 512 for row in rows}) > 5
    assert all((row.diff() == 1).all() for row in rows)
    assert torch.equal(rows, rows_of(ids, 1280, seed=0))
    assert not torch.equal(rows, rows_of(ids, 1280, seed=1))
    assert rows_of(ids[:, :32], 100, seed=0).shape == (3, 32)
    with pytest.raises(InputError, match="no scored forget text"):
        rows_of(ids[:0], 100, seed=0)


def test_every_row_comes_before_one_comes_again() -> None:
    rows = torch.arange(8)[:, None]
    seen = torch.cat(list(islice(batches(rows, seed=0), 4))).flatten().tolist()
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))


def test_a_loss_that_is_no_number_is_an_error() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match="the loss of step 1 is nan"):
        list(descend([weight], lambda: (weight * torch.nan).sum(), 0.1))
