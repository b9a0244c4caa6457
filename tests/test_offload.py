"""Models that do not fit into memory: the same plan, proof and figures, from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_models import base_of, logits, make_model, mask, random_plan, some_ids
from tiny_recipe import write_recipe
from transformers import modeling_utils

from pipeline.cache import Cache, read_json
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.placement import input_device, replaced_parameter
from pipeline.recipe.texts import MaxMemory
from pipeline.stages.base import Base, load_model, within
from pipeline.surgery.compensation import CompensationMap

LITTLE = "200KB"  # of 320 KB in float32; room for one layer is held back, and two find none
LIMITS = MaxMemory(cpu=LITTLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return base_of(folder)


def compensated(base: Base, plan: Any) -> dict[str, CompensationMap]:
    torch.manual_seed(0)
    return {
        f"model.layers.{layer}.mlp.down_proj.weight": CompensationMap(
            plan.layers[layer].ffn,
            plan.removed_ffn(layer),
            torch.randn(len(plan.removed_ffn(layer)), len(plan.layers[layer].ffn)) / 10,
            torch.bfloat16,
        )
        for layer in range(base.dimensions.layers)
    }


def places(model: Any) -> set[Any]:
    return set(model.hf_device_map.values())


def test_masked_and_compensated_weights_may_be_offloaded(base: Base, cache: Cache) -> None:
    plan = random_plan(base.dimensions, 0, ffn=48, groups=2)
    maps, ids = compensated(base, plan), some_ids(base)
    whole = load_model(base.model.path, "float32")
    before = logits(whole, ids)
    with mask(base, whole, plan, maps):
        expected = logits(whole, ids)
    assert (expected - before).abs().max() > 0.1
    with within(LIMITS, base, cache) as placed:
        model = load_model(base.model.path, "float32", placed.terms)
        assert places(model) == {"cpu", "disk"}
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(logits(model, ids), before)
        with mask(base, model, plan, maps):
            assert torch.equal(logits(model, ids), expected)
            assert torch.equal(logits(model, ids), expected)  # and again
        assert torch.equal(logits(model, ids), before)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert placed.offload is not None and not list(placed.offload.iterdir())
    assert not list((cache.root / "offload").iterdir())


def test_an_error_leaves_the_weights_as_they_were(base: Base, cache: Cache) -> None:
    ids = some_ids(base)
    with within(LIMITS, base, cache) as placed:
        model: Any = load_model(base.model.path, "float32", placed.terms)
        before = logits(model, ids)
        module = model.model.layers[2].mlp.down_proj
        assert module.weight.is_meta
        zeroed = replaced_parameter(module, "weight", torch.zeros_like)
        with pytest.raises(KeyboardInterrupt), zeroed:
            assert not torch.equal(logits(model, ids), before)
            raise KeyboardInterrupt
        assert torch.equal(logits(model, ids), before)


def test_input_goes_where_the_first_weights_in_memory_are(base: Base, cache: Cache) -> None:
    with within(MaxMemory(cpu="1KB"), base, cache) as placed:
        model = load_model(base.model.path, "float32", placed.terms)
        assert next(model.parameters()).is_meta
        assert input_device(model) == torch.device("cpu")
        assert torch.isfinite(logits(model, some_ids(base))).all()


@pytest.mark.parametrize(("family", "steps"), [("llama", 1), ("llama", 2), ("mixtral", 2)])
def test_a_run_gives_the_same_plan(
    unlearn: Unlearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, steps: int
) -> None:
    folder = make_model(tmp_path / "model", family, dtype=torch.bfloat16)
    select = {
        "steps": steps,
        "ffn": {"fraction": 0.25, "multiple_of": 8},
        "attention": {"fraction": 0.34},
        "experts": {"fraction": 0.5 if family == "mixtral" else 0.0},
    }
    recipe = write_recipe(tmp_path / "recipe", folder, gates=[], select=select)
    seen: list[set[Any]] = []
    dispatch = modeling_utils.accelerate_dispatch

    def noted(model: Any, quantiser: Any, device_map: Any, *rest: Any) -> None:
        seen.append(set(device_map.values()))
        dispatch(model, quantiser, device_map, *rest)

    monkeypatch.setattr(modeling_utils, "accelerate_dispatch", noted)
    limited = ("--set", f"model.max_memory.cpu={LITTLE}")
    for name, more in (("whole", ()), ("limited", limited)):
        seen.clear()
        options = ("--out", name, "--cache-dir", f"cache-{name}", "--quiet")
        assert unlearn("run", recipe, *options, *more).code == 0
        # Scoring, both models of the proof, and all that evaluate.
        assert len(seen) > 6 if more else not seen
        assert not more or {"cpu", "disk"} in seen
    whole, other = (read_json(Path(name, "tiny", MANIFEST)) for name in ("whole", "limited"))
    assert other["plan"] == whole["plan"]
    assert other["pruned"]["weights_sha256"] == whole["pruned"]["weights_sha256"]
    assert other["scores"] == whole["scores"]
    assert other["proof"] == whole["proof"]
    assert other["prompts"] == whole["prompts"]
    for name in ("base", "pruned"):
        one, two = (
            {task: found["metrics"] for task, found in each["evaluation"][name]["tasks"].items()}
            for each in (whole, other)
        )
        assert one == two
    assert not list(Path("cache-limited/offload").iterdir())
    again = ("--recipe", recipe, "--cache-dir", "cache-again", *limited, "--quiet")
    assert unlearn("validate", "limited/tiny", *again).code == 0
    assert unlearn("verify", "limited/tiny", "--recompute", *again).code == 0
    assert not list(Path("cache-again/offload").iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.max_memory={cpu: lots}", "a size such as `4GB`"),
        ("model.max_memory={cpu: 4}", "a size such as `4GB`"),
        ("model.max_memory={disk: 4GB}", "disk"),
        ("model.max_memory={each_gpu: 4GB}", "cpu"),
    ],
)
def test_wrong_limits(
    unlearn: Unlearn, folder: Path, tmp_path: Path, override: str, words: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe", folder, gates=[])
    result = unlearn("run", recipe, "--set", override, "--quiet")
    assert (result.code, result.out) == (2, "")
    assert words in result.err and "model.max_memory" in result.err
