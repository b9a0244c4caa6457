"""Compensation: kept units stand in for removed ones, in the least-squares sense on retain text.

With the retain second moment C = E[x xᵀ] of the input x of an output projection W, kept units S
and removed units P, the update that minimises E‖W x − W'[:, S] x_S‖² + ridge is

    M = C[P, S] · (C[S, S] + Λ)⁻¹,   W'[:, S] = W[:, S] + W[:, P] · M

(ridge regression of x_P on x_S). Λ is diagonal, a share of each unit's *own* second moment. A ridge
taken from the mean of the diagonal is set by the few neurons with massive activations: it is then
far too large for all others, and their compensation vanishes.

Kept units stand in on forget text too, and bring back some of what was removed. With the second
moment F of forget text and a weight μ, adding μ·E_F‖M x_S‖² to what is minimised makes the system
C[S, S] + μ F[S, S] + Λ: what stands in on retain text keeps silent on forget text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import BrokenError

LARGEST_ERROR = 1e-6  # of all that a map gives; of real ones it is about 1e-12
BLOCK_ROWS = 1024  # in float64 at once, so that wide models fit into memory


@dataclass(frozen=True)
class CompensationMap:
    """How the removed units of one output projection are made up for.

    Attributes:
        kept: S, ascending.
        removed: P, ascending.
        map_PS: M, float32.
        dtype: type in which the projection is stored, and released.
    """

    kept: tuple[int, ...]
    removed: tuple[int, ...]
    map_PS: Tensor
    dtype: torch.dtype

    def kept_columns(self, weight_HU: Tensor) -> Tensor:
        """Compensated columns S of an output projection, rounded once to the released type.

        The product is taken in float64, so that the order of summation cannot change the rounding.
        A weight that is held in a wider type, as in the proof, gets the same rounded values.
        """
        blocks = weight_HU.split(BLOCK_ROWS)
        return torch.cat([self._exact(rows).to(self.dtype).to(rows.dtype) for rows in blocks])

    def unexplained(self, weight_HU: Tensor, stored_HS: Tensor) -> int:
        """Entries of a stored projection that are not what `kept_columns` gives.

        On another processor the product may be summed in another order. An entry is accepted if it
        is the rounding of a value within the error bound of a float64 product, u·(P + 2)·Σ|terms|
        with u = 2⁻⁵³ (Higham, Accuracy and Stability of Numerical Algorithms, 3.5); that can decide
        how a value between two released ones is rounded, and nothing more. A map whose terms are so
        large that their errors could be anything explains nothing.

        Args:
            weight_HU: the base's projection, as stored.
            stored_HS: the released one, in the released type.
        """
        removed_HP, wide = weight_HU[:, list(self.removed)], torch.float64
        errors = removed_HP.norm(dtype=wide) * self.map_PS.norm(dtype=wide) * self._rounding
        if not errors <= LARGEST_ERROR * stored_HS.norm(dtype=wide):
            return stored_HS.numel()
        blocks = zip(weight_HU.split(BLOCK_ROWS), stored_HS.split(BLOCK_ROWS), strict=True)
        return sum(self._unexplained(*rows) for rows in blocks)

    def _unexplained(self, weight_HU: Tensor, stored_HS: Tensor) -> int:
        exact_HS = self._exact(weight_HU)
        rounded_HS = exact_HS.to(self.dtype)
        finite = stored_HS.sum(dtype=torch.float64).isfinite()  # else nothing explains it
        if finite and torch.equal(rounded_HS, stored_HS):
            return 0
        terms_HS = replace(self, map_PS=self.map_PS.abs())._exact(weight_HU.abs())
        error_HS = terms_HS * self._rounding
        low_HS, high_HS = (
            each.to(self.dtype) for each in (exact_HS - error_HS, exact_HS + error_HS)
        )
        within_HS = (low_HS <= stored_HS) & (stored_HS <= high_HS)
        return int((~within_HS | ~stored_HS.isfinite()).sum())

    @property
    def _rounding(self) -> float:
        """Largest error of a sum of P products and one more, as a share of all terms together."""
        return (len(self.removed) + 2) * 2.0**-53

    def _exact(self, weight_HU: Tensor) -> Tensor:
        kept_HS = weight_HU[:, list(self.kept)].double()
        removed_HP = weight_HU[:, list(self.removed)].double()
        map_PS = self.map_PS.to(device=weight_HU.device, dtype=torch.float64)
        return (removed_HP @ map_PS).add_(kept_HS)


def maps_digest(maps: Mapping[str, CompensationMap]) -> str | None:
    """Digest of the maps of some projections; None if there are none."""
    if not maps:
        return None
    digest = hashlib.sha256()
    for name, each in sorted(maps.items()):
        digest.update(name.encode() + each.map_PS.contiguous().numpy().tobytes())
    return digest.hexdigest()


def compensation_map(
    moments_UU: Tensor,
    kept: Sequence[int],
    removed: Sequence[int],
    *,
    ridge: float,
    dtype: torch.dtype,
    where: str,
    silent_UU: Tensor | None = None,
) -> CompensationMap:
    """Solve for M in float64, on a scale where every unit has second moment 1.

    The scaling is Jacobi preconditioning: with D = diag(C), the system solved is
    (D^-½ C D^-½ + ridge · I), so units with massive activations do not decide its condition.

    Args:
        moments_UU: mean second moments of the layer on the retain corpus, float64.
        kept: S.
        removed: P.
        ridge: ridge term of each unit, as a share of its own second moment.
        dtype: type in which the projection is stored.
        where: layer and unit kind, for the error.
        silent_UU: μ F, if what stands in is to keep silent on forget text.

    Raises:
        BrokenError: the system is not positive definite.
    """
    scale_U = moments_UU.diagonal().clamp(min=0.0).sqrt()
    inverse_U = torch.where(scale_U > 0, 1.0 / scale_U, 0.0)  # units that never fire stay out
    correlation_UU = moments_UU * inverse_U[:, None] * inverse_U[None, :]
    s, p = torch.tensor(kept, dtype=torch.long), torch.tensor(removed, dtype=torch.long)
    system_SS = correlation_UU[s][:, s]
    if silent_UU is not None:
        system_SS += silent_UU[s][:, s] * inverse_U[s][:, None] * inverse_U[s][None, :]
    system_SS = system_SS + ridge * torch.eye(len(s), dtype=torch.float64)
    system_SS.diagonal()[scale_U[s] == 0] = 1.0
    factor_SS, failed = torch.linalg.cholesky_ex(system_SS)
    if failed:
        raise BrokenError(
            "the retain second moments are not positive definite after adding the ridge",
            where=where,
            remedy="raise compensate.ridge or scoring.retain_tokens",
        )
    solution_SP = torch.cholesky_solve(correlation_UU[s][:, p], factor_SS)
    map_PS = solution_SP.T * scale_U[p][:, None] * inverse_U[s][None, :]
    return CompensationMap(tuple(kept), tuple(removed), map_PS.float(), dtype)
