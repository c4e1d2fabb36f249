from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.factorization.solvers import Request, separable, solve
from convfactor.factorization.solvers.chains import chain_structure
from convfactor.factorization.solvers.problem import Problem

WAVELETS = ["antonini", "legall", "near_sym_a", "near_sym_b"]


def relative(kernel: Tensor, cascade: Cascade) -> float:
    """Error of the composed kernel, by scipy and not by our own algebra."""
    composed = np.ones((1, 1))
    for stage in cascade.stages:
        composed = convolve2d(composed, stage.weight[0, 0].numpy())
    return float(np.linalg.norm(composed - kernel.numpy()) / np.linalg.norm(kernel.numpy()))


def single_precision(kernel: Tensor, cascade: Cascade) -> float:
    """Error of running the stages in float32 on noise with a mean."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, kernel.shape[0] + 40, kernel.shape[1] + 40)
    image = torch.randn(shape, generator=generator) + 1
    output = image
    for stage in cascade.to(torch.float32).stages:
        output = F.conv2d(output, stage.weight)
    exact = correlate(image[0, 0].double().numpy(), kernel.numpy(), "valid")
    return float(np.linalg.norm(output[0, 0].numpy() - exact) / np.linalg.norm(exact))


def gaussian(size: int, sigma: float) -> Tensor:
    taps = torch.exp(-((torch.arange(size) - (size - 1) / 2).double() ** 2) / (2 * sigma**2))
    return torch.outer(taps, taps)


@pytest.mark.parametrize("name", WAVELETS)
def test_wavelet_synthesis_kernels_split_exactly(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coeffs = pytest.importorskip("pytorch_wavelets.dtcwt.coeffs")
    filters = [torch.from_numpy(taps.ravel()).double() for taps in coeffs.biort(name)]
    for column in (filters[1], filters[3]):
        for row in (filters[1], filters[3]):
            kernel = torch.outer(column, row)
            cascade = separable.split(kernel)
            assert len(cascade.stages) == (max(kernel.shape) - 1) // 2
            assert all(max(stage.weight.shape) <= 3 for stage in cascade.stages)
            assert relative(kernel, cascade) <= 1e-12
            assert single_precision(kernel, cascade) <= 5e-7


@pytest.mark.parametrize("size", [11, 31, 51])
@pytest.mark.parametrize("width", [5, 6, 8, 16])
def test_gaussians_survive_single_precision(size: int, width: int) -> None:
    kernel = gaussian(size, size / width)
    cascade = separable.split(kernel)
    assert len(cascade.stages) == (size - 1) // 2
    assert relative(kernel, cascade) <= 1e-12
    assert single_precision(kernel, cascade) <= 1e-4


@pytest.mark.parametrize(
    "taps",
    [
        [1, 4, 6, 4, 1],
        [1, -4, 6, -4, 1],
        [1, 8, 28, 56, 70, 56, 28, 8, 1],
        [1, 0, 2, 0, 1],
        [0, 0, 1, 0, 0],
        [0, 1, 2, 1, 0],
        [0, 0, 3, 1, -1],
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, -1],
        [0, 0, 0, 0, 7],
        [1, 1e-9, 1, 1e9, 1],
        [1, 1, 1, 1, 1, 1],
        [1, -3, 3, -1],
        [0, 2, 0, 0],
        [5],
    ],
)
def test_repeated_roots_and_zeros_at_the_ends(taps: list[float]) -> None:
    column = torch.tensor(taps, dtype=torch.float64)
    for row in (column, column.flip(0), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)):
        kernel = torch.outer(column, row)
        assert relative(kernel, separable.split(kernel)) <= 1e-12


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.floats(-20, 20),
)
def test_random_separable_kernels(height: int, width: int, seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    column = torch.randn(height, generator=generator, dtype=torch.float64)
    row = torch.randn(width, generator=generator, dtype=torch.float64)
    kernel = torch.outer(column, row) * 10**exponent
    cascade = separable.split(kernel)
    assert cascade.structure.span == (height, width)
    assert len(cascade.stages) == max(1, height // 2, width // 2)
    assert relative(kernel, cascade) <= 1e-10


def test_even_sides_end_with_a_stage_of_two() -> None:
    kernel = torch.outer(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 2, 1, 0.5])).double()
    sizes = [stage.weight.shape[2:] for stage in separable.split(kernel).stages]
    assert sizes == [(3, 3), (2, 3)]


def test_given_sizes() -> None:
    kernel = gaussian(9, 2.0)
    sizes = [(1, 5), (3, 3), (5, 3), (3, 1)]
    cascade = separable.split(kernel, sizes)
    assert [tuple(stage.weight.shape[2:]) for stage in cascade.stages] == sizes
    assert relative(kernel, cascade) <= 1e-12


def test_order_keeps_the_rounding_small() -> None:
    kernel = gaussian(31, 31 / 8)
    cascade = separable.split(kernel)
    assert cascade.noise_gain() < 10
    responses = [float(stage.weight.sum() / stage.weight.norm()) for stage in cascade.stages]
    order = np.argsort(responses)
    shuffled = Cascade(tuple(cascade.stages[i] for i in order)).balanced()
    assert shuffled.noise_gain() > 100 * cascade.noise_gain()


def test_zeros() -> None:
    cascade = separable.split(torch.zeros(7, 5))
    assert cascade.structure.span == (7, 5)
    assert float(cascade.compose().abs().max()) == 0
    assert all(bool(stage.weight.isfinite().all()) for stage in cascade.stages)


def test_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    kernel = left @ right * 1e-200
    assert separable.rank(kernel, 1e-9) == 2
    assert separable.rank(kernel, 0.999) == 1
    assert separable.rank(torch.zeros(3, 3), 1e-9) == 0


def test_parallel_terms_of_depthwise_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(3, 2, 1, 7, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(3, 2, 1, 2, 7, generator=generator, dtype=torch.float64)
    problem = Problem(left @ right)
    structure = chain_structure(3, 2, [(3, 3)] * 3, branches=2)
    cascade = separable.solve(Request(problem, structure))
    assert cascade.structure == structure
    assert problem.error(cascade) <= 1e-12
    image = torch.randn(1, 3, 12, 12, generator=generator, dtype=torch.float64)
    output = image
    for stage in cascade.stages:
        output = F.conv2d(output, stage.weight, groups=stage.groups)
    exact = F.conv2d(image, problem.target.flatten(0, 1), groups=3)
    torch.testing.assert_close(output, exact)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_pairs_are_the_best_of_their_rank(
    height: int, width: int, terms: int, columns_first: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    problem = Problem(torch.randn(2, 3, 1, height, width, generator=generator).double())
    sizes = [(height, 1), (1, width)] if columns_first else [(1, width), (height, 1)]
    cascade = separable.solve(Request(problem, chain_structure(2, 3, sizes, terms)))
    composed = cascade.compose().numpy()[:, 0]
    for kernel, found in zip(problem.target.flatten(0, 2).numpy(), composed, strict=True):
        left, values, right = np.linalg.svd(kernel, full_matrices=False)
        best = (left[:, :terms] * values[:terms]) @ right[:terms]
        np.testing.assert_allclose(found, best, atol=1e-12)


@pytest.mark.parametrize("sizes", [[(5, 5), (1, 1)], [(1, 1), (5, 5)]])
def test_a_stage_that_holds_the_kernel_is_no_pair(sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    problem = Problem(torch.randn(1, 1, 1, 5, 5, generator=generator).double())
    cascade = solve(Request(problem, chain_structure(1, 1, sizes)))
    assert problem.error(cascade) <= 1e-10


@pytest.mark.parametrize(
    ("kernel", "sizes", "match"),
    [
        (torch.eye(5), None, "rank 1"),
        (torch.full((3, 3), torch.nan), None, "finite"),
        (torch.ones(5, 5), [(3, 3)], "span"),
        (torch.outer(torch.tensor([1.0, 0, 1]), torch.ones(3)), [(2, 3), (2, 1)], "real roots"),
    ],
)
def test_errors(kernel: Tensor, sizes: list[tuple[int, int]] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        separable.split(kernel, sizes)
