from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.cache import Cache, read_json
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Model
from pipeline.sources.model_folder import INDEX
from pipeline.sources.models import ResolvedModel, describe_model, resolve_model
from pipeline.sources.pickled_models import convert

from .loopback_hub import LoopbackHub
from .test_hub import hub as hub  # the fixture

BIN = "pytorch_model.bin"
PARTS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
PICKLED_INDEX = "pytorch_model.bin.index.json"
Resolve = Callable[..., ResolvedModel]


def pickle_weights(folder: Path, *, legacy: bool = False) -> dict[str, Any]:
    """Replace safetensors by a pickle, in which tied weights share memory."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    state: dict[str, Any] = dict(model.state_dict())
    torch.save(state, folder / BIN, _use_new_zipfile_serialization=not legacy)
    (folder / "model.safetensors").unlink()
    return state


def shard(folder: Path) -> dict[str, Any]:
    """Cut the pickle into two, with an index."""
    state = torch.load(folder / BIN)
    (folder / BIN).unlink()
    names = sorted(state)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for file, half in zip(PARTS, halves, strict=True):
        torch.save({name: state[name] for name in half}, folder / file)
    index = {n: file for file, half in zip(PARTS, halves, strict=True) for n in half}
    (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": index}))
    return index


@pytest.fixture
def pickled(model_folder: Path) -> Path:
    pickle_weights(model_folder)
    return model_folder


@pytest.fixture
def resolve(tmp_path: Path, cache: Cache, quiet: Progress) -> Resolve:
    def call(**fields: Any) -> ResolvedModel:
        model = Model.model_validate({"source": {"path": "tiny"}, "allow_pickle": True} | fields)
        return resolve_model(model, tmp_path, cache, quiet)

    return call


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_those_of_the_pickle(
    resolve: Resolve, model_folder: Path, legacy: bool
) -> None:
    state = pickle_weights(model_folder, legacy=legacy)
    found = resolve()
    tensors = load_file(found.path / "model.safetensors")
    assert tensors.keys() == state.keys() - {"lm_head.weight"}  # tied by the config
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        one, other = (
            model(ids).logits
            for model in (
                AutoModelForCausalLM.from_pretrained(found.path).eval(),
                AutoModelForCausalLM.from_pretrained(model_folder, weights_only=True).eval(),
            )
        )
    assert torch.equal(one, other)


def test_shared_memory_that_the_config_does_not_tie_is_written_twice(
    resolve: Resolve, model_folder: Path
) -> None:
    state = pickle_weights(model_folder)
    config = read_json(model_folder / "config.json") | {"tie_word_embeddings": False}
    (model_folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(resolve().path / "model.safetensors")
    assert tensors.keys() == state.keys()
    assert torch.equal(tensors["lm_head.weight"], state["model.embed_tokens.weight"])


def test_a_tied_name_of_other_values_is_kept(resolve: Resolve, model_folder: Path) -> None:
    state = pickle_weights(model_folder)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    torch.save(state, model_folder / BIN)
    tensors = load_file(resolve().path / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], state["lm_head.weight"])


def test_it_is_converted_once_and_the_origin_says_so(
    resolve: Resolve, pickled: Path, tmp_path: Path, cache: Cache
) -> None:
    (pickled / "README.md").write_text("---\nlicense: mit\n---\n")
    model = Model.model_validate({"source": {"path": "tiny"}, "allow_pickle": True})
    before = describe_model(model, tmp_path, cache)
    assert (before.kind, before.ready, before.folder) == ("pickled", False, None)
    found = resolve()
    assert found.path.is_relative_to(cache.root)
    assert (found.name, found.licence) == ("tiny", "MIT")
    assert found.origin.keys() == {"kind", "path", f"sha256 of {BIN}"}
    written = (found.path / "model.safetensors").stat().st_mtime_ns
    assert resolve() == found
    assert (found.path / "model.safetensors").stat().st_mtime_ns == written
    after = describe_model(model, tmp_path, cache)
    assert (after.kind, after.ready, after.folder) == ("pickled", True, found.path)
    (pickled / "generation_config.json").write_text("{}")  # what comes along counts too
    assert resolve().path != found.path


def test_it_is_refused_unless_asked_for(
    resolve: Resolve, pickled: Path, tmp_path: Path, cache: Cache
) -> None:
    with pytest.raises(InputError, match="pickled") as error:
        resolve(allow_pickle=False)
    assert "model.allow_pickle" in error.value.remedy
    with pytest.raises(InputError, match="pickled"):
        describe_model(Model.model_validate({"source": {"path": "tiny"}}), tmp_path, cache)


def test_safetensors_beside_a_pickle_are_taken(resolve: Resolve, model_folder: Path) -> None:
    (model_folder / BIN).write_bytes(b"never read")
    assert resolve().path == model_folder


def test_parts_and_shards(resolve: Resolve, pickled: Path, tmp_path: Path) -> None:
    index = shard(pickled)
    found = resolve()
    assert {f"sha256 of {part}" for part in PARTS} <= found.origin.keys()
    whole = load_file(found.path / "model.safetensors")
    small = tmp_path / "small"
    small.mkdir()
    convert(pickled, small, "tiny", shard_bytes=20_000)
    files = sorted(small.glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 40_000 for file in files)
    weight_map = read_json(small / INDEX)["weight_map"]
    assert weight_map.keys() == whole.keys() <= index.keys()
    for file in files:
        for name, tensor in load_file(file).items():
            assert weight_map[name] == file.name
            assert torch.equal(tensor, whole[name])
    shutil.copy(pickled / "config.json", small)
    AutoModelForCausalLM.from_pretrained(small)


class Evil:
    """A pickle of it makes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def save_plain(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_plain])
