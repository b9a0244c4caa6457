"""What a model writes, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from pipeline.cache import Cache, read_json, write_json
from pipeline.evaluation.loading import PLAIN, Terms, default_device, key_of_model, load
from pipeline.evaluation.quiet import quiet
from pipeline.placement import input_device

FORMAT = 1  # raise when completions of the same key would differ
MAX_NEW_TOKENS = 64


def complete(
    model_folder: Path,
    weights_sha256: str,
    prompts: Sequence[str],
    dtype: str,
    cache: Cache,
    terms: Terms = PLAIN,
) -> list[str]:
    """Complete prompts as `generate` does; what was completed before comes from the cache."""
    key = {
        **key_of_model(model_folder, weights_sha256, dtype, default_device(), terms),
        "prompts": list(prompts),
        "max_new_tokens": MAX_NEW_TOKENS,
        "format": FORMAT,
    }
    folder = cache.get(
        "completions",
        key,
        lambda new: write_json(
            new / "completions.json", generate(model_folder, prompts, dtype, terms=terms)
        ),
    )
    return [str(text) for text in read_json(folder / "completions.json")]


def generate(
    model_folder: Path,
    prompts: Sequence[str],
    dtype: str,
    max_new_tokens: int = MAX_NEW_TOKENS,
    device: str | None = None,
    terms: Terms = PLAIN,
) -> list[str]:
    """Complete plain prompts greedily; the completions come without their prompts."""
    if not prompts:
        return []
    completions = []
    with quiet(), torch.inference_mode():
        model, tokenizer = load(model_folder, dtype, device, terms)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        model.generation_config = settings  # the folder's own may ask for sampling
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt").to(input_device(model))
            length = inputs["input_ids"].shape[1]
            output = model.generate(**inputs, generation_config=settings)
            completions.append(tokenizer.decode(output[0, length:], skip_special_tokens=True))
    return completions
