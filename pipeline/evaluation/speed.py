"""Speed of a checkpoint: tokens a second of bare forward passes."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pipeline.evaluation.loading import load
from pipeline.evaluation.quiet import quiet

SEQUENCES = 2
TOKENS = 512
ROUNDS = 3


def forward_rate(folder: Path, dtype: str) -> float:
    """Tokens a second of the fastest of a few forward passes, logits included.

    Call it for the models to be compared one right after the other: a machine that others use
    too is faster at one time than at another.
    """
    with quiet(), torch.inference_mode():
        model, _ = load(folder, dtype, None)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (SEQUENCES, TOKENS), generator=generator)
        ids = ids.to(model.device)
        best = float("inf")
        for _ in range(ROUNDS):
            started = time.perf_counter()
            float(model(input_ids=ids).logits[0, 0, 0])  # reading it waits for an accelerator
            best = min(best, time.perf_counter() - started)
    return ids.numel() / best
