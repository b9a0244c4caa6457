"""GGUF files: what their metadata says, and their conversion to a Hugging Face folder."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.cache import read_json, write_json
from pipeline.errors import InputError

SIGNED = "5.0.0"  # the oldest version of the library on which this program runs
FORMAT_VERSION = 2  # part of the cache key: raise it when the converted folder changes
LIBRARY_VERSION = version("gguf")

# Pre-tokenisers (`tokenizer.ggml.pre`) that split off every digit before anything else.
# transformers builds GPT-2's for all of them, which cuts the white space before numbers elsewhere.
SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# What the reader of a damaged file raises: it indexes, decodes and reshapes what it finds.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself without its tensors being read."""

    architecture: str
    licence: str | None
    pre_tokenizer: str
    config: dict[str, Any]


def read_header(path: Path) -> GgufHeader:
    """Read the metadata of a GGUF file and check that every tensor lies inside the file.

    Raises:
        InputError: the file is not GGUF, is cut short or is one of several parts.
    """
    if not path.is_file():
        raise InputError("there is no such GGUF file", where=str(path))
    try:
        reader = gguf.GGUFReader(path)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if field.types and field.types[0] is not gguf.GGUFValueType.ARRAY
        }
        reach = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
    except DAMAGE as error:
        raise _damaged(path, str(error)) from error
    if not reader.tensors:
        raise _damaged(path, "it holds no tensors")
    if reach > path.stat().st_size:
        raise _damaged(path, "it is cut short")
    if int(metadata.get("split.count", 1)) > 1:
        raise InputError(
            "this GGUF is one of several parts",
            where=str(path),
            remedy="merge the parts into one file (llama-gguf-split --merge)",
        )
    architecture = str(metadata.get("general.architecture", "unknown"))
    prefix = f"{architecture}."
    return GgufHeader(
        architecture=architecture,
        licence=metadata.get("general.license"),
        pre_tokenizer=str(metadata.get("tokenizer.ggml.pre", "")),
        config=_as_config(
            {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)},
            tied=all(tensor.name != "output.weight" for tensor in reader.tensors),
            architecture=architecture,
        ),
    )


def convert(path: Path, dtype: str, folder: Path) -> GgufHeader:
    """Dequantise a GGUF file into a plain Hugging Face model folder.

    Args:
        path: the GGUF file.
        dtype: type of the stored weights, such as "bfloat16".
        folder: existing folder that receives config, safetensors, tokenizer and chat template.

    Returns:
        What the file says about itself.

    Raises:
        InputError: the file is damaged, or of an architecture that transformers cannot read.
    """
    header = read_header(path)
    with _quiet():
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, trust_remote_code=False
            )
        except DAMAGE as error:
            raise InputError(
                f"this GGUF cannot be converted: {_first_line(error)}",
                where=str(path),
                remedy="use a file of an architecture that transformers can read from GGUF, or "
                "the original model as a Hub id or local folder",
            ) from error
        _check_finite(loaded, path)
        _as_stock_model(loaded, getattr(torch, dtype)).save_pretrained(folder)
        if header.pre_tokenizer in SINGLE_DIGITS:
            _split_digits(tokenizer)
        tokenizer.model_max_length = loaded.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    _tidy(folder)
    return header


def _as_stock_model(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights in a model that does not know of GGUF, which refuses to be saved."""
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path
    config.dtype = dtype
    with torch.device("meta"):
        stock = type(loaded)(config)
    weights = {name: tensor.to(dtype) for name, tensor in loaded.state_dict().items()}
    stock.load_state_dict(weights, assign=True)
    stock.tie_weights()
    if loaded.generation_config is not None:
        stock.generation_config = loaded.generation_config
    return stock


def _split_digits(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _tidy(folder: Path) -> None:
    """Make the tokenizer loadable by other versions of the library, and the files readable."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only", "backend"):
        settings.pop(key, None)
    write_json(path, settings)
    for name in ("config.json", "generation_config.json"):
        content = {k: v for k, v in read_json(folder / name).items() if k[0] != "_"}
        if "transformers_version" in content:  # whichever converts it, the folder is the same
            content["transformers_version"] = SIGNED
        write_json(folder / name, content)
    for file in folder.iterdir():
        file.chmod(0o644)


def _check_finite(model: PreTrainedModel, path: Path) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise _damaged(path, f"tensor {name} holds values that are not finite")


def _as_config(keys: dict[str, Any], *, tied: bool, architecture: str) -> dict[str, Any]:
    """The sizes that matter before conversion, under the names that config.json uses."""
    names = {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
    }
    config = {ours: keys[theirs] for theirs, ours in names.items() if theirs in keys}
    return {"model_type": architecture, **config, "tie_word_embeddings": tied}


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"this GGUF file is damaged: {why}",
        where=str(path),
        remedy="download or install it again",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own bars and warnings off the screen; the stage reports instead."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):  # its bars cannot all be switched off
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
