"""What the libraries raise on a broken model folder, as an error for the reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.errors import InputError, UnlearnError


@contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Turn what the libraries raise on a broken folder into an error for the reader.

    Args:
        what: what is loaded inside the block: "model", "tokenizer", "config".
        folder: where from.

    Raises:
        InputError: the block failed, for any reason but a lack of memory.
    """
    try:
        yield
    except (UnlearnError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a broken file each library makes its own, down to Exception
        lines = (str(error).strip() or type(error).__name__).splitlines()
        reason = " ".join(line.strip() for line in lines[:2])
        if "ignore_mismatched_sizes" in reason:  # transformers' advice on it is for its callers
            reason = "its weights have other shapes than config.json says"
        raise InputError(
            f"the {what} cannot be loaded: {reason}",
            where=str(folder),
            remedy="check that the folder is a whole Hugging Face checkpoint (config.json, "
            "safetensors, tokenizer files)",
        ) from error
