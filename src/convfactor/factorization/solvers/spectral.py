"""Preconditioner of the composed kernel's Gauss-Newton matrix, from stationary statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.blocks import diagonal_blocks
from convfactor.conv.geometry import Pair
from convfactor.factorization.solvers.composition import Composition, Layout

_FLOOR = 1e-9


class Spectrum:
    """Frequencies at which kernels of one window are looked at, and the input's power there.

    Stationary input with the mean covariance over all pairs of taps at one distance (Bartlett's
    estimate, so that no power is negative). White noise is represented exactly.

    Args:
        covariance: Float64 (groups, in*H*W, in*H*W), or None for white noise.
        channels: Number of input channels of a group.
        window: (H, W).
        device: Where to compute.
    """

    def __init__(
        self, covariance: Tensor | None, channels: int, window: Pair, device: torch.device
    ) -> None:
        """Transform the covariance."""
        height, width = window
        rows, cols = 2 * height - 1, 2 * width - 1
        dtype = torch.float64
        vertical = 2 * math.pi / rows * torch.arange(rows, dtype=dtype, device=device)
        horizontal = 2 * math.pi / cols * torch.arange(width, dtype=dtype, device=device)
        self.vertical = vertical.repeat_interleave(width)
        self.horizontal = horizontal.repeat(rows)
        share = torch.full((rows, width), 2 / (rows * cols), dtype=dtype, device=device)
        share[:, 0] /= 2
        self.share = share.flatten()
        self.power: Tensor | None = None
        if covariance is not None:
            lags = _lags(covariance, channels, window)
            power = torch.fft.rfft2(lags).conj().flatten(-2).permute(0, 3, 1, 2)
            self.power = (power + power.mH) / 2

    def phases(self, layout: Layout, stage: int) -> Tensor:
        """Phase (frequencies, kH * kW) of each tap of a stage."""
        (rows, cols), (y, x) = layout.grid.sizes[stage], layout.grid.spacings[stage]
        down = y * torch.arange(rows, dtype=torch.float64, device=self.share.device)[:, None]
        across = x * torch.arange(cols, dtype=torch.float64, device=self.share.device)
        angle = (
            self.vertical[:, None, None] * down + self.horizontal[:, None, None] * across
        ).flatten(1)
        return torch.polar(torch.ones_like(angle), -angle)


def _lags(covariance: Tensor, channels: int, window: Pair) -> Tensor:
    """Mean covariance per distance, (groups, in, in, 2H-1, 2W-1), negative distances wrapped."""
    height, width = window
    taps = covariance.view(-1, channels, height, width, channels, height, width)
    shape = (len(taps), channels, channels, 2 * height - 1, 2 * width - 1)
    lags = covariance.new_zeros(shape)
    for dy in range(height):
        for dx in range(-width + 1, width):
            first = taps[:, :, dy:, max(dx, 0) : width + min(dx, 0)]
            pairs = first[..., : height - dy, max(-dx, 0) : width - max(dx, 0)]
            diagonal = pairs.diagonal(dim1=2, dim2=5).diagonal(dim1=2, dim2=4)
            mean = diagonal.sum((-1, -2)) / (height * width)
            lags[..., dy, dx] = mean
            lags[..., -dy, -dx] = mean.mT
    return lags


@dataclass(frozen=True, eq=False)
class Gain:
    """What a stage does to its channels at each frequency.

    Attributes:
        values: (batch, frequencies, out, in); of a stage that keeps its channels apart, one factor
            for each output, (batch, frequencies, out).
        copies: Outputs for each input of a stage that keeps them apart; 0 for others.
    """

    values: Tensor
    copies: int

    @classmethod
    def of(cls, point: Composition, stage: int, phase: Tensor) -> Gain:
        """The gain of a stage, at the phases of its taps."""
        layout, weight = point.layout, point.weights[stage]
        if stage > 0 and layout.is_apart(stage):
            copies = layout.channels[stage + 1] // layout.channels[stage]
            return cls(phase @ weight.to(phase.dtype).mT, copies)
        taps = layout.dense(weight, stage).to(phase.dtype)
        return cls(torch.einsum("boiq,wq->bwoi", taps, phase), 0)

    def passed(self, power: Tensor | None) -> Tensor:
        """Power behind the stage, of the power (batch, frequencies, in, in) in front or of ones."""
        values = self.values
        if not self.copies:
            behind: Tensor = (values if power is None else values @ power) @ values.mH
            return behind
        assert power is not None
        power = power.repeat_interleave(self.copies, -1).repeat_interleave(self.copies, -2)
        return values[..., :, None] * power * values[..., None, :].conj()

    def seen_through(self, seen: Tensor | None) -> Tensor:
        """Gain from the stage's inputs to the output, of that from its outputs or of ones."""
        values = self.values
        if not self.copies:
            ahead: Tensor = values.mH @ (values if seen is None else seen @ values)
            return ahead
        if seen is None:
            own = (values * values.conj()).unflatten(-1, (-1, self.copies)).sum(-1)
            return torch.diag_embed(own)
        outer = values[..., :, None].conj() * values[..., None, :] * seen
        apart: Tensor = outer.unflatten(-1, (-1, self.copies)).unflatten(-3, (-1, self.copies))
        return apart.sum((-1, -3))


