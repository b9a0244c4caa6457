"""Scoring within a memory limit: passes, each with the second moments of some layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_recipe import tiny_recipe
from torch import Tensor

from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.stages.base import Base
from pipeline.stages.measure import Measurer, moment_passes
from pipeline.stages.texts import prepare

TinyBase = Callable[..., Base]


def recipe_of(base: Base, folder: Path, limit: str) -> Recipe:
    loaded = tiny_recipe(folder, base.model.path, f"scoring.moments_memory={limit}")
    return loaded.recipe


@pytest.mark.parametrize(
    ("limit", "passes"),
    [("1KB", [1, 1, 1]), ("20KB", [1, 1, 1]), ("33KB", [2, 1]), ("8GB", [3])],
)
def test_as_many_layers_as_fit(
    tiny_base: TinyBase, tmp_path: Path, limit: str, passes: list[int]
) -> None:
    """64 neurons have 16 KiB of second moments a layer."""
    base = tiny_base("llama")
    found = moment_passes(recipe_of(base, tmp_path, limit), base.dimensions)
    assert [len(layers) for layers in found] == passes
    assert [layer for layers in found for layer in layers] == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_passes_measure_what_one_pass_measures(
    tiny_base: TinyBase, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, found = tiny_base(family), []
    for number, limit in enumerate(("8GB", "1KB")):
        loaded = tiny_recipe(
            tmp_path / str(number), base.model.path, f"scoring.moments_memory={limit}"
        )
        cache, progress = Cache(tmp_path / f"cache-{number}"), Progress("quiet")
        texts = prepare(base, loaded, cache, progress)
        measurer = Measurer(base, loaded.recipe, texts.sequences, cache, progress)
        found.append(tensors_of(measurer.measure().moments))
    one, several = found
    assert one.keys() == several.keys() and any("layer" in name for name in one)
    for name, tensor in one.items():
        assert tensor.equal(several[name]), name


def tensors_of(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name} {key}": each for file in files for key, each in load_file(file).items()}
