"""Preconditioner of the composed kernel's Gauss-Newton matrix, from stationary statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.blocks import diagonal_blocks
from convfactor.conv.geometry import Pair
from convfactor.factorization.solvers.composition import Composition, Layout

_FLOOR = 1e-9
# Values made at a time where those of all frequencies, or of all blocks, would take much memory.
PART = 1 << 22


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
class Hermitian:
    """Hermitian matrices at every frequency, ``diag(scale) core diag(scale)*``.

    Stages that keep their channels apart change the scale alone, so that however many of them
    share one core.

    Attributes:
        core: (batch, frequencies, k, k), or of one frequency where all are alike.
        scale: (batch, frequencies, k); None for ones.
    """

    core: Tensor
    scale: Tensor | None = None

    @property
    def channels(self) -> int:
        """How many, k."""
        return self.core.shape[-1]

    def scaled(self, values: Tensor) -> Hermitian:
        """The matrices between two diagonal ones, of (batch, frequencies, k) and its conjugate."""
        return Hermitian(self.core, values if self.scale is None else self.scale * values)

    def diagonal(self) -> Tensor:
        """Their real diagonals, (batch, frequencies or 1, k)."""
        own = self.core.diagonal(dim1=-2, dim2=-1).real
        return own if self.scale is None else own * (self.scale * self.scale.conj()).real

    def whole(self, at: slice = slice(None)) -> Tensor:
        """The matrices at some frequencies, or one where all are alike."""
        core = self.core if self.core.shape[1] == 1 else self.core[:, at]
        if self.scale is None:
            return core
        scale = self.scale[:, at]
        product: Tensor = scale[..., :, None] * core * scale[..., None, :].conj()
        return product

    def parts(self, frequencies: int) -> Iterator[tuple[slice, Tensor]]:
        """The matrices of some frequencies after the other, (batch, part, k, k), and which."""
        step = frequencies
        if self.scale is not None or self.core.shape[1] < frequencies:
            step = max(1, PART // self.core[:, 0].numel())
        for start in range(0, frequencies, step):
            at = slice(start, min(start + step, frequencies))
            yield at, self.whole(at).expand(-1, at.stop - at.start, -1, -1)

    def blocks(self, groups: int) -> Hermitian:
        """Their blocks of groups of channels, rows of the batch first and groups after them."""
        if groups == 1:
            return self
        if groups == self.channels:
            own = self.diagonal().mT.flatten(0, 1)[..., None, None]
            return Hermitian(own.to(self.core.dtype))
        apart = diagonal_blocks(self.whole().movedim(1, -1), groups)
        return Hermitian(apart.movedim(-1, 2).flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Gain:
    """What a stage does to its channels at each frequency.

    Attributes:
        values: (batch, frequencies, out, in), of one frequency for a stage of one tap; of a stage
            that keeps its channels apart, one factor for each output, (batch, frequencies, out).
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
        if phase.shape[1] == 1:
            phase = phase[:1]
        return cls(torch.einsum("boiq,wq->bwoi", taps, phase), 0)

    def passed(self, power: Hermitian | None) -> Hermitian:
        """Power behind the stage, of that in front or of ones."""
        values = self.values
        if not self.copies:
            ahead = values if power is None else values @ power.whole()
            return Hermitian(ahead @ values.mH)
        assert power is not None
        if self.copies > 1:
            whole = power.whole().repeat_interleave(self.copies, -1)
            power = Hermitian(whole.repeat_interleave(self.copies, -2))
        return power.scaled(values)

    def seen_through(self, seen: Hermitian | None) -> Hermitian:
        """Gain from the stage's inputs to the output, of that from its outputs or of ones."""
        values = self.values
        if not self.copies:
            behind = values if seen is None else seen.whole() @ values
            return Hermitian(values.mH @ behind)
        if seen is None:
            own = (values * values.conj()).real.unflatten(-1, (-1, self.copies)).sum(-1)
            eye = torch.eye(own.shape[-1], dtype=values.dtype, device=values.device)
            return Hermitian(eye.expand(len(values), 1, -1, -1), own.sqrt().to(values.dtype))
        seen = seen.scaled(values.conj())
        if self.copies == 1:
            return seen
        apart = seen.whole().unflatten(-1, (-1, self.copies)).unflatten(-3, (-1, self.copies))
        return Hermitian(apart.sum((-1, -3)))


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
        outer: list[Hermitian | None] = [None]
        for gain in gains[:0:-1]:
            outer.append(gain.seen_through(outer[-1]))
        outer.reverse()
        alike = spectrum.power is None
        # All channels of white noise are alike, so the first stage needs one for them all.
        self._copies = [1] * layout.stages
        if spectrum.power is None:
            self._copies[0] = layout.channels[0] // layout.groups[0]
            ones = torch.ones(batch, 1, 1, 1, dtype=torch.complex128, device=share.device)
            power = Hermitian(ones)
        else:
            power = Hermitian(spectrum.power.repeat(batch // len(spectrum.power), 1, 1, 1))
        self._bases: list[Tensor] = []
        self._inverses: list[Tensor] = []
        self.first: tuple[Tensor, Tensor] | None = None
        for stage, (gain, phase, seen) in enumerate(zip(gains, phases, outer, strict=True)):
            groups, sides = layout.groups[stage], layout.grid.sizes[stage]
            if stage == 0 and alike:
                own = Hermitian(power.core.repeat_interleave(groups, 0))
            else:
                own = power.blocks(groups)
            seen = None if seen is None else seen.blocks(groups)
            weighting = share.expand(batch * groups, size)
            if seen is not None:
                weighting = weighting * seen.diagonal().sum(-1)
            if seen is None or (layout.is_apart(stage) and seen.channels == 1):
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
                self._add(basis, _invert(_blocks(strength, seen)), batch)
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


def _covariance(power: Hermitian, phase: Tensor, weighting: Tensor, sides: Pair) -> Tensor:
    """The stage's mean input covariance, (batch, in * kH * kW, in * kH * kW).

    The covariance of two taps depends on their distance only, of which there are far fewer.
    """
    channels = power.channels
    distances, index = _distances(phase, sides)
    parts = (
        ((weighting[:, at, None, None] * part).flatten(2).mT @ distances[at]).real
        for at, part in power.parts(len(phase))
    )
    covariance = functools.reduce(torch.add, parts)[..., index]
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


def _strength(basis: Tensor, power: Hermitian, phase: Tensor) -> Tensor:
    """Power along each basis vector at each frequency, (batch, frequencies, in * kH * kW)."""
    taps = basis.unflatten(1, (power.channels, -1)).to(torch.complex128)
    step = max(1, PART // taps[:, :, 0].numel())
    strengths = []
    for start in range(0, len(phase), step):
        at = slice(start, start + step)
        response = torch.einsum("bmqk,wq->bwkm", taps, phase[at])
        strengths.append(torch.linalg.vecdot(response, response @ power.whole(at)).real)
    return torch.cat(strengths, 1)


def _blocks(strength: Tensor, seen: Hermitian) -> Tensor:
    """Sum what is seen by the strength of each basis vector, (batch, in * kH * kW, out, out)."""
    parts = (
        strength[:, at].mT @ torch.view_as_real(part)[..., 0].flatten(2)
        for at, part in seen.parts(strength.shape[1])
    )
    blocks: Tensor = functools.reduce(torch.add, parts).unflatten(2, (seen.channels, -1))
    return blocks


def _invert(blocks: Tensor) -> Tensor:
    """Invert symmetric (batch, k, out, out), lifted just enough to be definite, in their place."""
    outputs = blocks.shape[-1]
    mean = blocks.diagonal(dim1=-2, dim2=-1).sum(-1) / outputs
    floor = 1e-6 * mean + _FLOOR * mean.amax(1, keepdim=True) + torch.finfo(mean.dtype).tiny
    eye = torch.eye(outputs, dtype=blocks.dtype, device=blocks.device)
    # Blocks of many channels are the largest of all values: no more copies than it takes.
    step = max(1, PART // blocks[:, 0].numel())
    for some, own in zip(blocks.split(step, 1), floor.split(step, 1), strict=True):
        lifted = (some + some.mT) / 2
        lifted.diagonal(dim1=-2, dim2=-1).add_(own[..., None])
        if outputs == 1:
            some.copy_(1 / lifted)
            continue
        # MKL's batched LU fails, or never ends, on some sizes from 150 on.
        factor = torch.linalg.cholesky_ex(lifted).L
        root = torch.linalg.solve_triangular(factor, eye, upper=False)
        some.copy_(root.mT @ root)
    return blocks