class Preconditioner:
    """One block per stage: the other stages held fixed, its least squares nearly solved.

    Stage ``i`` reads signals of spectrum ``P(w)`` (the input's, through the stages before) and is
    seen through the gain ``Q(w)`` of the stages after, so its block is
    ``sum_w Q(w) x (P(w) x e(w) e(w)*)``. In the eigenbasis of the mean over ``Q``'s trace the
    second factor is nearly diagonal at every frequency, which leaves one small matrix over the
    stage's outputs per eigenvector; of a depthwise stage the block is that mean. Kronecker-factored
    curvature (Martens and Grosse 2015; George et al. 2018) is the case of a single frequency.

    Args:
        point: Where the blocks are taken.
        spectrum: The input's, with one group per group of the batch (starts before groups).
        first: ``first`` of a point nearby, whose basis for the first stage is taken over: what that
            stage reads is always the same, and it is the costly one.

    Attributes:
        first: Basis of the first stage and the power along it, where it has one.
    """

    def __init__(
        self, point: Composition, spectrum: Spectrum, first: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Build the blocks."""
        layout = point.layout
        self._layout = layout
        share, size = spectrum.share, len(spectrum.share)
        phases = [spectrum.phases(layout, stage) for stage in range(layout.stages)]
        gains = [Gain.of(point, stage, phase) for stage, phase in enumerate(phases)]
        batch = len(point.weights[0])
        outer: list[Tensor | None] = [None]
        for gain in gains[:0:-1]:
            outer.append(gain.seen_through(outer[-1]))
        outer.reverse()
        alike = spectrum.power is None
        # All channels of white noise are alike, so the first stage needs one for them all.
        self._copies = [1] * layout.stages
        if spectrum.power is None:
            self._copies[0] = layout.channels[0] // layout.groups[0]
            power = torch.ones(batch, size, 1, 1, dtype=torch.complex128, device=share.device)
        else:
            power = spectrum.power.repeat(batch // len(spectrum.power), 1, 1, 1)
        self._bases: list[Tensor] = []
        self._inverses: list[Tensor] = []
        self.first: tuple[Tensor, Tensor] | None = None
        for stage, (gain, phase, seen) in enumerate(zip(gains, phases, outer, strict=True)):
            groups, sides = layout.groups[stage], layout.grid.sizes[stage]
            if stage == 0 and alike:
                own = power.repeat_interleave(groups, 0)
            else:
                own = _apart(power, groups)
            seen = None if seen is None else _apart(seen, groups)
            weighting = share.expand(len(own), size)
            if seen is not None:
                weighting = weighting * seen.diagonal(dim1=-2, dim2=-1).real.sum(-1)
            if seen is None or (layout.is_apart(stage) and seen.shape[-1] == 1):
                values, basis = torch.linalg.eigh(_covariance(own, phase, weighting, sides))
                floor = _FLOOR * values[:, -1:] + torch.finfo(values.dtype).tiny
                self._add(basis, 1 / (values.clamp_min(0) + floor)[:, None], batch)
            else:
                if stage == 0 and first is not None:
                    basis, strength = (known.flatten(0, 1) for known in first)
                else:
                    _, basis = torch.linalg.eigh(_covariance(own, phase, weighting, sides))
                    strength = _strength(basis, own, phase) * share[:, None]
                if stage == 0:
                    self.first = basis.unflatten(0, (batch, -1)), strength.unflatten(0, (batch, -1))
                parts = torch.view_as_real(seen)[..., 0].flatten(2)
                blocks = (strength.mT @ parts).unflatten(2, seen.shape[-2:])
                self._add(basis, _invert(blocks), batch)
            if stage + 1 < layout.stages:
                power = gain.passed(None if stage == 0 and alike else power)

    def _add(self, basis: Tensor, inverse: Tensor, batch: int) -> None:
        """Keep what belongs to a stage, rows of the batch first and its groups after them."""
        self._bases.append(basis.unflatten(0, (batch, -1)))
        self._inverses.append(inverse.unflatten(0, (batch, -1)))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self._bases = [basis[rows] for basis in self._bases]
        self._inverses = [inverse[rows] for inverse in self._inverses]
        if self.first is not None:
            self.first = self.first[0][rows], self.first[1][rows]

    def __call__(self, flat: Tensor) -> Tensor:
        """Apply to (batch, weights)."""
        parts = []
        blocks = zip(
            self._layout.split(flat), self._bases, self._inverses, self._copies, strict=True
        )
        for part, basis, inverse, copies in blocks:
            groups = basis.shape[1]
            rows = part.unflatten(2, (copies, -1)).unflatten(1, (groups, -1)).flatten(0, 1)
            basis, inverse = basis.flatten(0, 1), inverse.flatten(0, 1)
            turned = (rows.flatten(1, 2) @ basis).view(rows.shape)
            if inverse.ndim == 3:
                turned = turned * inverse[:, None]
            else:
                columns = turned.permute(0, 3, 1, 2).contiguous()
                turned = (inverse @ columns).permute(0, 2, 3, 1)
            parts.append((turned.flatten(1, 2) @ basis.mT).view(len(flat), -1))
        return torch.cat(parts, 1)


def _apart(values: Tensor, groups: int) -> Tensor:
    """Blocks of a stage's groups, (batch * groups, frequencies, k, k)."""
    return diagonal_blocks(values.movedim(1, -1), groups).movedim(-1, 2).flatten(0, 1)


def _covariance(power: Tensor, phase: Tensor, weighting: Tensor, sides: Pair) -> Tensor:
    """The stage's mean input covariance, (batch, in * kH * kW, in * kH * kW).

    The covariance of two taps depends on their distance only, of which there are far fewer.
    """
    channels = power.shape[-1]
    weighted = (weighting[..., None, None] * power).flatten(2)
    distances, index = _distances(phase, sides)
    covariance = (weighted.mT @ distances).real[..., index]
    covariance = covariance.unflatten(1, (channels, channels)).transpose(2, 3)
    square: Tensor = covariance.flatten(3).flatten(1, 2)
    return (square + square.mT) / 2


def _distances(phase: Tensor, sides: Pair) -> tuple[Tensor, Tensor]:
    """Phase of each distance between two taps, and which distance it is of (tap, tap)."""
    rows, cols = sides
    own = (phase * phase[:, :1].conj()).unflatten(1, sides)
    down, across = own[:, :, 0], own[:, 0, :]
    down = torch.cat([down[:, 1:].flip(1).conj(), down], 1)
    across = torch.cat([across[:, 1:].flip(1).conj(), across], 1)
    y = torch.arange(rows, device=phase.device).repeat_interleave(cols)
    x = torch.arange(cols, device=phase.device).repeat(rows)
    index = (y[:, None] - y + rows - 1) * (2 * cols - 1) + (x[:, None] - x + cols - 1)
    return (down[:, :, None] * across[:, None, :]).flatten(1), index


def _strength(basis: Tensor, power: Tensor, phase: Tensor) -> Tensor:
    """Power along each basis vector at each frequency, (batch, frequencies, in * kH * kW)."""
    taps = basis.unflatten(1, (power.shape[-1], -1)).to(torch.complex128)
    response = torch.einsum("bmqk,wq->bwkm", taps, phase)
    strength: Tensor = torch.linalg.vecdot(response, response @ power).real
    return strength


def _invert(blocks: Tensor) -> Tensor:
    """Invert symmetric (batch, k, out, out), lifted just enough to be definite."""
    outputs = blocks.shape[-1]
    mean = blocks.diagonal(dim1=-2, dim2=-1).sum(-1) / outputs
    floor = 1e-6 * mean + _FLOOR * mean.amax(1, keepdim=True) + torch.finfo(mean.dtype).tiny
    # Blocks of many channels are the largest of all values: no more copies than it takes.
    lifted = blocks + blocks.mT
    lifted /= 2
    lifted.diagonal(dim1=-2, dim2=-1).add_(floor[..., None])
    if outputs == 1:
        return 1 / lifted
    # MKL's batched LU fails, or never ends, on some sizes from 150 on.
    lifted = torch.linalg.cholesky_ex(lifted).L
    eye = torch.eye(outputs, dtype=blocks.dtype, device=blocks.device)
    root: Tensor = torch.linalg.solve_triangular(lifted, eye, upper=False)
    return root.mT @ root
