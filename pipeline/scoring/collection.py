"""One pass over packed sequences that sums statistics at the input of output projections.

Sums of blocks, short enough for the processor's cache, are taken in float32 and added up in
float64. The products of a key/value group's own coordinates, where heads are to be ranked, are
added up in float32 within a batch and in float64 across batches.
The full second moments, which cost as much as the layer itself, are products of blocks in the
model's own type, each added up in a wider one, and only a triangle is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.placement import input_device
from pipeline.scoring.experts import observed
from pipeline.scoring.statistics import SUMS, SecondMoments, Statistics, UnitSums

BLOCK_TOKENS = 512
MOMENT_BLOCK_TOKENS = 2048
MOMENT_PANEL = 256


@dataclass(frozen=True)
class CapturePoints:
    """Modules whose inputs are the units' activations, one a layer.

    Attributes:
        ffn: output projections of the feed-forward blocks; in a mixture of experts, those of the
            shared expert, if there is one.
        attention: output projections of the attention blocks.
        groups: key/value groups in each attention block.
        experts: modules that run the routed experts.
        count: routed experts of a layer.
        width: neurons of each.
    """

    ffn: Sequence[nn.Module]
    attention: Sequence[nn.Module]
    groups: int
    experts: Sequence[nn.Module] = ()
    count: int = 0
    width: int = 0


class Collector:
    """Sums statistics of every forward pass that runs while its hooks are attached.

    Args:
        points: where to capture.
        widths: FFN neurons and attention coordinates of a layer.
        skip_positions: positions at the start of each sequence that are not counted.
        moments: unit kinds ("ffn", "attention") whose second moments are summed too.
        moment_layers: layers whose second moments are summed; all by default.
        heads: sum the second moments within each key/value group, which rank heads.
    """

    def __init__(
        self,
        points: CapturePoints,
        widths: tuple[int, int],
        *,
        skip_positions: int,
        moments: frozenset[str] = frozenset(),
        moment_layers: range | None = None,
        heads: bool = False,
    ) -> None:
        self.points = points
        self.skip_positions = skip_positions
        self.moments = moments
        layers = len(points.attention)
        self.moment_layers = range(layers) if moment_layers is None else moment_layers
        ffn, attention = widths
        groups = points.groups if heads else 0
        self.statistics = Statistics.zeros(
            layers, ffn, attention, groups, attention // points.groups, points.count
        )
        self._moments: list[dict[str, _Moments]] = [{} for _ in range(layers)]
        self.batch_shape = (1, -1)  # sequences and tokens of the batch that is passing
        self._seen: set[tuple[str, int]] = set()
        self._buffers_of: dict[tuple[torch.device, int], Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks, ahead of any that mask, so that removed units are measured too."""
        with ExitStack() as stack:
            for kind, modules in (("ffn", self.points.ffn), ("attention", self.points.attention)):
                for layer, module in enumerate(modules):
                    hook = self._hook(kind, layer)
                    stack.callback(module.register_forward_pre_hook(hook, prepend=True).remove)
            if self.points.experts:
                stack.enter_context(observed(self.points.experts, self._add_expert))
            yield

    def count(self, sequences: int, length: int) -> None:
        """Record that a batch of `sequences` × `length` tokens has passed."""
        self.statistics.tokens += sequences * max(length - self.skip_positions, 0)

    def coverage(self) -> dict[str, tuple[int, int]]:
        """(seen, expected) layers by unit kind."""
        expected = len(self.points.attention)
        return {
            kind: (sum(seen == kind for seen, _ in self._seen), expected)
            for kind in ("ffn", "attention")
        }

    def experts_seen(self) -> tuple[int, int]:
        """(seen, expected) routed experts of all layers: some may get no token of a text."""
        experts_LE = self.statistics.experts_LE
        return int((experts_LE > 0).sum()), experts_LE.numel()

    def bytes(self) -> int:
        """Room that the sums take beside the model; it is largest after the last batch."""
        statistics = self.statistics
        sums = [getattr(kind, f"{name}_LU") for kind in self._kinds() for name in SUMS]
        moments = [each.sums for layer in self._moments for each in layer.values()]
        held = [*sums, statistics.groups_LGDD, statistics.experts_LE, *moments]
        return sum(tensor.nbytes for tensor in (*held, *self._buffers_of.values()))

    def second_moments(self) -> Iterator[SecondMoments]:
        """Yield the finished second moments of a layer, and forget them."""
        experts = self.points.count if "ffn" in self.moments else 0
        for layer in self.moment_layers:
            width = self.points.width  # of an expert that got no token nothing was summed
            found = {f"ffn.{expert}": torch.zeros(width, width) for expert in range(experts)}
            sums, self._moments[layer] = self._moments[layer], {}
            found |= {name: each.finished() for name, each in sorted(sums.items())}
            yield SecondMoments(self.statistics.tokens, layer, found)

    def _kinds(self) -> tuple[UnitSums, UnitSums]:
        return self.statistics.ffn, self.statistics.attention

    def _hook(self, kind: str, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        first = self.points.count * self.points.width if kind == "ffn" else 0
        name = "ffn.shared" if first else kind

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_BSU = inputs[0].detach()
            if x_BSU.dim() == 2:  # some families flatten a batch to one row of tokens
                x_BSU = x_BSU.unflatten(0, self.batch_shape)
            x_BSU = x_BSU[:, self.skip_positions :]
            groups = self.statistics.groups_LGDD[layer] if kind == "attention" else None
            self._add(kind, name, layer, x_BSU, first, groups)

        return hook

    def _add_expert(
        self, layer: int, expert: int, tokens_T: Tensor, x_TU: Tensor, y_TH: Tensor
    ) -> None:
        """Add what a routed expert does to some of the batch's tokens, given by their numbers."""
        counted = tokens_T % self.batch_shape[1] >= self.skip_positions
        x_TU, y_TH = x_TU[counted], y_TH[counted]
        self._add("ffn", f"ffn.{expert}", layer, x_TU[None], expert * self.points.width, None)
        added = y_TH.float().square().sum(dtype=torch.float64)
        self.statistics.experts_LE[layer, expert] += added.cpu()

    def _add(
        self,
        kind: str,
        name: str,
        layer: int,
        x_BSU: Tensor,
        first: int,
        groups_GDD: Tensor | None,
    ) -> None:
        self._seen.add((kind, layer))
        sums: UnitSums = getattr(self.statistics, kind)
        units = slice(first, first + x_BSU.shape[2])
        _add_sums(sums, layer, units, x_BSU, self._buffers(x_BSU), groups_GDD)
        if kind in self.moments and layer in self.moment_layers:
            if name not in self._moments[layer]:
                self._moments[layer][name] = _Moments(x_BSU.shape[2], x_BSU.device)
            self._moments[layer][name].add(x_BSU.flatten(0, 1))

    def _buffers(self, x_BSU: Tensor) -> Tensor:
        """Room for two blocks; made once, since fresh memory costs more than the sums."""
        place = (x_BSU.device, x_BSU.shape[2])
        if place not in self._buffers_of:
            self._buffers_of[place] = torch.empty(2, BLOCK_TOKENS, place[1], device=place[0])
        return self._buffers_of[place]


@torch.inference_mode()
def collect(
    model: nn.Module,
    sequences_NS: Tensor,
    collector: Collector,
    batch_tokens: int,
    advance: Callable[[float], None],
) -> None:
    """Run the model over `sequences_NS` with the collector's hooks attached.

    Args:
        model: the decoder without its language-model head, whose output nobody needs here.
        sequences_NS: token ids, N packed sequences of S tokens.
        collector: receives the activations.
        batch_tokens: tokens in one forward pass.
        advance: called with the tokens of each finished batch.
    """
    device = input_device(model)
    length = sequences_NS.shape[1]
    with collector.attached():
        for batch_BS in sequences_NS.split(max(batch_tokens // length, 1)):
            collector.batch_shape = (len(batch_BS), length)
            model(input_ids=batch_BS.to(device), use_cache=False)
            collector.count(*batch_BS.shape)
            advance(batch_BS.numel())


def _add_sums(
    sums: UnitSums,
    layer: int,
    units: slice,
    x_BSU: Tensor,
    buffers_2TU: Tensor,
    groups_GDD: Tensor | None,
) -> None:
    """Add a batch's sums of some units; `buffers_2TU` is room for two blocks in float32."""
    added_4U = torch.zeros(len(SUMS), x_BSU.shape[2], dtype=torch.float64, device=x_BSU.device)
    groups = 0 if groups_GDD is None else len(groups_GDD)
    products: list[Tensor | float] = [0.0] * groups
    for block_BSU in _blocks(x_BSU):
        tokens = block_BSU.shape[0] * block_BSU.shape[1]
        x, derived = buffers_2TU[:, :tokens]
        x.view_as(block_BSU).copy_(block_BSU)
        added_4U[0] += x.sum(dim=0)
        added_4U[1] += torch.abs(x, out=derived).sum(dim=0)
        added_4U[2] += torch.mul(x, x, out=derived).sum(dim=0)
        added_4U[3] += torch.gt(x, 0, out=derived).sum(dim=0)
        for group in range(groups):  # faster than one batched product
            x_TD = x.chunk(groups, dim=1)[group]
            products[group] += x_TD.T @ x_TD
    for name, added_U in zip(SUMS, added_4U.cpu(), strict=True):
        getattr(sums, f"{name}_LU")[layer, units] += added_U
    if groups_GDD is not None:
        for group_DD, product_DD in zip(groups_GDD, products, strict=True):
            group_DD += torch.as_tensor(product_DD, device="cpu")


def _blocks(x_BSU: Tensor) -> Iterator[Tensor]:
    """Yield parts of at most `BLOCK_TOKENS` tokens, without copying them."""
    sequences = max(BLOCK_TOKENS // max(x_BSU.shape[1], 1), 1)
    for several in x_BSU.split(sequences):
        yield from several.split(BLOCK_TOKENS, dim=1)


def _wide_enough(x: Tensor) -> Tensor:
    """Products of float16 overflow where activations are massive; bfloat16 has float32's range."""
    return x.float() if x.dtype == torch.float16 else x


class _Moments:
    """Σ x xᵀ of one projection's inputs: the upper triangle, in panels."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.sums = torch.zeros(width, width, dtype=torch.float32, device=device)

    def add(self, x_TU: Tensor) -> None:
        width = x_TU.shape[1]
        for block in _wide_enough(x_TU).split(MOMENT_BLOCK_TOKENS):
            for start in range(0, width, MOMENT_PANEL):
                panel = block[:, start : start + MOMENT_PANEL]
                self.sums[start : start + MOMENT_PANEL, start:] += panel.T @ block[:, start:]

    def finished(self) -> Tensor:
        upper = self.sums.triu()
        return (upper + upper.triu(1).T).cpu()
