"""Worst-case bounds against the norm of the convolution written out as a matrix."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.bounds import Bounds
from convfactor.conv.geometry import ConvGeometry
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.families import full

MODES = ("zeros", "reflect", "replicate", "circular")


def operator(
    kernel: Tensor,
    groups: int,
    geometry: ConvGeometry,
    size: tuple[int, int],
    origin: tuple[int, int] | None = None,
):
    """Write the padded convolution, zeros added up to a larger kernel, as a dense matrix.

    The kernel's corner lies ``origin`` taps from the original's, by default so that both share
    their centre.
    """
    images = torch.eye(geometry.in_channels * math.prod(size), dtype=torch.float64)
    x = images.view(-1, geometry.in_channels, *size)
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    x = F.pad(x, geometry.padding, mode=mode)
    more = [k - taps for k, taps in zip(kernel.shape[2:], geometry.kernel_size, strict=True)]
    before = [m // 2 for m in more] if origin is None else [-o for o in origin]
    (top, left), (dy, dx) = before, geometry.dilation
    rows, cols = (m - b for m, b in zip(more, before, strict=True))
    x = F.pad(x, (left * dx, cols * dx, top * dy, rows * dy))
    y = F.conv2d(x, kernel, None, geometry.stride, 0, geometry.dilation, groups)
    return y.flatten(1).T.numpy()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "groups", "padding", "stride"),
    [
        ((1, 1, 3, 3), 1, 1, 1),
        ((2, 3, 3, 3), 1, 1, 1),
        ((4, 1, 5, 5), 2, 2, 1),
        ((2, 2, 5, 3), 1, (2, 1), 1),
        ((1, 2, 1, 7), 1, (0, 3), 1),
        ((2, 1, 4, 4), 1, 1, 1),
        ((2, 1, 4, 2), 1, "same", 1),
        ((3, 2, 5, 5), 1, 2, 2),
        ((2, 2, 3, 3), 1, 0, 1),
        ((1, 1, 1, 1), 1, 0, 1),
        ((1, 1, 3, 3), 1, 3, 1),
    ],
)
def test_no_image_exceeds_the_bounds(mode: str, shape, groups: int, padding, stride: int) -> None:
    for seed, size in enumerate([(4, 4), (5, 7), (8, 6), (1, 4), (4, 1), (1, 1)]):
        kernel = draw(*shape, seed=seed)
        if seed % 2:
            kernel = kernel.abs()  # low frequencies are what padding repeats
        geometry = ConvGeometry.from_shape(
            kernel.shape, stride=stride, padding=padding, groups=groups, padding_mode=mode
        )
        bounds = Bounds.from_residual(kernel, groups, geometry)
        try:
            matrix = operator(kernel, groups, geometry, size)
        except RuntimeError:  # the image is smaller than its padding or the kernel
            continue
        assert np.linalg.norm(matrix, 2) <= bounds.spectral * (1 + 1e-12)
        assert np.abs(matrix).sum(1).max() <= bounds.l_inf * (1 + 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_bounds_are_close_on_larger_images(mode: str) -> None:
    kernel = draw(2, 2, 3, 5)
    geometry = ConvGeometry.from_shape(kernel.shape, padding=(1, 2), padding_mode=mode)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    matrix = operator(kernel, 1, geometry, (18, 18))
    slack = {"zeros": 1.2, "circular": 1.1, "reflect": 2.4, "replicate": 3}[mode]
    assert bounds.spectral <= slack * np.linalg.norm(matrix, 2)
    assert bounds.l_inf == pytest.approx(float(np.abs(matrix).sum(1).max()), rel=1e-12)


def test_residual_wider_than_the_kernel() -> None:
    kernel = draw(2, 1, 5, 7)
    for mode in MODES:
        geometry = ConvGeometry(1, 2, (3, 5), padding=(2, 2, 1, 1), padding_mode=mode)
        bounds = Bounds.from_residual(kernel, 1, geometry)
        assert math.isinf(bounds.spectral) == (mode != "zeros")
        matrix = operator(kernel, 1, geometry, (6, 6))
        assert np.linalg.norm(matrix, 2) <= bounds.spectral
        assert np.abs(matrix).sum(1).max() <= bounds.l_inf * (1 + 1e-12)


@pytest.mark.parametrize(
    ("mode", "padding", "gain"),
    [
        ("zeros", 9, 1),
        ("circular", 2, 1),
        ("circular", 3, math.inf),
        ("reflect", 2, 2),
        ("reflect", (0, 2), math.sqrt(2)),
        ("reflect", 3, math.inf),
        ("replicate", 2, 3),
        ("replicate", 4, 5),
        ("replicate", (1, 0), math.sqrt(2)),
        ("reflect", 0, 1),
    ],
)
def test_padding_costs_its_factor(mode: str, padding, gain: float) -> None:
    kernel = draw(2, 3, 5, 5)
    plain = Bounds.from_residual(kernel, 1, ConvGeometry.from_shape(kernel.shape))
    geometry = ConvGeometry.from_shape(kernel.shape, padding=padding, padding_mode=mode)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    assert bounds.spectral == pytest.approx(gain * plain.spectral)
    assert bounds.l_inf == plain.l_inf


@pytest.mark.parametrize("taps", [1, 2, 4, 5, 6, 9])
def test_grid_factor_covers_peaks_between_the_points(taps: int) -> None:
    # A row of ones turned to any frequency: its peak, known to be ``taps``, lies anywhere.
    positions = torch.arange(taps, dtype=torch.float64)
    for frequency in (0.0, 0.1, 1.3, 2.0, math.pi):
        wave = torch.exp(1j * frequency * positions)
        kernel = torch.stack([wave.real, wave.imag]).view(2, 1, 1, taps)
        fine = torch.fft.fft(kernel, n=4096).abs().square().sum(0).amax().sqrt()
        bound = Bounds.from_residual(kernel, 1, ConvGeometry.from_shape(kernel.shape)).spectral
        assert float(fine) <= bound * (1 + 1e-12)
        assert bound <= 1.05 * float(fine)


def test_scalar_kernel_and_zero_residual() -> None:
    kernel = torch.full((1, 1, 1, 1), -3.0, dtype=torch.float64)
    geometry = ConvGeometry.from_shape(kernel.shape)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    assert (bounds.l_inf, bounds.spectral) == pytest.approx((3, 3))
    reflect = ConvGeometry.from_shape(kernel.shape, padding=4, padding_mode="reflect")
    assert Bounds.from_residual(0 * kernel, 1, reflect) == Bounds(0.0, 0.0)


def test_many_channels_still_bound() -> None:
    kernel = draw(96, 64, 7, 7)
    geometry = ConvGeometry.from_shape(kernel.shape, padding=3)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    response = torch.fft.rfft2(kernel, s=(23, 23)).permute(2, 3, 0, 1)
    largest = float(torch.linalg.matrix_norm(response, 2).max())
    assert largest <= bounds.spectral <= 1.3 * largest


def test_refuses_another_layers_residual() -> None:
    geometry = ConvGeometry(4, 2, (3, 3), groups=2)
    with pytest.raises(ValueError, match="2 output and 4 input channels in 2 groups"):
        Bounds.from_residual(torch.zeros(2, 4, 3, 3), 2, geometry)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize(
    ("taps", "origin"),
    [
        ((5, 5), (0, 0)),
        ((7, 7), (-1, -1)),
        ((6, 5), (-1, 0)),
        ((5, 6), (0, 0)),
        ((3, 3), (0, 0)),
        ((3, 2), (2, 3)),
        ((3, 3), (-1, 1)),
        ((3, 3), (3, 0)),
    ],
)
def test_a_residual_lies_on_the_taps_of_its_kernel(mode, dilation, taps, origin) -> None:
    inside = all(o >= 0 and o + t <= 5 for o, t in zip(origin, taps, strict=True))
    for stride, padding in itertools.product((1, 2), (1, 2, 4, (3, 0))):
        original = draw(1, 1, 5, 5)
        geometry = ConvGeometry.from_shape(
            original.shape, stride=stride, padding=padding, dilation=dilation, padding_mode=mode
        )
        residual = draw(1, 1, *taps, seed=1).abs()
        bounds = Bounds.from_residual(residual, 1, geometry, origin)
        padded = [any(geometry.padding[2:]), any(geometry.padding[:2])]
        sticks = any(
            p and not (o >= 0 and o + t <= 5) for p, o, t in zip(padded, origin, taps, strict=True)
        )
        assert not (mode != "zeros" and sticks) or math.isinf(bounds.spectral)
        assert mode != "zeros" or math.isfinite(bounds.spectral)
        assert not inside or padding not in (1, 2) or math.isfinite(bounds.spectral)
        for size in ((4, 4), (5, 9), (13, 6)):
            try:
                matrix = operator(residual, 1, geometry, size, origin)
            except RuntimeError:  # the image is smaller than its padding or the kernel
                continue
            assert np.linalg.norm(matrix, 2) <= bounds.spectral * (1 + 1e-12)
            assert np.abs(matrix).sum(1).max() <= bounds.l_inf * (1 + 1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_cascade_that_spans_more_than_a_dilated_kernel_has_no_bound(mode, dilation) -> None:
    weight = draw(4, 2, 5, 5)
    geometry = ConvGeometry.from_shape(
        weight.shape, stride=2, padding=2 * dilation, dilation=dilation, padding_mode=mode
    )
    family = next(f for f in full(geometry) if f.structure(f.widths(1)).span == (7, 7))
    found = Factorizer(weight, geometry).solve(family.structure((4,)), "draft")
    assert found.residual.shape[2:] == (7, 7)
    assert found.origin == (-1, -1)
    assert math.isinf(found.bounds.spectral)
    assert found.bounds.l_inf == pytest.approx(float(found.residual.abs().sum((1, 2, 3)).max()))


def test_padding_that_crops_has_no_bound_but_in_zeros() -> None:
    kernel = draw(1, 1, 3, 3)
    for mode in MODES:
        for padding in ((-1, 1, 0, 0), (0, 0, 2, -1), (-3, -3, 0, 0)):
            geometry = ConvGeometry(1, 1, (3, 3), padding=padding, padding_mode=mode)
            bounds = Bounds.from_residual(kernel, 1, geometry)
            assert math.isinf(bounds.spectral) == (mode != "zeros")


@pytest.mark.parametrize("size", [1e-200, 1e-170, 1e170])
def test_squares_that_vanish_or_overflow_do_not_matter(size: float) -> None:
    for shape in ((2, 3, 3, 3), (1, 3, 3, 3)):
        kernel = draw(*shape)
        geometry = ConvGeometry.from_shape(kernel.shape)
        plain = Bounds.from_residual(kernel, 1, geometry)
        scaled = Bounds.from_residual(kernel * size, 1, geometry)
        assert scaled.spectral == pytest.approx(plain.spectral * size)
        assert scaled.l_inf == pytest.approx(plain.l_inf * size)


def test_very_many_channels_are_bounded_at_once(monkeypatch) -> None:
    kernel = draw(6, 2, 3, 3)
    geometry = ConvGeometry.from_shape(kernel.shape, groups=2)
    fine = Bounds.from_residual(kernel, 2, geometry)
    monkeypatch.setattr("convfactor.conv.bounds._MOST_EFFORT", 0)
    coarse = Bounds.from_residual(kernel, 2, geometry)
    assert fine.spectral <= coarse.spectral <= 3 * fine.spectral
    matrix = operator(kernel, 2, geometry, (9, 9))
    assert np.linalg.norm(matrix, 2) <= coarse.spectral
