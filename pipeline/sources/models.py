"""Turn the recipe's model into a local Hugging Face folder, and say where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers

from pipeline.cache import Cache, check_permission, digest_of_file, read_json, write_json
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import HubSource, Model, PackageSource, PathSource
from pipeline.sources import gguf_models
from pipeline.sources.hub_models import download, look_up
from pipeline.sources.licences import agreed, card_licence, spdx
from pipeline.sources.model_folder import (
    check_folder,
    check_settings,
    digest_of_weights,
    pickled_files,
    read_config,
    safetensors_files,
)
from pipeline.sources.packages import locate, version_of
from pipeline.sources.prepared import prepare, prepared
from pipeline.sources.quantised_models import check_quantisation, without_quantisation
from pipeline.sources.remote_code import check_code, code_error, code_files, needs_code

GGUF_METADATA = "gguf.json"  # beside a converted model: reading a GGUF's own takes seconds
REMEMBERED_BYTES = 1 << 26  # the digests of files larger than this are kept in the cache


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine, ready to be loaded.

    Args:
        path: folder with config.json, safetensors and tokenizer.
        name: what tables and the card call it.
        origin: where it came from, for the manifest.
        weights_sha256: digest of the names and contents of the safetensors files.
        licence: licence of the model, if it is known.
        code: what becomes of code that comes with the model: "" if there is none or it is not
            needed, "carried" if releases have a copy of it, "run" if it is run too.
    """

    path: Path
    name: str
    origin: dict[str, str]
    weights_sha256: str
    licence: str | None
    code: Literal["", "carried", "run"] = ""


@dataclass(frozen=True)
class ModelDescription:
    """What `resolve_model` would use, found out without downloading or converting.

    Args:
        name: what tables call it.
        kind: "hub", "folder", "gguf", "pickled", or how it is quantised.
        size_bytes: size of the weights as they are now, if it is known.
        ready: whether nothing has to be downloaded or converted.
        config: the model's config, or the part of it that is known.
        folder: where it is as a Hugging Face folder, if it is one already.
        runs_code: code that comes with it is run.
    """

    name: str
    kind: str
    size_bytes: int | None
    ready: bool
    config: dict[str, Any]
    folder: Path | None = None
    runs_code: bool = False


def resolve_model(model: Model, folder: Path, cache: Cache, progress: Progress) -> ResolvedModel:
    """Find, download or convert the recipe's model.

    Args:
        model: the recipe's `model`.
        folder: the recipe's folder, where relative paths start.
        cache: keeps converted GGUF files and digests.
        progress: told about downloads and conversions.

    Raises:
        InputError: it does not exist, is incomplete or is damaged.
        BrokenError: the Hub cannot be reached.
    """
    source = model.source
    if isinstance(source, HubSource):
        place, origin = download(source, progress, pickled=model.allow_pickle)
        where = f"model {source.hub}"
    else:
        place, origin = _locate(source, folder)
        where = str(place)

    def digest(file: Path) -> str:
        return _digest_of_file(file, cache)

    runs_code = False
    if place.is_file():
        origin |= {"kind": "gguf", "file_sha256": digest(place)}
        path = _converted(place, origin["file_sha256"], model.dtype, cache, progress)
    else:
        if runs_code := check_code(place, where, allowed=model.trust_remote_code):
            origin["remote_code"] = ", ".join(code_files(place))
        path, conversions = prepare(place, model, where, cache, progress, digest)
        origin |= conversions
    check_folder(path, where)
    licence = agreed(model.licence, _stated_licence(path), where)
    return ResolvedModel(
        path=path,
        name=_name(model, place if origin["kind"] == "folder" else None),
        origin=origin,
        weights_sha256=digest_of_weights(path, where, digest),
        licence=licence,
        code="run" if runs_code else "",
    )


