"""A checkpoint, loaded for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from pipeline.architectures.registry import BUFFERS
from pipeline.cache import digest_of_file
from pipeline.errors import InputError
from pipeline.export.ragged import model_class
from pipeline.sources import remote_code
from pipeline.sources.explained import explained

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


@dataclass(frozen=True)
class Terms:
    """On what terms a recipe's models are loaded.

    Attributes:
        code: folder of the base, if the recipe allows the code in it to be run.
        memory: bytes of weights by device ("cpu", or an accelerator's number); what is more is
            read from the disk when it is needed. None: all of it is held.
        offload: folder for what cannot be read where it is stored.
    """

    code: Path | None = None
    memory: Mapping[str | int, int] | None = None
    offload: Path | None = None


PLAIN = Terms()


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def key_of_model(
    folder: Path, weights_sha256: str, dtype: str, device: str, terms: Terms = PLAIN
) -> dict[str, Any]:
    """Everything of a model and of this machine that decides what it answers, as a cache key."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return {
        **code_key(terms),
        "weights_sha256": weights_sha256,
        "model_files": {path.name: digest_of_file(path) for path in files if path.is_file()},
        "dtype": dtype,
        "device": torch.device(device).type,
        "versions": {name: version(name) for name in ("transformers", "torch")},
    }


def code_key(terms: Terms) -> dict[str, Any]:
    """The part of a cache key that says which code of a base is run."""
    if terms.code is None:
        return {}
    names = remote_code.code_files(terms.code)
    return {"code": {name: digest_of_file(terms.code / name) for name in names}}


def load_tokenizer(folder: Path, terms: Terms = PLAIN) -> Any:
    """Load a checkpoint's tokenizer.

    If the base's own code may be run, it is the base's: that of a checkpoint cut from it is the
    same to the byte, and its copy of the code is never run.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        with explained("tokenizer", folder):
            return AutoTokenizer.from_pretrained(
                terms.code or folder,
                local_files_only=True,
                trust_remote_code=terms.code is not None,
            )
    except InputError as error:
        if terms.code is None and remote_code.tokenizer_code(folder):
            raise remote_code.not_run("tokenizer", str(folder)) from error
        raise


def loader(folder: Path, terms: Terms) -> tuple[Any, dict[str, Any]]:
    """The class that loads a checkpoint, and what its `from_pretrained` must be told.

    Raises:
        InputError: the config cannot be read.
    """
    settings: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    if terms.memory is not None:
        settings |= {
            "device_map": "auto",
            "max_memory": dict(terms.memory),
            "offload_folder": terms.offload,
        }
    if terms.code is None:
        return model_class(folder), {**settings, "trust_remote_code": False}
    config = remote_code.load_config(folder, terms.code)
    return remote_code.model_class(terms.code), {**settings, "config": config}


def load(folder: Path, dtype: str, device: str | None, terms: Terms = PLAIN) -> tuple[Any, Any]:
    """Load model and tokenizer of a checkpoint; code that comes with it is never run.

    Raises:
        InputError: one of them cannot be loaded.
    """
    tokenizer = load_tokenizer(folder, terms)
    model = load_model(folder, dtype, terms)
    if terms.memory is None:
        model = model.to(device or default_device())
    return model, tokenizer


def load_model(folder: Path, dtype: str, terms: Terms = PLAIN, **placement: Any) -> Any:
    """Load a checkpoint's model for inference; code that comes with it is never run.

    Args:
        folder: the checkpoint.
        dtype: type of its weights, such as "bfloat16".
        terms: on what terms it is loaded.
        placement: where its weights go, as `from_pretrained` takes it, if the terms do not say it.

    Raises:
        InputError: it cannot be loaded, or its weights are not those of its config.
    """
    with explained("model", folder):
        kind, settings = loader(folder, terms)
        wanted = placement | settings | {"dtype": getattr(torch, dtype)}
        model, info = kind.from_pretrained(folder, **wanted)
    check_all_found(info, folder)
    return model.eval()


def check_all_found(info: Mapping[str, Any], folder: Path) -> None:
    """Check that a model has all that is stored, and that all of it is stored.

    Args:
        info: what transformers says of the loading.
        folder: the checkpoint, for the error.

    Raises:
        InputError: a tensor is missing, or has no place in the model.
    """
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise InputError(
            f"the checkpoint lacks weights: {', '.join(sorted(info['missing_keys'])[:5])}",
            where=str(folder),
            remedy="download or copy the model again",
        )
    # transformers would compute without them, and not say so; buffers follow from the config.
    if homeless := sorted(name for name in info["unexpected_keys"] if not name.endswith(BUFFERS)):
        raise InputError(
            "the model that its config describes has no place for stored weights: "
            f"{', '.join(homeless[:5])}",
            where=str(folder),
            remedy="download or copy the model again: config.json and weights are of two models",
        )
