from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.overall import keep_lowest_overall, keep_multiples_overall


def test_the_worst_of_all_layers_go() -> None:
    scores_LU = torch.tensor([[0.0, 9, 8, 7, 1, 2, 3, 4], [0.0, 0, 0, 0, 0, 0, 0, 5]])
    nobody = torch.zeros_like(scores_LU, dtype=torch.bool)
    assert keep_lowest_overall(scores_LU, 0.25, 1, nobody) == [
        [0, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    protected_LU = nobody.clone()
    protected_LU[0, 1] = True
    kept = keep_lowest_overall(scores_LU, 0.25, 1, protected_LU)
    assert kept == [[0, 1, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]  # its next worst is layer 1's last


def test_the_widest_layer_keeps_a_multiple() -> None:
    scores_LU = torch.arange(32.0).view(2, 16)
    nobody = torch.zeros_like(scores_LU, dtype=torch.bool)
    kept = keep_lowest_overall(scores_LU, 0.6, 4, nobody)
    assert [len(row) for row in kept] == [12, 4]  # 9 of the first would be kept; 4 is the least
    assert kept[0] == list(range(12))
    kept = keep_lowest_overall(scores_LU.flip(0), 0.4, 4, nobody)
    assert [len(row) for row in kept] == [4, 16]


@given(
    seed=st.integers(0, 99),
    fraction=st.integers(0, 95),
    multiple=st.integers(1, 9),
    layers=st.integers(1, 5),
)
def test_shapes_are_always_legal(seed: int, fraction: int, multiple: int, layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_LU = torch.rand(layers, 24, generator=generator)
    protected_LU = torch.rand(layers, 24, generator=generator) > 0.8
    kept = keep_lowest_overall(scores_LU, fraction / 100, multiple, protected_LU)
    widest = max(len(row) for row in kept)
    assert widest % multiple == 0 or widest == 24
    for layer, row in enumerate(kept):
        assert row == sorted(set(row)) and len(row) >= min(multiple, 24)
        assert set(protected_LU[layer].nonzero().flatten().tolist()) <= set(row)
    assert sum(24 - len(row) for row in kept) <= layers * 24 * fraction / 100


def test_every_layer_keeps_a_multiple_of_its_own() -> None:
    scores_LU = torch.arange(48.0).view(3, 16)
    nobody = torch.zeros_like(scores_LU, dtype=torch.bool)
    kept = keep_multiples_overall(scores_LU, 0.4, 4, nobody)  # 19 of 48: 15 and 4
    assert [len(row) for row in kept] == [16, 12, 4]
    assert kept[1] == list(range(12))


@given(
    seed=st.integers(0, 99),
    fraction=st.integers(0, 95),
    multiple=st.integers(1, 9),
    layers=st.integers(1, 5),
)
def test_ragged_shapes_are_always_legal(
    seed: int, fraction: int, multiple: int, layers: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_LU = torch.rand(layers, 24, generator=generator)
    protected_LU = torch.rand(layers, 24, generator=generator) > 0.8
    exact = keep_lowest_overall(scores_LU, fraction / 100, 1, protected_LU)
    for layer, row in enumerate(
        keep_multiples_overall(scores_LU, fraction / 100, multiple, protected_LU)
    ):
        assert row == sorted(set(row))
        assert len(row) == 24 or (len(row) % multiple == 0 and row)
        protected = set(protected_LU[layer].nonzero().flatten().tolist())
        assert protected <= set(row)
        near = abs(len(row) - len(exact[layer])) < multiple
        assert near or len(row) - multiple < max(len(protected), multiple)
        kept_scores = scores_LU[layer][sorted(set(row) - protected)]
        gone = scores_LU[layer][sorted(set(range(24)) - set(row))]
        assert not len(gone) or not len(kept_scores) or kept_scores.max() <= gone.min()