def describe_model(model: Model, folder: Path, cache: Cache) -> ModelDescription:
    """Say what `resolve_model` would use, without downloading weights or converting.

    Raises:
        InputError: it does not exist, is incomplete or is damaged.
        BrokenError: the Hub cannot be reached.
    """
    source = model.source
    if isinstance(source, HubSource):
        found = look_up(source, pickled=model.allow_pickle)
        agreed(model.licence, found.licence, f"model {source.hub}")
        if needs_code(found.config) and not model.trust_remote_code:
            raise code_error(found.config, f"model {source.hub}")
        method = check_quantisation(found.config, f"model {source.hub}", allowed=model.dequantise)
        return ModelDescription(
            name=_name(model, None),
            kind=f"hub, {method}" if method else "hub",
            size_bytes=found.size_bytes,
            ready=found.at_hand and method is None,
            config=without_quantisation(found.config),
        )
    place, _ = _locate(source, folder)
    if place.is_file():
        key = _conversion_key(_digest_of_file(place, cache), model.dtype)
        converted = cache.find("base", key)
        header = gguf_models.read_header(place)
        agreed(model.licence, header.licence and spdx(header.licence), str(place))
        return ModelDescription(
            name=_name(model, None),
            kind="gguf",
            size_bytes=place.stat().st_size,
            ready=converted is not None,
            config=read_config(converted, str(converted)) if converted else header.config,
            folder=converted,
        )
    where = str(place)
    runs_code = check_code(place, where, allowed=model.trust_remote_code)
    found_folder, kind = prepared(
        place, model, where, cache, lambda file: _digest_of_file(file, cache)
    )
    config = without_quantisation(check_settings(place, where))
    if found_folder is not None:
        config = check_folder(found_folder, where)
    agreed(model.licence, card_licence(place), where)
    files = pickled_files(place, where) or safetensors_files(place, where)
    return ModelDescription(
        name=_name(model, place),
        kind=kind,
        size_bytes=sum(file.stat().st_size for file in files),
        ready=found_folder is not None,
        config=config,
        folder=found_folder,
        runs_code=runs_code,
    )


def describe_alone(
    source: HubSource | PathSource | PackageSource, cache: Cache
) -> ModelDescription:
    """Describe a model that no recipe names; no weight is read, so nothing has to be allowed.

    Raises:
        InputError: it does not exist, is incomplete or is damaged.
        BrokenError: the Hub cannot be reached.
    """
    model = Model(source=source, allow_pickle=True, dequantise=True)
    return describe_model(model, Path(), cache)


def _name(model: Model, folder: Path | None) -> str:
    if model.base_model:
        return model.base_model
    source = model.source
    if isinstance(source, HubSource):
        return source.hub
    if folder is not None:
        return folder.resolve().name
    return Path(source.path if isinstance(source, PathSource) else source.file).stem


def _locate(source: PathSource | PackageSource, folder: Path) -> tuple[Path, dict[str, str]]:
    """The model's folder or GGUF file, and what the manifest says about where it is."""
    if isinstance(source, PackageSource):
        files = locate(source.package, source.file)
        origin = {
            "kind": "folder",
            "package": source.package,
            "version": version_of(source.package),
            "file": source.file,
        }
        configs = [file for file in files if file.name == "config.json"]
        if len(configs) == 1:
            return configs[0].parent, origin
        if len(files) > 1:
            raise InputError(
                f"{len(files)} files match {source.file!r}; a model is one .gguf file or one "
                "config.json",
                where=f"package {source.package}",
            )
        place = files[0]
    else:
        place = folder / Path(source.path).expanduser()
        origin = {"kind": "folder", "path": source.path}
    check_permission(place)
    if not place.exists():
        raise InputError(
            "there is no such model folder or file",
            where=str(place),
            remedy="relative paths start at the recipe's folder, with --set at the working folder; "
            "for a model of the Hub use `hub`",
        )
    if place.is_file() and place.suffix.lower() != ".gguf":
        raise InputError(
            "a model is a folder or a .gguf file, and this is neither", where=str(place)
        )
    return place, origin


# ── GGUF ─────────────────────────────────────────────────────────────────────────────────────────


def _converted(path: Path, sha256: str, dtype: str, cache: Cache, progress: Progress) -> Path:
    def convert(new: Path) -> None:
        progress.say(f"Converting {path.name} to {dtype} safetensors (once; it is cached)")
        header = gguf_models.convert(path, dtype, new)
        write_json(new / GGUF_METADATA, {"file": path.name, "licence": header.licence})

    return cache.get("base", _conversion_key(sha256, dtype), convert)


def _conversion_key(sha256: str, dtype: str) -> dict[str, Any]:
    return {
        "file_sha256": sha256,
        "dtype": dtype,
        "transformers": transformers.__version__,
        "gguf": gguf_models.LIBRARY_VERSION,
        "format": gguf_models.FORMAT_VERSION,
    }


def _stated_licence(folder: Path) -> str | None:
    """Licence that a model states: that of the GGUF file which was converted, or of its card."""
    metadata = folder / GGUF_METADATA
    if not metadata.is_file():
        return card_licence(folder)
    licence = read_json(metadata)["licence"]
    return spdx(licence) if licence else None


# ── digests ──────────────────────────────────────────────────────────────────────────────────────


def _digest_of_file(path: Path, cache: Cache) -> str:
    """SHA-256 of a file; that of a large one is remembered by its path, size and time."""
    stat = path.stat()
    if stat.st_size < REMEMBERED_BYTES:
        return digest_of_file(path)
    key = {"path": str(path.resolve()), "size": stat.st_size, "time": stat.st_mtime_ns}
    folder = cache.get(
        "file-sha256", key, lambda new: write_json(new / "sha256.json", digest_of_file(path))
    )
    return str(read_json(folder / "sha256.json"))
