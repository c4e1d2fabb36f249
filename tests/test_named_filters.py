"""Named filters against those of other packages."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from convfactor import filters
from convfactor.wavelets import synthesis_kernels


@pytest.mark.parametrize(("size", "sigma"), [(9, 1.5), (4, 0.8), (1, 1.0), (7, None)])
def test_a_gaussian_is_that_of_scipy(size, sigma):
    row = scipy.signal.windows.gaussian(size, size / 6 if sigma is None else sigma)
    expected = np.outer(row, row) / row.sum() ** 2
    np.testing.assert_allclose(filters.gaussian(size, sigma), expected, rtol=1e-12)


def test_a_laplacian_of_a_gaussian_is_that_of_scipy():
    delta = np.zeros((13, 13))
    delta[6, 6] = 1
    found = scipy.ndimage.gaussian_laplace(delta, 1.4, mode="constant", truncate=6 / 1.4)
    np.testing.assert_allclose(filters.log(13, 1.4), found - found.mean(), atol=1e-12)


@pytest.mark.parametrize("phase", [0.0, 90.0, 30.0])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_a_gabor_filter_is_that_of_scikit_image(angle, phase):
    made = pytest.importorskip("skimage.filters").gabor_kernel(
        1 / 5, theta=math.radians(angle), sigma_x=2.0, sigma_y=4.0, n_stds=5,
        offset=math.radians(phase),
    )  # fmt: skip
    rows, cols = ((side - 11) // 2 for side in made.shape)
    expected = made.real[rows : rows + 11, cols : cols + 11]
    found = filters.gabor(11, wavelength=5, angle=angle, sigma=2, aspect=0.5, phase=phase)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_binomial_filter_is_a_power_of_the_mean_of_two(size):
    row = np.ones(1)
    for _ in range(size - 1):
        row = np.convolve(row, [0.5, 0.5])
    np.testing.assert_allclose(filters.binomial(size), np.outer(row, row), rtol=1e-12)


def test_a_wavelet_is_that_of_the_synthesis():
    pytest.importorskip("pytorch_wavelets")
    for band, kernel in synthesis_kernels("near_sym_a").items():
        assert np.array_equal(filters.wavelet("near_sym_a", band), kernel)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: filters.gaussian(0), "size must be a whole number of taps, 1 to 1023, got 0"),
        (lambda: filters.gaussian(9.0), "size must be a whole number"),
        (lambda: filters.gaussian(2000), "size must be a whole number"),
        (lambda: filters.gaussian(9, -1), "sigma must be above 0, got -1"),
        (lambda: filters.log(9, math.nan), "sigma must be a number, got nan"),
        (lambda: filters.gabor(9, wavelength=0), "wavelength must be above 0"),
        (lambda: filters.gabor(9, angle="x"), "angle must be a number, got 'x'"),
        (lambda: filters.make("gausian"), "got 'gausian'; did you mean gaussian?"),
        (lambda: filters.make("log", sgima=1), "only size, sigma; did you mean sigma?"),
        (lambda: filters.wavelet("near_sym_a", "xx"), "band must be one of ll, lh, hl, hh"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make()


def test_an_unknown_wavelet_names_those_that_are_alike():
    pytest.importorskip("pytorch_wavelets")
    with pytest.raises(ValueError, match=r"there are antonini.*did you mean.*near_sym_a"):
        filters.wavelet("near_sim_a", "ll")


def test_every_filter_is_made_of_its_defaults_alone():
    for name, make in filters.FILTERS.items():
        assert np.array_equal(filters.make(name), make())
        assert all(
            p.default is not inspect.Parameter.empty
            for p in inspect.signature(make).parameters.values()
        )
