"""Low-rank adapters (LoRA, arXiv 2106.09685), by peft, which the extra `relearn` installs."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from pipeline.errors import check_package

PACKAGE = "peft"
RANK = 16
SCALE = 32  # lora_alpha: what an adapter adds counts twice


def check_adapters() -> None:
    """Refuse `--lora` without the package that makes adapters.

    Raises:
        InputError: it is not installed.
    """
    check_package(PACKAGE, "makes low-rank adapters", extra="relearn", where="--lora")


def add_adapters(model: nn.Module, seed: int) -> None:
    """Put an adapter beside each linear layer but the output's, and let only them be trained."""
    import peft

    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=RANK, lora_alpha=SCALE, target_modules="all-linear")
    with warnings.catch_warnings():  # it says what it finds out by itself
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(settings, model)
