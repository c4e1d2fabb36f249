"""Kernels between many channels that few combinations of them make up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.request import Request

# With fewer channels a solve is quick; more combinations are not looked for.
_FEWEST, _MOST = 64, 32
# Share of a kernel's norm that either side may leave out: the rounding of single precision.
_LEFT_OUT = 1e-7


@dataclass(frozen=True, eq=False)
class Compression:
    """Orthonormal combinations of channels in which a kernel is all there is.

    White noise is the same in any orthonormal channels, so that the best cascade for the kernel
    between the combinations is, with them in its first and last stage, the best one for the whole.

    Attributes:
        outputs: (groups, out, R).
        inputs: (groups, in, S).
    """

    outputs: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, problem: Problem, structure: Structure) -> Compression | None:
        """Look for few combinations; None where there are none, or the metric is another.

        Args:
            problem: The problem.
            structure: What is to be solved for.
        """
        ends = {structure.stages[i].groups for i in (0, -1)}
        one = len(structure.stages) == 1  # least squares, which is quick
        if one or problem.covariance is not None or ends != {problem.groups}:
            return None
        allowed = min(2 * problem.rounding, _LEFT_OUT)
        peak = problem.target.abs().amax()  # squares of tiny weights would vanish
        target = problem.target / torch.where(peak > 0, peak, 1.0)
        rows, cols = target.flatten(2), target.transpose(1, 2).flatten(2)
        outputs, inputs = _basis(rows, allowed), _basis(cols, allowed)
        if outputs is None and inputs is None:
            return None
        return cls(_whole(rows) if outputs is None else outputs,
                   _whole(cols) if inputs is None else inputs)  # fmt: skip

    def request(self, request: Request) -> Request:
        """The request for the kernel between the combinations."""
        target = torch.einsum("goihw,gor,gis->grshw", request.problem.target, *self._both)
        return replace(
            request,
            problem=replace(request.problem, target=target),
            structure=self._structure(request.structure),
            starts=[self._moved(start, *self._both) for start in request.starts],
        )

    def chain(self, structure: Structure) -> Structure | None:
        """The narrowest structure within one between the combinations, where that is a chain."""
        groups = len(self.outputs)
        dense = all(stage.groups == groups for stage in structure.stages)
        if not dense or self.outputs.shape[2] * self.inputs.shape[2] > 1:
            return None
        stages = (replace(s, in_channels=groups, out_channels=groups) for s in structure.stages)
        return replace(structure, stages=tuple(stages))

    def expanded(self, cascade: Cascade) -> Cascade:
        """The cascade between all channels, of one between the combinations."""
        return self._moved(cascade, *(basis.mT for basis in self._both))

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.outputs, self.inputs

    def _structure(self, structure: Structure) -> Structure:
        """A structure between the combinations."""
        groups = len(self.outputs)
        first, *middle, last = structure.stages
        first = replace(first, in_channels=groups * self.inputs.shape[2])
        last = replace(last, out_channels=groups * self.outputs.shape[2])
        return replace(structure, stages=(first, *middle, last))

    def _moved(self, cascade: Cascade, outputs: Tensor, inputs: Tensor) -> Cascade:
        """Read a cascade's inputs, and write its outputs, in other channels."""
        stages, groups = list(cascade.stages), len(outputs)
        weight = stages[0].weight.to(inputs).unflatten(0, (groups, -1))
        weight = torch.einsum("goihw,gis->goshw", weight, inputs).flatten(0, 1)
        stages[0] = replace(stages[0], weight=weight)
        weight = stages[-1].weight.to(outputs).unflatten(0, (groups, -1))
        weight = torch.einsum("goihw,gor->grihw", weight, outputs).flatten(0, 1)
        stages[-1] = replace(stages[-1], weight=weight)
        return replace(cascade, stages=tuple(stages))


def _basis(matrices: Tensor, allowed: float) -> Tensor | None:
    """Orthonormal columns (groups, N, R) that span (groups, N, M), by a sketch of them.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011.
    """
    if matrices.shape[1] < _FEWEST:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(matrices.shape[2], _MOST, generator=generator, dtype=matrices.dtype)
    q, _ = torch.linalg.qr(matrices @ drawn.to(matrices.device))
    inner = q.mT @ matrices
    whole = matrices.flatten(1).norm(dim=1)
    missed = (matrices - q @ inner).flatten(1).norm(dim=1)
    if bool((missed > allowed * whole).any()):
        return None
    u, values, _ = torch.linalg.svd(inner, full_matrices=False)
    left = values.square().flip(1).cumsum(1).flip(1).sqrt()
    rank = int((left > allowed * whole[:, None]).sum(1).max())
    basis: Tensor = q @ u[..., : max(rank, 1)]
    return basis


def _whole(matrices: Tensor) -> Tensor:
    """All channels as they are, (groups, N, N)."""
    return torch.eye(matrices.shape[1]).to(matrices).expand(len(matrices), -1, -1)
