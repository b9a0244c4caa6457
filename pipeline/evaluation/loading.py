"""A checkpoint, loaded for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from pipeline.cache import digest_of_file
from pipeline.errors import InputError, UnlearnError
from pipeline.export.ragged import model_class

# The files beside the weights that decide what a model reads and answers.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def key_of_model(folder: Path, weights_sha256: str, dtype: str, device: str) -> dict[str, Any]:
    """Everything of a model and of this machine that decides what it answers, as a cache key."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return {
        "weights_sha256": weights_sha256,
        "model_files": {path.name: digest_of_file(path) for path in files if path.is_file()},
        "dtype": dtype,
        "device": torch.device(device).type,
        "versions": {name: version(name) for name in ("transformers", "torch")},
    }


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint's tokenizer.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    with explained("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load(folder: Path, dtype: str, device: str | None) -> tuple[Any, Any]:
    """Load model and tokenizer of a checkpoint, without running code that comes with it.

    Raises:
        InputError: one of them cannot be loaded.
    """
    tokenizer = load_tokenizer(folder)
    model: Any
    with explained("model", folder):
        loaded: Any = model_class(folder).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers would fill them at random
            raise ValueError(f"{len(missing)} of its tensors are not stored, such as {missing[0]}")
    return model.to(device or default_device()).eval(), tokenizer


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