@pytest.mark.parametrize("place", ["alone", "among tensors"])
def test_a_program_in_a_pickle_is_not_run(
    resolve: Resolve, pickled: Path, tmp_path: Path, cache: Cache, save: Any, place: str
) -> None:
    made = tmp_path / "made"
    content = {} if place == "alone" or save is save_plain else torch.load(pickled / BIN)
    save(content | {"model.norm.weight": Evil(made)}, pickled / BIN)
    if save is torch.save:  # it would do its work
        torch.load(pickled / BIN, weights_only=False)
        made.rmdir()
    with pytest.raises(InputError, match="nothing of it was run") as error:
        resolve()
    assert error.value.where == str(pickled / BIN)
    assert "weights_only" not in error.value.what
    assert not made.exists()
    assert not list((cache.root / "base").glob("*"))


def _cut(folder: Path) -> None:
    (folder / BIN).write_bytes((folder / BIN).read_bytes()[:-100])


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / BIN).write_bytes(content)


def _save(content: Any) -> Callable[[Path], object]:
    return lambda folder: torch.save(content, folder / BIN)


def _index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        index = shard(folder)
        change(index)
        (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": index}))

    return apply


def _two_forms(folder: Path) -> None:
    whole = (folder / BIN).read_bytes()
    shard(folder)
    (folder / BIN).write_bytes(whole)


HUGE = torch.ones(1).expand(10**12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, "damaged or cut short"),
        (_write(b""), "damaged or cut short"),
        (_write(b"nonsense" * 40), "damaged"),
        (_save([torch.ones(2)]), "no tensors by name"),
        (_save({}), "no tensors by name"),
        (_save({"state_dict": {"a": torch.ones(2)}}), "'state_dict' is no plain tensor"),
        (_save({3: torch.ones(2)}), "3 is no plain tensor"),
        (_save({"a": torch.ones(2, device="meta")}), "'a' is no plain tensor"),
        (_save({"a": torch.eye(2).to_sparse()}), "'a' is no plain tensor"),
        (_save({"a": HUGE}), "a is stored with fewer bytes"),
        (_two_forms, f"in two forms, {BIN} and the files that {PICKLED_INDEX} names"),
        (_index(lambda index: index.update({"x": "../x.bin"})), "outside the folder: '../x.bin'"),
        (_index(lambda index: index.update({"x": "gone.bin"})), "1 of 3 weight files are missing"),
        (_index(lambda index: index.update({"x": PARTS[0]})), "names x .* in no file"),
        (_index(lambda index: index.pop("model.norm.weight")), "does not name model.norm.weight"),
        (
            _index(lambda index: index.update({"model.norm.weight": PARTS[0]})),
            f"names model.norm.weight in {PARTS[0]}, and the tensor is in {PARTS[1]}",
        ),
    ],
)
def test_broken_pickles(
    resolve: Resolve, pickled: Path, cache: Cache, change: Callable[[Path], object], message: str
) -> None:
    change(pickled)
    with pytest.raises(InputError, match=message):
        resolve()
    assert not list((cache.root / "base").glob("*"))


def test_an_unknown_family_is_refused_before_it_is_converted(
    resolve: Resolve, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.pickled_models.convert", pytest.fail)
    config = read_json(pickled / "config.json") | {"model_type": "nonsense"}
    (pickled / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="not described"):
        resolve()


def test_a_pickle_of_the_hub_is_fetched_only_if_asked_for(
    hub: LoopbackHub,
    pickled: Path,
    tmp_path: Path,
    cache: Cache,
    quiet: Progress,
) -> None:
    hub.folders["models/org/tiny"] = pickled
    refused = Model.model_validate({"source": {"hub": "org/tiny"}})
    for find in (describe_model, lambda *a: resolve_model(*a, quiet)):
        with pytest.raises(InputError, match="pickled"):
            find(refused, tmp_path, cache)
    assert not [line for line in hub.requests if line.endswith(".bin")]
    allowed = refused.model_copy(update={"allow_pickle": True})
    described = describe_model(allowed, tmp_path, cache)
    assert described.size_bytes == (pickled / BIN).stat().st_size
    found = resolve_model(allowed, tmp_path, cache, quiet)
    assert found.origin["repository"] == "org/tiny"
    assert f"sha256 of {BIN}" in found.origin
    assert LlamaForCausalLM.from_pretrained(found.path).config.model_type == LlamaConfig.model_type
