"""The preconditioner's gains against matrices written out, and its blocks against Gauss-Newton."""

from __future__ import annotations

import math

import pytest
import torch

from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers import spectral
from convfactor.factorization.solvers.composition import Composition, Layout
from convfactor.factorization.solvers.spectral import Gain, Hermitian, Preconditioner, Spectrum


def structure(groups: int, outputs: int = 6) -> Structure:
    return Structure(
        (
            StageShape(2, 6, (1, 1)),
            StageShape(6, outputs, (3, 2), groups=groups),
            StageShape(outputs, 4, (1, 3)),
        )
    )


def weights(layout: Layout, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, sum(layout.counts), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("outputs", [6, 12])
def test_gains_of_channels_kept_apart_are_those_of_the_matrix(outputs: int) -> None:
    layout = Layout.of(structure(6, outputs))
    point = Composition(layout, weights(layout))
    spectrum = Spectrum(None, 2, layout.grid.span, torch.device("cpu"))
    phase = spectrum.phases(layout, 1)
    own = Gain.of(point, 1, phase)
    taps = layout.dense(point.weights[1], 1).to(torch.complex128)
    written = Gain(torch.einsum("boiq,wq->bwoi", taps, phase), 0)
    before, after = (Gain.of(point, i, spectrum.phases(layout, i)) for i in (0, 2))
    power, seen = before.passed(None), after.seen_through(None)
    pairs = [
        (own.passed(power), written.passed(power)),
        (own.seen_through(seen), written.seen_through(seen)),
        (own.seen_through(None), written.seen_through(None)),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.whole(), other.whole())
        torch.testing.assert_close(one.diagonal(), other.diagonal())


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_matrices_are_the_same_in_parts_and_in_blocks(groups: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    root, scale = (
        torch.randn(size, generator=generator, dtype=torch.complex128)
        for size in ((2, 1, 6, 6), (2, 5, 6))
    )
    matrices = Hermitian(root @ root.mH).scaled(scale)
    diagonal = torch.diag_embed(scale)
    written = diagonal @ (root @ root.mH) @ diagonal.mH
    monkeypatch.setattr(spectral, "PART", 2 * 2 * 6 * 6)
    parts = list(matrices.parts(5))
    assert [part.shape[1] for _, part in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([part for _, part in parts], 1), written)
    blocks = matrices.blocks(groups)
    size = 6 // groups
    for i in range(2 * groups):
        at = slice(i % groups * size, (i % groups + 1) * size)
        torch.testing.assert_close(blocks.whole()[i], written[i // groups, :, at, at])
    torch.testing.assert_close(
        blocks.diagonal().to(written.dtype),
        blocks.whole().diagonal(dim1=-2, dim2=-1),
    )


@pytest.mark.parametrize("calibrated", [False, True])
def test_little_memory_makes_no_difference(calibrated: bool, monkeypatch) -> None:
    stages = (
        StageShape(6, 12, (1, 1), groups=2),
        StageShape(12, 12, (3, 1), groups=12),
        StageShape(12, 24, (2, 2), groups=12),
        StageShape(24, 8, (3, 2), groups=2),
        StageShape(8, 8, (2, 2), groups=4),
        StageShape(8, 10, (1, 1), groups=2),
    )
    layout = Layout.of(Structure(stages))
    flat = weights(layout, 4)
    values = weights(layout, 8)[4:]
    covariance = None
    if calibrated:
        size = 3 * math.prod(layout.grid.span)
        generator = torch.Generator().manual_seed(1)
        root = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
        covariance = root @ root.mT
    spectrum = Spectrum(covariance, 3, layout.grid.span, torch.device("cpu"))

    def applied() -> torch.Tensor:
        return Preconditioner(Composition(layout, flat), spectrum)(values)

    whole = applied()
    monkeypatch.setattr(spectral, "PART", 64)
    assert float((applied() - whole).norm()) < 1e-7 * float(whole.norm())  # ill-conditioned


@pytest.mark.parametrize("stage", [1, 2])
def test_blocks_of_single_channels_are_the_inverse_of_gauss_newton(stage: int) -> None:
    # Exact for white noise: the block of a stage with one output, and that of the last stage.
    layout = Layout.of(
        Structure((StageShape(1, 1, (2, 2)), StageShape(1, 1, (3, 3)), StageShape(1, 1, (2, 2))))
    )
    flat = weights(layout, 1)
    spectrum = Spectrum(None, 1, layout.grid.span, torch.device("cpu"))
    inverse = Preconditioner(Composition(layout, flat), spectrum)
    jacobian = torch.autograd.functional.jacobian(
        lambda values: Composition(layout, values).kernel.flatten(), flat
    )[:, 0]
    start = sum(layout.counts[:stage])
    own = slice(start, start + layout.counts[stage])
    block = jacobian[:, own].T @ jacobian[:, own]
    columns = []
    for column in torch.eye(layout.counts[stage], dtype=torch.float64):
        whole = torch.zeros_like(flat)
        whole[0, own] = column
        columns.append(inverse(whole)[0, own])
    product = torch.stack(columns) @ block
    spread = torch.linalg.eigvals(product).real
    assert float(spread.max() / spread.min()) < 1.01, spread


def test_the_shares_of_all_frequencies_are_one() -> None:
    for window in ((1, 1), (2, 3), (9, 9), (31, 1)):
        share = Spectrum(None, 1, window, torch.device("cpu")).share
        assert math.isclose(float(share.sum()), 1.0, rel_tol=1e-12)
