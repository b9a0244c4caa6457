"""Speed of checkpoints, side by side: tokens a second of bare forward passes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.evaluation.loading import PLAIN, Terms, load
from pipeline.evaluation.quiet import quiet
from pipeline.placement import input_device

SEQUENCES = 2
TOKENS = 512
TURNS = 2
ROUNDS = 3  # of each turn


def forward_rates(
    folders: Mapping[str, Path], dtype: str, terms: Terms = PLAIN
) -> dict[str, float]:
    """Tokens a second of each model's fastest forward pass, logits included.

    The models take turns, so that a machine that others slow down slows all of them; one of them
    is loaded at a time.
    """
    best = dict.fromkeys(folders, float("inf"))
    for _ in range(TURNS):
        for name, folder in folders.items():
            best[name] = min(best[name], _fastest(folder, dtype, terms))
    return {name: SEQUENCES * TOKENS / seconds for name, seconds in best.items()}


@torch.inference_mode()
def _fastest(folder: Path, dtype: str, terms: Terms) -> float:
    """Seconds of the model's fastest forward pass, after one that warms up."""
    best = float("inf")
    with quiet():
        model, _ = load(folder, dtype, None, terms)
        generator = torch.Generator().manual_seed(0)
        for turn in range(1 + ROUNDS):
            shape = (SEQUENCES, TOKENS)
            ids = torch.randint(model.config.vocab_size, shape, generator=generator)
            started = time.perf_counter()
            logits_BTV = model(input_ids=ids.to(input_device(model))).logits
            float(logits_BTV[0, 0, 0])  # reading waits for an accelerator
            if turn:
                best = min(best, time.perf_counter() - started)
    return best
