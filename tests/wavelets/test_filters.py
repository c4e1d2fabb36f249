import subprocess
import sys

import numpy as np
import pytest
import pytorch_wavelets as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_wavelets.dtcwt import coeffs as tables
from pytorch_wavelets.dtcwt import lowlevel
from pytorch_wavelets.dtcwt.transform_funcs import orientations_to_highs

import convfactor
from convfactor.wavelets import synthesis_conv, synthesis_kernels
from convfactor.wavelets.banded import apply, beside, cut, layout
from convfactor.wavelets.banks import analysis_taps, level1_taps, synthesis_taps

BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")


def correlation(taps):
    return torch.tensor(np.asarray(taps).ravel()[::-1].copy(), dtype=torch.float64)


def prepared(taps):
    return correlation(taps).reshape(1, 1, -1, 1)


@pytest.mark.parametrize("biort", BIORTS)
def test_kernels_are_the_reference_s_impulse_responses(biort):
    kernels = synthesis_kernels(biort)
    _, low, _, high = tables.biort(biort)
    filters = {"l": prepared(low), "h": prepared(high)}
    impulse = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    impulse[..., 20, 20] = 1
    for name, kernel in kernels.items():
        # In pytorch_wavelets the first letter is the filter along the rows of the image.
        cols, rows = ("l", "h") if name == "hl" else ("h", "l") if name == "lh" else name
        response = lowlevel.rowfilter(lowlevel.colfilter(impulse, filters[cols]), filters[rows])
        height, width = kernel.shape
        top, left = 20 - height // 2, 20 - width // 2
        inside = response[0, 0, top : top + height, left : left + width].flip(0, 1)
        np.testing.assert_allclose(kernel, inside, rtol=0, atol=1e-15)
        assert kernel.dtype == np.float64
        assert abs(response.abs().sum() - np.abs(kernel).sum()) < 1e-12


def test_kernel_sizes():
    sizes = {name: kernel.shape for name, kernel in synthesis_kernels("near_sym_a").items()}
    assert sizes == {"ll": (7, 7), "lh": (5, 7), "hl": (7, 5), "hh": (5, 5)}


@pytest.mark.parametrize("biort", BIORTS)
def test_conv_is_level_one_in_zero_mode(biort):
    low, bands = torch.randn(2, 1, 20, 24), torch.randn(2, 1, 6, 10, 12, 2)
    lh, hl, hh = orientations_to_highs(*bands.unbind(-1), 2)
    conv = synthesis_conv(biort)
    expected = reference.DTCWTInverse(biort, mode="zero")((low, [bands]))
    with torch.no_grad():
        result = conv(torch.cat((low, lh, hl, hh), dim=1))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("biort", BIORTS)
def test_the_solver_factorizes_the_kernels_exactly(biort):
    kernel = synthesis_kernels(biort)["ll"]
    result = convfactor.factorize(kernel, tolerance=1e-6)
    assert result.met


@st.composite
def filters(draw):
    """A filter of any of the four forms, with random taps, and the samples that it takes."""
    form = draw(st.sampled_from(["level 1", "synthesis", "analysis"]))
    half = draw(st.integers(0 if form == "level 1" else 1, 12))
    taps = torch.randn(2, 2 * half + (form == "level 1"), dtype=torch.float64)
    highpass = draw(st.booleans())
    periods = draw(st.integers(1, 60))
    if form == "level 1":
        return level1_taps(taps[0], symmetric=draw(st.booleans())), periods
    make = synthesis_taps if form == "synthesis" else analysis_taps
    made = make(taps[0], taps[1], highpass)
    return made, made.cols * periods


@given(filters(), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_blocks_are_the_matrix(filtered, tile, more, transposed):
    taps, size = filtered
    matrix = taps.matrix(size)
    if transposed:
        matrix = matrix.T
    shape = layout(taps, tile, taps.reach + more, transposed)
    if shape.tiles(matrix.shape[1]) < 1:
        return
    blocks = cut(taps, shape, shape.tail(matrix.shape[1]), transposed)
    columns = torch.randn(2, matrix.shape[1], 3, dtype=torch.float64)
    expected = matrix @ columns
    torch.testing.assert_close(apply(blocks, [columns], -2), expected)
    rows = apply(beside([blocks, blocks]), [columns.mT, columns.mT], -1)
    torch.testing.assert_close(rows, 2 * expected.mT)


@pytest.mark.parametrize("size", [4, 8, 36])
@pytest.mark.parametrize("highpass", [False, True])
@pytest.mark.parametrize("qshift", ["qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32"])
def test_matrices_above_level_one(qshift, highpass, size):
    h0a, h0b, g0a, g0b, h1a, h1b, g1a, g1b = tables.qshift(qshift)
    identity = torch.eye(size, dtype=torch.float64)[None, None]
    a, b = (g1a, g1b) if highpass else (g0a, g0b)
    expected = lowlevel.colifilt(identity, prepared(b), prepared(a), highpass)[0, 0]
    result = synthesis_taps(correlation(a), correlation(b), highpass).matrix(size)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-15)
    a, b = (h1a, h1b) if highpass else (h0a, h0b)
    expected = lowlevel.coldfilt(identity, prepared(b), prepared(a), highpass)[0, 0]
    result = analysis_taps(correlation(a), correlation(b), highpass).matrix(size)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-15)


def test_pytorch_wavelets_is_read_but_not_imported():
    code = (
        "import sys; from convfactor.wavelets import DTCWTInverse; DTCWTInverse();"
        "sys.exit('pytorch_wavelets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_without_pytorch_wavelets(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install convfactor\[wavelets\]"):
        synthesis_kernels("near_sym_a")
    assert synthesis_kernels(([1], [1, 2, 1]))["hh"].shape == (3, 3)
