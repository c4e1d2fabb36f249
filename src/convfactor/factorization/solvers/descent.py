"""Preconditioned limited-memory quasi-Newton descent of several starts at once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from convfactor.factorization.solvers.composition import Composition, Layout
from convfactor.factorization.solvers.reduction import Reduction
from convfactor.factorization.solvers.spectral import Preconditioner, Spectrum

_MEMORY = 10
_EARLY = (2, 5, 10, 15)
_REFRESH = 25
_ARMIJO = 1e-4


class Descent:
    """L-BFGS whose initial inverse Hessian is the spectral preconditioner, renewed now and then.

    Every row of the batch is its own minimisation. An iteration evaluates each once: a row whose
    error did not fall enough (Armijo) shortens its step, the others go on.

    Args:
        layout: The cascades' layout.
        reduction: What to match.
        flat: Float64 (starts * groups, weights), starts before groups; rows that are not finite
            count as zero.
    """

    def __init__(self, layout: Layout, reduction: Reduction, flat: Tensor) -> None:
        """Evaluate the starts."""
        self._layout, self._reduction = layout, reduction
        self.groups = len(reduction.target)
        self._spectrum = Spectrum(
            reduction.covariance, layout.channels[0], reduction.window, flat.device
        )
        self.flat = torch.where(flat.isfinite().all(1, keepdim=True), flat, 0.0)
        self.loss, self._gradient, _ = self._evaluate(self.flat)
        self._iteration = 0
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale = flat.new_full((len(flat), 1), 0.5)
        self._length = flat.new_ones(len(flat), 1)

    @functools.cached_property
    def _inverse(self) -> Preconditioner:
        """The first preconditioner; it costs as much as many steps, and none may be left."""
        return Preconditioner(Composition(self._layout, self.flat), self._spectrum)

    @functools.cached_property
    def _direction(self) -> Tensor:
        """The first direction."""
        return self._turn()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.flat, self.loss, self._gradient = (
            values[rows] for values in (self.flat, self.loss, self._gradient)
        )
        self._scale, self._length, self._direction = (
            values[rows] for values in (self._scale, self._length, self._direction)
        )
        self._pairs = [(s[rows], y[rows], r[rows]) for s, y, r in self._pairs]
        self._inverse.keep(rows)

    def step(self) -> None:
        """Try one step in every row."""
        trial = self.flat + self._length * self._direction
        loss, gradient, point = self._evaluate(trial)
        slope = _dot(self._gradient, self._direction)
        before = self.loss[:, None]
        enough = loss[:, None] <= before + _ARMIJO * self._length * slope
        change = torch.where(enough, trial - self.flat, 0.0)
        bend = torch.where(enough, gradient - self._gradient, 0.0)
        self.flat = torch.where(enough, trial, self.flat)
        self._gradient = torch.where(enough, gradient, self._gradient)
        self.loss = torch.where(enough[:, 0], loss, self.loss)
        fitted = -slope * self._length / (2 * (loss[:, None] - before - slope * self._length))
        shorter = self._length * fitted.nan_to_num(0.1).clamp(0.1, 0.5)
        stuck = ~enough & (shorter < 1e-6)
        self._remember(change, bend, stuck)
        self._iteration += 1
        if self._iteration in _EARLY or self._iteration % _REFRESH == 0:
            if not bool(enough.all()):
                point = Composition(self._layout, self.flat)
            first = self._inverse.first if self._iteration > 2 * _REFRESH else None
            del self._inverse  # two at once would take twice the memory
            self._inverse = Preconditioner(point, self._spectrum, first)
        self._length = torch.where(enough | stuck, 1.0, shorter)
        self._direction = torch.where(enough | stuck, self._turn(), self._direction)

    def _evaluate(self, flat: Tensor) -> tuple[Tensor, Tensor, Composition]:
        """Squared error, its gradient, and the composition they come from."""
        point = Composition(self._layout, flat)
        residual = point.kernel - self._reduction.repeated(len(flat))
        weighed = self._reduction.weigh(residual)
        return (weighed * residual).sum((1, 2)), 2 * point.pull(weighed), point

    def _remember(self, change: Tensor, bend: Tensor, stuck: Tensor) -> None:
        """Store a pair of differences where the curvature is positive; forget stuck rows'."""
        curvature = _dot(change, bend)
        size = change.norm(dim=1, keepdim=True) * bend.norm(dim=1, keepdim=True)
        inverse = torch.where(curvature > 1e-12 * size, 1 / curvature, 0.0)
        self._pairs.append((change, bend, inverse))
        del self._pairs[:-_MEMORY]
        if bool(stuck.any()):
            self._pairs = [(s, y, torch.where(stuck, 0.0, r)) for s, y, r in self._pairs]
        seen = _dot(bend, self._inverse(bend))
        self._scale = torch.where((inverse > 0) & (seen > 0), curvature / seen, self._scale)

    def _turn(self) -> Tensor:
        """Direction of descent by the two-loop recursion (Nocedal 1980)."""
        result = self._gradient.clone()
        shares = []
        for change, bend, inverse in reversed(self._pairs):
            share = inverse * _dot(change, result)
            result.addcmul_(share, bend, value=-1)
            shares.append(share)
        result = self._scale * self._inverse(result)
        for (change, bend, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            result.addcmul_(share - inverse * _dot(bend, result), change)
        return -result


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of the rows, (batch, 1)."""
    products: Tensor = torch.linalg.vecdot(first, second, dim=1)
    return products[:, None]
