from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MIXTURES, load, logits, some_ids
from torch import Tensor, nn

from pipeline.architectures.registry import output_modules
from pipeline.scoring.collection import CapturePoints, Collector, collect
from pipeline.scoring.importance import head_importance, unit_importance
from pipeline.scoring.statistics import SUMS, Statistics, UnitSums, load_second_moments
from pipeline.stages.base import Base
from pipeline.surgery.compensation import compensation_map

TinyBase = Callable[..., Base]
LENGTH = 24
KINDS = ("ffn", "attention")


def points_of(base: Base, model: nn.Module) -> CapturePoints:
    architecture = base.architecture
    return CapturePoints(
        ffn=output_modules(model, architecture, architecture.feed_forward.output),
        attention=output_modules(model, architecture, architecture.attention.output),
        groups=base.dimensions.kv_heads,
    )


def collector_of(base: Base, model: nn.Module, **settings: Any) -> Collector:
    sizes = base.dimensions
    settings = {"skip_positions": 1, "heads": True} | settings
    widths = (sizes.ffn, sizes.heads * sizes.head_dim)
    return Collector(points_of(base, model), widths, **settings)


def save_moments(collector: Collector, folder: Path) -> None:
    for each in collector.second_moments():
        each.save(folder)


def measured(base: Base, model: Any, ids: Tensor, **settings: Any) -> Collector:
    collector = collector_of(base, model, **settings)
    collect(model.get_decoder(), ids, collector, 4 * LENGTH, lambda _: None)
    return collector


