from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_address import point_hub_at

from pipeline.cache import Cache
from pipeline.errors import BrokenError, InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Corpus, Model
from pipeline.sources.documents import origin_of, read_documents
from pipeline.sources.models import describe_model, resolve_model

from .loopback_hub import COMMIT, LoopbackHub


def model(name: str = "org/tiny", **fields: str) -> Model:
    return Model.model_validate({"source": {"hub": name, **fields}})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    server = LoopbackHub()
    point_hub_at(server.url, monkeypatch, tmp_path / "hub-cache")
    yield server
    server.stop()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    point_hub_at(f"http://127.0.0.1:{port}", monkeypatch, tmp_path / "hub-cache")


def test_model_is_downloaded_and_pinned(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    (model_folder / "pytorch_model.bin").write_text("never read")
    (model_folder / "onnx").mkdir()
    (model_folder / "onnx" / "config.json").write_text("{}")
    hub.folders["models/org/tiny"] = model_folder
    described = describe_model(model(), tmp_path, cache)
    assert not described.ready
    assert described.size_bytes == (model_folder / "model.safetensors").stat().st_size
    assert described.config["model_type"] == "llama"

    found = resolve_model(model(), tmp_path, cache, quiet)
    assert found.origin == {
        "kind": "hub",
        "repository": "org/tiny",
        "revision": "main",
        "commit": COMMIT,
    }
    assert found.name == "org/tiny"
    assert (found.path / "tokenizer.json").is_file()
    assert not (found.path / "pytorch_model.bin").exists()
    assert not (found.path / "onnx").exists()
    assert describe_model(model(), tmp_path, cache).ready


def test_a_models_licence_is_that_of_its_card(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    (model_folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    hub.folders["models/org/tiny"] = model_folder
    source = {"source": {"hub": "org/tiny"}}
    assert resolve_model(model(), tmp_path, cache, quiet).licence == "Apache-2.0"
    wrong = Model.model_validate({**source, "licence": "MIT"})
    for find in (describe_model, lambda *a: resolve_model(*a, quiet)):
        with pytest.raises(InputError, match="the recipe says MIT"):
            find(wrong, tmp_path, cache)


def test_downloaded_model_needs_no_network(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    hub.folders["models/org/tiny"] = model_folder
    found = resolve_model(model(), tmp_path, cache, quiet)
    hub.stop()
    assert resolve_model(model(), tmp_path, cache, quiet) == found
    assert describe_model(model(), tmp_path, cache).ready


def test_unknown_model(hub: LoopbackHub, tmp_path: Path, cache: Cache, quiet: Progress) -> None:
    with pytest.raises(InputError, match="no such model") as error:
        resolve_model(model(), tmp_path, cache, quiet)
    assert "org/tiny" in error.value.where
    with pytest.raises(InputError, match="no such model"):
        describe_model(model(), tmp_path, cache)


def test_unknown_revision(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    hub.folders["models/org/tiny"] = model_folder
    with pytest.raises(InputError, match="no revision 'v9'"):
        resolve_model(model(revision="v9"), tmp_path, cache, quiet)


def test_gated_model(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    hub.folders["models/org/tiny"] = model_folder
    hub.gated.add("models/org/tiny")
    with pytest.raises(InputError, match="access") as error:
        resolve_model(model(), tmp_path, cache, quiet)
    assert "HF_TOKEN" in error.value.remedy


def test_model_without_safetensors(
    hub: LoopbackHub, model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "tf_model.h5")
    hub.folders["models/org/tiny"] = model_folder
    with pytest.raises(InputError, match="no safetensors"):
        describe_model(model(), tmp_path, cache)
    with pytest.raises(InputError, match="no weights"):
        resolve_model(model(), tmp_path, cache, quiet)


def test_name_that_cannot_be_on_the_hub(
    hub: LoopbackHub, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    with pytest.raises(InputError, match="not a valid name"):
        resolve_model(model("a/b/c"), tmp_path, cache, quiet)


@pytest.mark.usefixtures("no_network")
def test_no_network(tmp_path: Path, cache: Cache, quiet: Progress) -> None:
    for call in (
        lambda: resolve_model(model(), tmp_path, cache, quiet),
        lambda: describe_model(model(), tmp_path, cache),
    ):
        with pytest.raises(BrokenError, match="cannot be reached") as error:
            call()
        assert error.value.exit_code == 3
        assert "org/tiny" in error.value.where
        assert "HF_TOKEN" in error.value.remedy and "path" in error.value.remedy


def test_a_full_disk_is_not_a_broken_network(
    hub: LoopbackHub,
    tmp_path: Path,
    cache: Cache,
    quiet: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.folders["models/org/tiny"] = tmp_path
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(BrokenError, match="no space left") as error:
        resolve_model(model(), tmp_path, cache, quiet)
    assert "HF_HOME" in error.value.remedy


def corpus(**source: Any) -> Corpus:
    return Corpus.model_validate(
        {"name": "c", "source": {"hub": "org/texts", **source}, "genre": "g", "licence": "l"}
    )


@pytest.fixture
def texts(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {number}"}) for number in range(5)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    hub.folders["datasets/org/texts"] = folder
    return hub


@pytest.mark.usefixtures("texts")
def test_data_set_is_streamed(tmp_path: Path) -> None:
    pieces = read_documents(corpus(split="test"), tmp_path, limit_characters=13)
    assert [piece.text for piece in pieces] == ["test 0", "test 1", "test 2"]


@pytest.mark.usefixtures("texts")
def test_the_manifest_names_the_commit_of_a_data_set() -> None:
    assert origin_of(corpus()) == {"dataset": "org/texts", "commit": COMMIT}


@pytest.mark.usefixtures("no_network")
def test_a_commit_needs_no_question() -> None:
    assert origin_of(corpus(revision="a" * 40))["commit"] == "a" * 40


@pytest.mark.usefixtures("texts")
def test_unknown_split_and_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing") as error:
        list(read_documents(corpus(split="nothing"), tmp_path))
    assert error.value.where == "data set org/texts"
    with pytest.raises(InputError, match="nothing"):
        list(read_documents(corpus(config="nothing"), tmp_path))


@pytest.mark.usefixtures("hub")
def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data set"):
        list(read_documents(corpus(), tmp_path))


@pytest.mark.usefixtures("no_network")
def test_data_set_without_network(tmp_path: Path) -> None:
    with pytest.raises(BrokenError, match="cannot be reached"):
        list(read_documents(corpus(), tmp_path))
