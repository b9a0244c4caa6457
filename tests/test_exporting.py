"""The command that writes GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Unlearn
from gguf import GGUFReader

from pipeline.cache import digest_of_file, read_json, write_json
from pipeline.export.manifest import NAME as MANIFEST


def test_a_release_becomes_one_file_beside_it(release: Any, unlearn: Unlearn) -> None:
    made = release()
    result = unlearn("export", made.folder, "--type", "bf16", "--compare", "--quiet", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    path = made.folder.with_name(f"{made.folder.name}-BF16.gguf")
    assert (found["file"], found["agrees"]) == (str(path), True)
    assert found["sha256"] == digest_of_file(path)
    fields = GGUFReader(path).fields
    assert fields["unlearn.manifest_sha256"].contents() == digest_of_file(made.folder / MANIFEST)
    assert fields["unlearn.verdict"].contents() in ("PASS", "FAIL", "INCONCLUSIVE", "UNJUDGED")
    assert made.verify()[0] == 0  # nothing was written into the release


def test_a_checkpoint_without_a_manifest_and_a_name_of_ones_own(
    release: Any, unlearn: Unlearn, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(release().base, folder)
    result = unlearn("export", folder, "--out", tmp_path / "own.gguf", "--quiet")
    assert result.code == 0 and "SHA-256" in result.out
    assert (tmp_path / "own.gguf").stat().st_size > 1000


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_ragged_checkpoint_runs_in_llama_cpp(release: Any, unlearn: Unlearn, family: str) -> None:
    """As `deci`, the one family of llama.cpp that reads the sizes of each layer."""
    overrides = ["select.policy=ragged", "select.ffn.fraction=0.3", "select.attention.fraction=0.4"]
    made = release(family, *overrides)
    options = ["--type", "F32", "--compare", "--quiet", "--json"]
    result = unlearn("export", made.folder, *options)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["llama_cpp"]["same_tokens"] == found["llama_cpp"]["tokens"] == 80
    assert found["llama_cpp"]["max_difference"] < 0.02
    fields = GGUFReader(found["file"]).fields
    plan = read_json(made.folder / MANIFEST)["plan"]["layers"]
    for key, kind in (
        ("deci.feed_forward_length", "ffn"),
        ("deci.attention.head_count", "query_heads"),
        ("deci.attention.head_count_kv", "kv_heads"),
    ):
        counts = [len(layer[kind]) for layer in plan]
        assert fields[key].contents() == counts and len(set(counts)) > 1


def test_other_ragged_checkpoints_are_refused(release: Any, unlearn: Unlearn) -> None:
    folder = release("qwen3", "select.policy=ragged", "select.ffn.fraction=0.3").folder
    result = unlearn("export", folder, "--quiet")
    assert result.code == 2 and "in those of llama, mistral they may differ" in result.err
    result = unlearn("inspect", folder)
    assert result.code == 2 and "a ragged checkpoint cannot be cut again" in result.err


@pytest.mark.parametrize("changed", [[], {"0": 3}, None])
def test_a_ragged_config_without_the_sizes_of_its_layers(
    release: Any, unlearn: Unlearn, changed: Any
) -> None:
    folder = release("llama", "select.policy=ragged", "select.ffn.fraction=0.3").folder
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"per_layer_config": changed})
    result = unlearn("export", folder, "--quiet")
    assert result.code == 2 and "per_layer_config of the model's config" in result.err


def test_bad_input(release: Any, unlearn: Unlearn, tmp_path: Path) -> None:
    folder = release().folder
    for arguments, message in (
        (("nowhere",), "no such"),
        ((folder, "--type", "Q2"), "choose F32, F16, BF16, Q8_0"),
        ((folder, "--out", tmp_path), "no place for a file"),
        ((folder, "--out", tmp_path / "a/b.gguf"), "no place for a file"),
    ):
        result = unlearn("export", *arguments, "--quiet")
        assert result.code == 2 and message in result.err and "Traceback" not in result.err
