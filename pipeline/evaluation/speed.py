"""Speed of checkpoints, side by side: tokens a second of bare forward passes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.evaluation.loading import load
from pipeline.evaluation.quiet import quiet

SEQUENCES = 2
TOKENS = 512
ROUNDS = 5


def forward_rates(folders: Mapping[str, Path], dtype: str) -> dict[str, float]:
    """Tokens a second of each model's fastest forward pass, logits included.

    The models take turns, so that a machine that others slow down slows all of them.
    """
    best = dict.fromkeys(folders, float("inf"))
    with quiet(), torch.inference_mode():
        models = {name: load(folder, dtype, None)[0] for name, folder in folders.items()}
        generator = torch.Generator().manual_seed(0)
        for turn in range(ROUNDS + 1):  # the first is a warm-up
            for name, model in models.items():
                vocabulary = model.config.vocab_size
                ids = torch.randint(vocabulary, (SEQUENCES, TOKENS), generator=generator)
                ids = ids.to(model.device)
                started = time.perf_counter()
                float(model(input_ids=ids).logits[0, 0, 0])  # reading waits for an accelerator
                if turn:
                    best[name] = min(best[name], time.perf_counter() - started)
    return {name: SEQUENCES * TOKENS / seconds for name, seconds in best.items()}
