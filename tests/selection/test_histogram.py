"""The distribution of scores."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.selection.histogram import BINS, histogram

LAYERS, UNITS = 3, 500


def scores_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores_LU = torch.randn(LAYERS, UNITS, generator=generator, dtype=torch.float64) ** 3
    return scores_LU, scores_LU > 1


def test_every_unit_is_in_one_bin_between_its_edges() -> None:
    scores_LU, removed_LU = scores_and_mask()
    found = histogram(scores_LU, removed_LU)
    assert found is not None
    edges = found["edges"]
    assert edges == sorted(set(edges)) and len(edges) == BINS + 1
    for layer in range(LAYERS):
        for name, mask in (("kept", ~removed_LU[layer]), ("removed", removed_LU[layer])):
            counts, own = found[name][layer], scores_LU[layer][mask]
            assert sum(counts) == len(own)
            for number, count in enumerate(counts):
                low = -math.inf if number == 0 else edges[number]
                high = math.inf if number == BINS - 1 else edges[number + 1]
                assert count == int(((own >= low) & (own < high)).sum())


def test_a_few_far_units_do_not_crowd_the_others_into_one_bin() -> None:
    generator = torch.Generator().manual_seed(0)
    scores_LU = torch.randn(LAYERS, UNITS, generator=generator, dtype=torch.float64)
    scores_LU[0, 0] = 1e6
    found = histogram(scores_LU, scores_LU > 1)
    assert found is not None
    assert max(sum(column) for column in zip(*found["kept"], strict=True)) < LAYERS * UNITS / 3


def test_units_without_a_score_are_left_out() -> None:
    scores_LU, removed_LU = scores_and_mask()
    scores_LU[1] = torch.inf
    found = histogram(scores_LU, removed_LU)
    assert found is not None
    assert sum(found["kept"][1]) == sum(found["removed"][1]) == 0
    assert histogram(torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)) is None


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12])
def test_equal_scores_have_a_bin_too(value: float) -> None:
    found = histogram(torch.full((2, 4), value).double(), torch.zeros(2, 4, dtype=torch.bool))
    assert found is not None
    assert [sum(row) for row in found["kept"]] == [4, 4]
    assert found["edges"] == sorted(set(found["edges"]))