@contextmanager
def recorded(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The inputs of the modules, in float64: one [N, S, U] each after a forward pass."""
    inputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: inputs.__setitem__(index, args[0].detach().double().clone())

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(modules)]
    yield inputs
    for handle in handles:
        handle.remove()


def activations(base: Base, model: Any, ids: Tensor) -> dict[str, list[Tensor]]:
    points = points_of(base, model)
    with recorded([*points.ffn, *points.attention]) as inputs:
        logits(model, ids)
    layers = base.dimensions.layers
    return {"ffn": inputs[:layers], "attention": inputs[layers:]}


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_sums_are_those_of_a_naive_computation(tiny_base: TinyBase, family: str, skip: int) -> None:
    base = tiny_base(family)
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (9, LENGTH))
    statistics = measured(base, model, ids, skip_positions=skip).statistics
    assert statistics.tokens == 9 * (LENGTH - skip)
    inputs = activations(base, model, ids)
    for kind in KINDS:
        for layer, x_NSU in enumerate(inputs[kind]):
            check_sums(getattr(statistics, kind), layer, x_NSU[:, skip:].flatten(0, 1))
    for layer, x_NSU in enumerate(inputs["attention"]):
        check_groups(statistics, layer, x_NSU[:, skip:].flatten(0, 1))


@pytest.mark.parametrize("skip", [0, 1])
def test_no_block_of_a_batch_is_left_out(skip: int) -> None:
    """Batches that must be split along both axes, with a remainder along each."""
    ffn, attention = 8, 6
    generator = torch.Generator().manual_seed(0)
    projections = [nn.Linear(width, 1, bias=False) for width in (ffn, attention)]
    collector = Collector(
        CapturePoints(projections[:1], projections[1:], 3),
        (ffn, attention),
        skip_positions=skip,
        heads=True,
    )
    seen: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    with collector.attached(), torch.inference_mode():
        for sequences, length in ((3, 700), (40, 24)):
            for kind, projection in zip(KINDS, projections, strict=True):
                x_BSU = torch.randn(sequences, length, projection.in_features, generator=generator)
                projection(x_BSU)
                seen[kind].append(x_BSU[:, skip:].flatten(0, 1).double())
            collector.count(sequences, length)
    statistics = collector.statistics
    assert statistics.tokens == 3 * (700 - skip) + 40 * (24 - skip)
    for kind in KINDS:
        check_sums(getattr(statistics, kind), 0, torch.cat(seen[kind]))
    check_groups(statistics, 0, torch.cat(seen["attention"]))


def check_sums(sums: UnitSums, layer: int, x_TU: Tensor) -> None:
    close(sums.total_LU[layer], x_TU.sum(0), atol=1e-5 * float(x_TU.abs().sum(0).max()))
    close(sums.absolute_LU[layer], x_TU.abs().sum(0))
    close(sums.squared_LU[layer], x_TU.square().sum(0))
    assert torch.equal(sums.positive_LU[layer], (x_TU > 0).double().sum(0))


def check_groups(statistics: Statistics, layer: int, x_TU: Tensor) -> None:
    x_TGD = x_TU.unflatten(1, (3, -1))
    products = torch.einsum("tgd,tge->gde", x_TGD, x_TGD)
    close(statistics.groups_LGDD[layer], products, atol=1e-5 * float(products.abs().max()))


def close(actual: Tensor, expected: Tensor, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=atol)


@pytest.mark.parametrize("skip", [0, 1])
def test_measuring_does_not_change_what_the_model_computes(tiny_base: TinyBase, skip: int) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (1, LENGTH))  # one sequence: its activations are seen as they lie
    expected = logits(model, ids)
    with collector_of(base, model, skip_positions=skip, moments=frozenset(KINDS)).attached():
        assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(model, ids), expected)


def test_second_moments_are_those_of_a_naive_computation(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (9, LENGTH))
    collector = measured(base, model, ids, moments=frozenset(KINDS))
    save_moments(collector, tmp_path)
    inputs = activations(base, model, ids)
    for layer in range(base.dimensions.layers):
        found = load_second_moments(tmp_path, layer)
        for kind in KINDS:
            x_TU = inputs[kind][layer][:, 1:].flatten(0, 1)
            expected = x_TU.T @ x_TU / len(x_TU)
            close(found[kind], expected, atol=1e-5 * float(expected.abs().max()))
            assert torch.equal(found[kind], found[kind].T)


def test_second_moments_are_kept_of_the_kinds_that_are_cut(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (2, LENGTH))
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        save_moments(measured(base, model, ids, moments=frozenset({kind})), folder)
        for layer in range(base.dimensions.layers):
            assert set(load_second_moments(folder, layer)) == {kind}


def test_halves_add_up_to_the_whole(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (8, LENGTH))
    whole = measured(base, model, ids).statistics
    half, other = (measured(base, model, part).statistics for part in ids.split(4))
    half.save(tmp_path / "half.safetensors")
    merged = Statistics.load(tmp_path / "half.safetensors")
    merged.merge(other)
    assert merged.tokens == whole.tokens
    for kind in KINDS:
        for name in SUMS:
            ours, theirs = (getattr(getattr(s, kind), f"{name}_LU") for s in (merged, whole))
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.groups_LGDD, whole.groups_LGDD, rtol=1e-12, atol=1e-12)


def test_importance_is_what_its_name_says(tiny_base: TinyBase) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    ids = some_ids(base, (9, LENGTH))
    statistics = measured(base, model, ids).statistics
    x_TU = activations(base, model, ids)["ffn"][1][:, 1:].flatten(0, 1)
    expected = {
        "abs": x_TU.abs().mean(0),
        "rms": x_TU.square().mean(0).sqrt(),
        "std": x_TU.std(0, correction=0),
        "freq": (x_TU > 0).double().mean(0),
    }
    for kind, values in expected.items():
        found = unit_importance(statistics.ffn, statistics.tokens, kind)[1]
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="unknown importance"):
        unit_importance(statistics.ffn, 1, "mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [6, 3])  # query heads, key/value groups
def test_a_heads_importance_is_its_contribution_to_the_residual_stream(
    tiny_base: TinyBase, units: int, dtype: torch.dtype
) -> None:
    base = tiny_base("qwen3")
    model = load(base.model.path, dtype)
    ids = some_ids(base, (9, LENGTH))
    statistics = measured(base, model, ids).statistics
    inputs = activations(base, model, ids)["attention"]
    grams, expected, mean_absolute = [], [], []
    for layer, x_NSU in enumerate(inputs):
        weight_HUD = base.weight(layer, "attention").double().unflatten(1, (units, -1))
        x_TUD = x_NSU[:, 1:].flatten(0, 1).unflatten(1, (units, -1))
        grams.append(torch.einsum("hud,hue->ude", weight_HUD, weight_HUD))
        written_TUH = torch.einsum("hud,tud->tuh", weight_HUD, x_TUD)
        expected.append(written_TUH.square().sum(-1).mean(0).sqrt())
        mean_absolute.append(x_TUD.abs().mean(dim=(0, 2)))
    found = head_importance(statistics, "rms", units, torch.stack(grams))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-9)
    found = head_importance(statistics, "abs", units)
    torch.testing.assert_close(found, torch.stack(mean_absolute), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("massive", [1.0, 300.0])
def test_cheap_second_moments_hardly_change_the_compensated_weights(
    tmp_path: Path, massive: float
) -> None:
    """Products in bfloat16, against float64 on the same activations.

    The bound is on what counts: the output that compensation leaves wrong, as a share of what the
    removed units wrote; and the weights themselves, as a share of their change.
    """
    units, hidden, kept = 320, 64, 256
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales_U = normal(units).exp()
    x_TU = (normal(9 * 2048, 40) @ normal(40, units) / 40**0.5 + 0.5 * normal(9 * 2048, units)) ** 3
    x_TU = (x_TU * scales_U).bfloat16()
    x_TU[:, :3] *= massive
    projections = [nn.Linear(units, hidden, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    collector = Collector(
        CapturePoints(projections[:1], projections[1:], 4),
        (units, units),
        skip_positions=0,
        moments=frozenset({"ffn"}),
    )
    with collector.attached(), torch.inference_mode():
        for x_BSU in x_TU.unflatten(0, (-1, 512)).split(8):
            projections[0](x_BSU)
            collector.count(*x_BSU.shape[:2])
    save_moments(collector, tmp_path)
    order = torch.randperm(units, generator=generator).tolist()
    stays, goes = sorted(order[:kept]), sorted(order[kept:])
    exact_TU = x_TU.double()
    weight_HU = normal(hidden, units) / scales_U
    outputs, changes = [], []
    for moments_UU in (
        load_second_moments(tmp_path, 0)["ffn"],
        exact_TU.T @ exact_TU / len(exact_TU),
    ):
        result = compensation_map(
            moments_UU, stays, goes, ridge=0.01, dtype=torch.float64, where="test"
        )
        changes.append(result.kept_columns(weight_HU) - weight_HU[:, stays])
        lost_TH = exact_TU[:, goes] @ weight_HU[:, goes].T - exact_TU[:, stays] @ changes[-1].T
        outputs.append(lost_TH.square().mean())
    written = (exact_TU[:, goes] @ weight_HU[:, goes].T).square().mean()
    scale_S = exact_TU[:, stays].square().mean(dim=0).sqrt()
    gap = ((changes[0] - changes[1]) * scale_S).norm() / (changes[1] * scale_S).norm()
    assert outputs[1] < 0.9 * written  # there is something to compensate
    assert outputs[0] < 1.001 * outputs[1]
    assert gap < 0.015


# ── mixtures of experts ──────────────────────────────────────────────────────────────────────────


@torch.no_grad()
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_measured_expert_by_expert(
    tiny_base: TinyBase, tmp_path: Path, family: str, skip: int
) -> None:
    """Against one pass over the experts' inputs, in float64, with their weights taken apart."""
    base = tiny_base(family)
    sizes = base.dimensions
    model, ids = load(base.model.path, torch.float32), some_ids(base, (5, LENGTH))
    expected = logits(model, ids)
    settings = {"skip_positions": skip, "moments": frozenset({"ffn"})}
    collector = measured_mixture(base, model, ids, **settings)
    assert torch.allclose(logits(model, ids), expected, atol=0, rtol=0)  # as it was before
    statistics = collector.statistics
    save_moments(collector, tmp_path)
    for layer, (hidden_TH, chosen_TK, weights_TK) in enumerate(routed(base, model, ids)):
        counted = torch.arange(len(hidden_TH)) % LENGTH >= skip
        moments = load_second_moments(tmp_path, layer)
        experts = model.get_submodule(f"model.layers.{layer}.mlp.experts").double()
        for expert in range(sizes.experts):
            weight_T1 = ((chosen_TK == expert) * weights_TK).sum(1, keepdim=True) * counted[:, None]
            x_TU = by_hand(experts, expert, hidden_TH) * weight_T1
            own = slice(expert * sizes.ffn, (expert + 1) * sizes.ffn)
            close(statistics.ffn.squared_LU[layer, own], x_TU.square().sum(0), atol=1e-6)
            close(statistics.ffn.absolute_LU[layer, own], x_TU.abs().sum(0), atol=1e-5)
            found = moments[f"ffn.{expert}"] * statistics.tokens
            torch.testing.assert_close(found, x_TU.T @ x_TU, rtol=1e-5, atol=1e-5)
            y_TH = x_TU @ (
                experts.down_proj[expert].T if family != "gpt_oss" else experts.down_proj[expert]
            )
            if family == "gpt_oss":
                y_TH = y_TH + experts.down_proj_bias[expert] * weight_T1
            close(statistics.experts_LE[layer, expert], y_TH.square().sum(), atol=1e-5)
        experts.float()


def measured_mixture(base: Base, model: Any, ids: Tensor, **settings: Any) -> Collector:
    sizes, block = base.dimensions, base.architecture.feed_forward
    assert block.experts is not None
    shared = block.experts.shared
    points = CapturePoints(
        ffn=output_modules(model, base.architecture, shared.output) if shared else [],
        attention=output_modules(model, base.architecture, base.architecture.attention.output),
        groups=sizes.kv_heads,
        experts=output_modules(model, base.architecture, block.output),
        count=sizes.experts,
        width=sizes.ffn,
    )
    collector = Collector(points, (sizes.neurons, sizes.heads * sizes.head_dim), **settings)
    collect(model.get_decoder(), ids, collector, 4 * LENGTH, lambda _: None)
    return collector


def routed(base: Base, model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What each layer's experts are given: tokens, the numbers of their experts, and weights."""
    given: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        given.append((inputs[0].double(), inputs[1].clone(), inputs[2].double()))

    modules = output_modules(model, base.architecture, base.architecture.feed_forward.output)
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return given


def by_hand(experts: Any, expert: int, hidden_TH: Tensor) -> Tensor:
    """Activations of an expert's neurons, from the definition of its family."""
    if hasattr(experts, "alpha"):  # gpt-oss: interleaved, clamped, biased
        inner = hidden_TH @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = inner[:, ::2].clamp(max=experts.limit), inner[:, 1::2]
        up = up.clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    gate, up = (hidden_TH @ experts.gate_up_proj[expert].T).chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up
