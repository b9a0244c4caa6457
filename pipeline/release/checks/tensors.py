"""Tensors of a release against the base's, sliced anew, one at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.release.checks.findings import Finding
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.safetensors_stream import StoredTensor
from pipeline.surgery.tensor_cut import TensorCut

RECOMPUTED_TOLERANCE = 0.05
THREADS = 2  # one reads while the other computes; each has two tensors in memory
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Maps(Protocol):
    """Where compensation maps are read from."""

    names: frozenset[str]

    def read(self, name: str) -> Tensor:
        """Return M [P, S] of one output projection."""


@dataclass
class TensorReport:
    """What the tensors of a release are.

    Attributes:
        findings: tensors that are not what the base, the plan and the maps give.
        untouched: tensors that are the base's, to the byte.
        sliced: tensors that are slices of the base's, to the byte.
        compensated: tensors that are what slice and map give.
        unverified: tensors that are said to be compensated, without a map to check it.
        largest_change: of all compensated tensors, the largest ‖W' − W[:, S]‖ / ‖W[:, S]‖.
    """

    findings: list[Finding] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)
    compensated: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    largest_change: float = 0.0

    def add(self, other: TensorReport) -> None:
        """Take in what was found of other tensors."""
        for name in ("findings", "untouched", "sliced", "compensated", "unverified"):
            getattr(self, name).extend(getattr(other, name))
        self.largest_change = max(self.largest_change, other.largest_change)


def check_tensors(
    base: Mapping[str, StoredTensor],
    released: list[StoredTensor],
    cuts: Mapping[str, TensorCut],
    compensated: Set[str],
    maps: Maps | None,
    advance: Callable[[float], None],
) -> TensorReport:
    """Compare every tensor of a release with what the base gives.

    As many are compared at once as there are `THREADS`, two tensors in memory in each.

    Args:
        base: tensors of the base.
        released: tensors of the release.
        cuts: by name, the entries that stay.
        compensated: names of the output projections that are said to be compensated.
        maps: their maps, if the release has any.
        advance: called with the bytes of each released tensor that was compared.
    """
    report = TensorReport()
    names = [tensor.name for tensor in released]
    renamed = {name: cut.name for name, cut in cuts.items()}
    origins = {
        after: tensor
        for name, tensor in base.items()
        if (after := renamed.get(name, name)) is not None
    }
    for name in sorted(origins.keys() - set(names)):
        report.findings.append(Finding(name, "the base has this tensor, and the release does not"))
    said, compensated = compensated, {each for each in compensated if _compensable(each, cuts)}
    for name in sorted(said - compensated):
        report.findings.append(Finding(name, "is said to be compensated, and no unit of it is cut"))
    if maps is not None:
        known = {
            each.key(name) for name in compensated for each in cuts[name].matrices() if each.removed
        }
        for name in sorted(maps.names - known):
            report.findings.append(Finding(name, "has a map, and is not said to be compensated"))
    first = {tensor.name: number for number, tensor in reversed([*enumerate(released)])}

    def check(number: int) -> TensorReport:
        alone, tensor = TensorReport(), released[number]
        if first[tensor.name] != number:
            alone.findings.append(Finding(tensor.name, "is stored twice"))
        elif tensor.name not in origins:
            alone.findings.append(Finding(tensor.name, "the base has no such tensor"))
        else:
            _check(alone, origins[tensor.name], tensor, cuts, compensated, maps)
        return alone

    with ThreadPoolExecutor(THREADS) as pool:
        for tensor, alone in zip(released, pool.map(check, range(len(released))), strict=True):
            report.add(alone)
            advance(tensor.size)
    return report


def check_recomputed(
    base: Mapping[str, StoredTensor],
    released: Mapping[str, StoredTensor],
    cuts: Mapping[str, TensorCut],
    maps: Mapping[str, CompensationMap],
    names: Collection[str],
) -> tuple[list[Finding], float]:
    """Compare compensated tensors with what maps give that were derived anew.

    Scoring on another machine rounds activations otherwise, so the two are not equal to the byte:
    ‖W' − W'_anew‖ may be up to `RECOMPUTED_TOLERANCE` of ‖W'_anew − W[:, S]‖.

    Args:
        base: tensors of the base.
        released: tensors of the release, by name.
        cuts: by name, the entries that stay.
        maps: maps that were derived anew, by name.
        names: tensors to compare.

    Returns:
        Findings, and the largest such share.
    """
    found, largest = [], 0.0
    for name in names:
        cut = cuts[name]
        tensor, stored = base[name].read(), released[cut.name or name].read()
        for each in cut.matrices():
            if not each.removed:
                continue
            if (own := maps.get(key := each.key(name))) is None:
                what = "is said to be compensated; the recipe does not do that"
                found.append(Finding(key, what))
                continue
            weight_HU = each.before(tensor).movedim(cut.axis, 1)
            stored_HS = cut.kept_of(each.after(stored))[0].movedim(cut.axis, 1).double()
            anew_HS = own.kept_columns(weight_HU).double()
            change = (anew_HS - weight_HU[:, list(own.kept)].double()).norm()
            share = float((stored_HS - anew_HS).norm() / change.clamp(min=1e-300))
            largest = max(largest, share)
            if not share <= RECOMPUTED_TOLERANCE:  # NaN fails too
                what = f"differs by {share:.2g} of its change from what the texts give"
                found.append(Finding(key, what))
    return found, largest


def _check(
    report: TensorReport,
    before: StoredTensor,
    after: StoredTensor,
    cuts: Mapping[str, TensorCut],
    compensated: Collection[str],
    maps: Maps | None,
) -> None:
    name, cut = before.name, cuts.get(before.name)
    shape = cut.shape_of(before.shape) if cut else before.shape
    if (after.dtype, after.shape) != (before.dtype, shape):
        report.findings.append(
            Finding(
                after.name,
                f"is {after.dtype} {list(after.shape)}, expected {before.dtype} {list(shape)}",
            )
        )
    elif cut is None and all(map(operator.eq, before.chunks(), after.chunks())):
        report.untouched.append(name)
    elif cut is None:
        _check_equal(report, report.untouched, after.name, before.read(), after.read())
    elif name not in compensated:
        _check_equal(report, report.sliced, after.name, cut.apply(before.read()), after.read())
    else:
        _check_compensated(report, before, after, cut, maps)


def _check_equal(
    report: TensorReport, equal: list[str], name: str, expected: Tensor, actual: Tensor
) -> None:
    one, other = _bits(expected), _bits(actual)
    if torch.equal(one, other):
        equal.append(name)
        return
    wrong = int((one != other).sum())
    report.findings.append(
        Finding(name, f"{wrong:,} of {expected.numel():,} entries differ from the base's")
    )


def _compensable(name: str, cuts: Mapping[str, TensorCut]) -> bool:
    """Whether a tensor stays and has a matrix of which something is removed."""
    cut = cuts.get(name)
    if cut is None or cut.name is None:
        return False
    return any(each.removed for each in cut.matrices())


def _check_compensated(
    report: TensorReport,
    before: StoredTensor,
    after: StoredTensor,
    cut: TensorCut,
    maps: Maps | None,
) -> None:
    """Check matrix by matrix: without a map what was removed is unverified, and nothing else."""
    tensor, stored = before.read(), after.read()
    problems = []
    for each in cut.matrices():
        key = each.key(before.name)
        weight_HU = each.before(tensor).movedim(cut.axis, 1)
        parts = cut.kept_of(each.after(stored))
        stored_HS, padding = (part.movedim(cut.axis, 1) for part in parts)
        wrong = int(_bits(padding).count_nonzero())
        if not each.removed:
            wrong += int((_bits(weight_HU) != _bits(stored_HS)).sum())
        elif maps is not None:
            map_PS, problem = _map_of(key, maps, (len(each.removed), len(each.kept)))
            if map_PS is None:
                problems += problem
                continue
            own = CompensationMap(each.kept, each.removed, map_PS.float(), before.torch_dtype)
            wrong += own.unexplained(weight_HU, stored_HS)
        if wrong:
            what = (
                f"{wrong:,} of {each.after(stored).numel():,} entries are not what the base and "
                "the compensation map give"
            )
            problems.append(Finding(key, what))
            continue
        kept_HS = weight_HU[:, list(each.kept)].float()
        change = float((stored_HS.float() - kept_HS).norm() / kept_HS.norm().clamp(min=1e-30))
        report.largest_change = max(report.largest_change, change)
    report.findings += problems
    if not problems:
        (report.unverified if maps is None else report.compensated).append(before.name)


def _bits(tensor: Tensor) -> Tensor:
    """Its entries as integers: as numbers, NaN would differ and −0 would not."""
    return tensor.contiguous().view(BITS[tensor.element_size()])


def _map_of(key: str, maps: Maps, shape: tuple[int, int]) -> tuple[Tensor | None, list[Finding]]:
    """The map of a projection, and what is wrong with it."""
    if key not in maps.names:
        return None, [Finding(key, "is said to be compensated, and has no map")]
    try:
        map_PS = maps.read(key)
    except SafetensorError as error:
        return None, [Finding(key, f"its map cannot be read ({error})")]
    if tuple(map_PS.shape) != shape:
        return None, [Finding(key, f"its map is {list(map_PS.shape)}, expected {list(shape)}")]
    return map_PS, []
