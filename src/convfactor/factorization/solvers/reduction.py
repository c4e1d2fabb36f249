"""A problem brought to the span of one structure and to unit scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.problem import Problem


@dataclass(frozen=True, eq=False)
class Reduction:
    """Minimise ``tr((K - T) S (K - T)')`` over kernels ``K`` on the span; ``tr(T S T')`` is 1.

    Attributes:
        target: (groups, out, in * H * W), the best kernel on the span, scaled.
        covariance: (groups, in * H * W, in * H * W) of unit mean power, or None for white noise.
        scale: (groups,) what the target was divided by; 0 where nothing is to be matched.
        window: (H, W), the span.
    """

    target: Tensor
    covariance: Tensor | None
    scale: Tensor
    window: Pair

    @classmethod
    def of(cls, problem: Problem, structure: Structure, ridge: float = 0.0) -> Reduction:
        """Reduce a problem.

        Args:
            problem: The problem, its window at least the structure's span.
            structure: The structure to fill.
            ridge: White noise added to the input, relative to its mean power.
        """
        top, left = problem.placement(structure)
        height, width = structure.span
        whole = problem.target
        target = whole[..., top : top + height, left : left + width].flatten(2)
        covariance = problem.covariance
        if covariance is not None:
            inside = torch.zeros(whole.shape[2:], dtype=torch.bool, device=whole.device)
            inside[:, top : top + height, left : left + width] = True
            inside = inside.flatten()
            outside = whole.flatten(2)[..., ~inside]
            seen = covariance[:, inside][:, :, inside]
            if bool((outside != 0).any()):
                size = whole.abs().amax((1, 2, 3, 4)).clamp_min(torch.finfo(whole.dtype).tiny)
                shifted = (outside / size[:, None, None]) @ covariance[:, ~inside][:, :, inside]
                inverse = torch.linalg.pinv(seen, rtol=1e-12, hermitian=True)
                target = target + (shifted @ inverse) * size[:, None, None]
            mean = seen.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            eye = torch.eye(seen.shape[-1], dtype=seen.dtype, device=seen.device)
            covariance = torch.where(mean > 0, seen / mean, eye)
            if ridge:
                covariance = covariance + ridge * eye
        return cls(*_normalized(target, covariance), window=(height, width))

    def transposed(self, channels: int) -> Reduction:
        """White noise's problem for the transposed kernel, ``channels`` being those read."""
        taps = self.target.unflatten(2, (channels, -1)).transpose(1, 2)
        return replace(self, target=taps.flatten(2))

    def repeated(self, batch: int) -> Tensor:
        """Target of each row of a batch, starts before groups."""
        return self.target.repeat(batch // len(self.target), 1, 1)

    def weigh(self, kernels: Tensor) -> Tensor:
        """Multiply (batch, rows, in * H * W) by the covariance; starts before groups in batch."""
        if self.covariance is None:
            return kernels
        groups, size = self.covariance.shape[:2]
        rows: Tensor = kernels.unflatten(0, (-1, groups)).transpose(0, 1)
        weighed = rows.reshape(groups, -1, size) @ self.covariance
        return weighed.view(rows.shape).transpose(0, 1).reshape(kernels.shape)


def _normalized(target: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Divide each group's target by its power's root, in two steps for the sake of extremes."""
    peak = target.abs().amax((1, 2))
    target = target / torch.where(peak > 0, peak, 1.0)[:, None, None]
    weighed = target if covariance is None else target @ covariance
    power = (weighed * target).sum((1, 2)).clamp_min(0).sqrt()
    target = target / torch.where(power > 0, power, 1.0)[:, None, None]
    return target, covariance, peak * power
