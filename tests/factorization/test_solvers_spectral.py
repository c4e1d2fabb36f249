"""The preconditioner's gains against matrices written out, and its blocks against Gauss-Newton."""

from __future__ import annotations

import math

import pytest
import torch

from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers.composition import Composition, Layout
from convfactor.factorization.solvers.spectral import Gain, Preconditioner, Spectrum


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
    torch.testing.assert_close(own.passed(power), written.passed(power))
    torch.testing.assert_close(own.seen_through(seen), written.seen_through(seen))
    torch.testing.assert_close(own.seen_through(None), written.seen_through(None))


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
