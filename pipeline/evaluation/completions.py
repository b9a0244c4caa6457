"""What a model writes, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from pipeline.evaluation.loading import load
from pipeline.evaluation.quiet import quiet


def generate(
    model_folder: Path,
    prompts: Sequence[str],
    dtype: str,
    max_new_tokens: int = 64,
    device: str | None = None,
) -> list[str]:
    """Complete plain prompts greedily; the completions come without their prompts."""
    if not prompts:
        return []
    completions = []
    with quiet(), torch.inference_mode():
        model, tokenizer = load(model_folder, dtype, device)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        model.generation_config = settings  # the folder's own may ask for sampling
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
            length = inputs["input_ids"].shape[1]
            output = model.generate(**inputs, generation_config=settings)
            completions.append(tokenizer.decode(output[0, length:], skip_special_tokens=True))
    return completions
