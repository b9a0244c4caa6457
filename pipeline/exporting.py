"""Export: a checkpoint as one GGUF file, which real llama.cpp can be asked to agree with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from pipeline.architectures.registry import as_stored, describe
from pipeline.cache import digest_of_file
from pipeline.errors import InputError
from pipeline.evaluation.loading import load_tokenizer
from pipeline.export.gguf.checkpoint import Checkpoint
from pipeline.export.gguf.file import WeightType, write_gguf
from pipeline.export.gguf.limits import family_of
from pipeline.export.gguf.llama_cpp import Agreement, compare_with_llama_cpp
from pipeline.export.gguf.tokenizer import (
    loadable_name,
    space_before,
    space_between,
    tokenizer_notes,
)
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest import read_manifest
from pipeline.export.ragged import check_attributes, is_ragged, sizes_by_layer, stock_config
from pipeline.progress import Progress
from pipeline.sources.model_folder import check_folder, read_config
from pipeline.sources.models import ResolvedModel
from pipeline.sources.quantised_models import check_quantisation
from pipeline.sources.releases import fetch_release, short_name
from pipeline.sources.remote_code import check_code
from pipeline.stages.base import (
    check_loads,
    check_ragged_loads,
    check_sizes,
    load_model,
    open_base,
)
from pipeline.surgery.safetensors_stream import stored_tensors

TOKENS = 20  # that both continue each prompt by
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in 1984,",
    "To bake bread, you need",
    "def add(a, b):\n    ",
)
# Cut into tokens only: what tokenizers treat in different ways.
ODD = "It's  the   1st of 1234567:\n\n\t\"naïve\" café, WE'LL see 日本語 🙂 ½²\r\n  end "


def export_gguf(
    reference: str,
    wanted: str,
    out: Path | None,
    pre_tokenizer: str | None,
    compare: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Write a checkpoint as GGUF; JSON-able result.

    Args:
        reference: folder or Hub id of a checkpoint: a release, or any other.
        wanted: type of the matrices.
        out: the file; default: beside the checkpoint's folder, named after it and the type.
        pre_tokenizer: llama.cpp's name of the tokenizer's first step, if it is not recognised.
        compare: run the file in llama.cpp and compare it with the checkpoint.
        progress: where to report.

    Raises:
        InputError: there is no such checkpoint, or llama.cpp has no such model.
        BrokenError: the disk has no room, or llama.cpp cannot run the file.
    """
    weight_type = _known(wanted)
    with progress.stage("Checkpoint"):
        folder = fetch_release(reference, progress)
        manifest = read_manifest(folder)
        if manifest is not None and (code := manifest["base"]["origin"].get("remote_code")):
            raise InputError(
                f"this release is computed by code of its base ({code}), which llama.cpp does not "
                "have",
                where=reference,
                remedy="load it with transformers and trust_remote_code",
            )
        checkpoint = _opened(folder, reference)
    name = short_name(reference)
    path = out or Path(f"{name}-{weight_type}.gguf")
    if out is None and Path(reference).is_dir():
        path = folder.resolve().with_name(path.name)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError("this is no place for a file", where=str(path), remedy="name a .gguf file")
    total = sum(tensor.size for tensor in checkpoint.tensors)
    with progress.stage("GGUF"), progress.bar("writing", total, "bytes") as advance:
        about = _about(folder, name)
        about["general.name"] = loadable_name(about["general.name"], checkpoint.tokenizer)
        kept = write_gguf(path, checkpoint, weight_type, about, pre_tokenizer, advance)
    agreement = None
    if compare:
        with progress.stage("llama.cpp"):
            agreement = _compared(path, checkpoint)
    return {
        "checkpoint": str(folder),
        "file": str(path),
        "type": weight_type,
        "bytes": path.stat().st_size,
        "sha256": digest_of_file(path),
        "tensors_in_f16": kept,
        "notes": tokenizer_notes(checkpoint.tokenizer, folder, about["general.name"]),
        "llama_cpp": asdict(agreement) if agreement else None,
        "agrees": agreement.holds(weight_type) if agreement else None,
    }


def _known(wanted: str) -> WeightType:
    for name in get_args(WeightType):
        if name == wanted.upper():
            return cast(WeightType, name)
    raise InputError(
        f"{wanted!r} is no type that can be written",
        where="--type",
        remedy=f"choose {', '.join(get_args(WeightType))}; llama-quantize makes the others of an "
        "F16 file",
    )


def _about(folder: Path, name: str) -> dict[str, str]:
    """Where the file comes from, as keys of its metadata."""
    manifest = read_manifest(folder)
    if manifest is None:
        return {"general.name": name}
    about = {
        "general.name": f"{manifest['base']['name']}, {manifest['name']}",
        "general.description": manifest["description"],
        "unlearn.manifest_sha256": digest_of_file(folder / MANIFEST),
        "unlearn.verdict": manifest["verdict"],
    }
    if manifest["base"]["licence"]:
        about["general.license"] = manifest["base"]["licence"]
    return about


def _opened(folder: Path, reference: str) -> Checkpoint:
    """Describe a checkpoint; what `inspect` refuses is refused here too."""
    check_code(folder, reference, allowed=False)
    check_quantisation(read_config(folder, reference), reference, allowed=False)
    check_folder(folder, reference)
    if is_ragged(folder):
        return _opened_ragged(folder, reference)
    base = open_base(ResolvedModel(folder, reference, {}, "", None))
    check_loads(base)
    layers = (base.dimensions,) * base.dimensions.layers
    tensors = list(base.tensors.values())
    return Checkpoint(folder, base.config, base.architecture, layers, tensors, base.tokenizer)


def _opened_ragged(folder: Path, reference: str) -> Checkpoint:
    config, stored = stock_config(folder), stored_tensors(folder)
    tensors = {tensor.name: tensor for tensor in stored}
    architecture = as_stored(describe(config, reference), tensors)
    layers = sizes_by_layer(folder, config, architecture)
    checkpoint = Checkpoint(folder, config, architecture, layers, stored, load_tokenizer(folder))
    family_of(checkpoint)  # of a family that may not be ragged the sizes say nothing
    check_sizes(architecture, layers, tensors, reference)
    check_ragged_loads(folder, tensors)
    check_attributes(folder, config, architecture, layers)
    return checkpoint


def _compared(path: Path, checkpoint: Checkpoint) -> Agreement:
    model, tokenizer = load_model(checkpoint.folder, "float32"), checkpoint.tokenizer
    added = [*map(str, tokenizer.added_tokens_decoder.values())]
    odd, between = [ODD, PROMPTS[0] + "".join(added)], ["it"]
    if not space_before(tokenizer):
        odd.append(f" {PROMPTS[1]}")
        between += ["\n", " "]
    if not space_between(tokenizer):
        odd += [text.join(["the", *added, "end"]) for text in between]
    return compare_with_llama_cpp(path, model, tokenizer, PROMPTS, TOKENS, odd)
