"""The filters with a band of their own for the diagonals, as dtcwt has them."""

import numpy as np
import pytest
import pytorch_wavelets as reference
import torch
from torch.autograd import gradcheck

from convfactor.wavelets import DTCWTForward, DTCWTInverse, synthesis_kernels

dtcwt = pytest.importorskip("dtcwt")

PAIRS = [
    ("near_sym_b_bp", "qshift_b_bp"),
    ("near_sym_b_bp", "qshift_a"),
    ("near_sym_a", "qshift_b_bp"),
]
SIZES = [(64, 48), (33, 50), (21, 17), (4, 6), (130, 70)]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close(result, expected):
    torch.testing.assert_close(result, torch.as_tensor(expected), rtol=0, atol=1e-12)


def complex_bands(bands):
    return torch.view_as_complex(bands).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("biort", "qshift"), PAIRS)
@pytest.mark.filterwarnings("ignore:The 'warn' function is deprecated")  # of logging, in dtcwt
def test_same_as_dtcwt(biort, qshift, levels, size):
    image = torch.randn(1, 1, *size)
    low, highs = DTCWTForward(biort, qshift, levels)(image)
    transform = dtcwt.Transform2d(biort, qshift)
    pyramid = transform.forward(image[0, 0].numpy(), levels)
    assert_close(low[0, 0], pyramid.lowpass)
    for bands, expected in zip(highs, pyramid.highpasses, strict=True):
        assert_close(torch.from_numpy(complex_bands(bands[0, 0])), expected)
    low, highs = torch.randn_like(low), [torch.randn_like(bands) for bands in highs]
    pyramid = dtcwt.Pyramid(low[0, 0].numpy(), tuple(complex_bands(b[0, 0]) for b in highs))
    assert_close(DTCWTInverse(biort, qshift)((low, highs))[0, 0], transform.inverse(pyramid))


@pytest.mark.parametrize("direction", [DTCWTForward, DTCWTInverse])
def test_they_differ_from_the_filters_without_band(direction):
    coeffs = DTCWTForward()(torch.randn(1, 1, 32, 32))
    given = coeffs if direction is DTCWTInverse else coeffs[0]
    plain, band = direction("near_sym_b"), direction("near_sym_b_bp")
    one, other = plain(given), band(given)
    if direction is DTCWTForward:
        one, other = one[1][0][:, :, 1], other[1][0][:, :, 1]
    assert (one - other).norm() > 0.1 * one.norm()


def test_pytorch_wavelets_does_not_take_them():
    """So no swap can meet them: from_module sees filters of four names."""
    for kind in (reference.DTCWTForward, reference.DTCWTInverse):
        with pytest.raises(ValueError, match="too many values"):
            kind(biort="near_sym_b_bp")
        with pytest.raises(ValueError, match="too many values"):
            kind(qshift="qshift_b_bp")


def test_filters_given_by_hand_and_their_buffers():
    named = DTCWTInverse("near_sym_b_bp", "qshift_b_bp")
    names = ["g0o", "g1o", "g2o", "g0a", "g0b", "g1a", "g1b", "g2a", "g2b"]
    assert list(named.state_dict()) == names
    taps = [buffer.flip(2) for buffer in named.state_dict().values()]
    given = DTCWTInverse(taps[:3], taps[3:])
    coeffs = DTCWTForward(J=2)(torch.randn(1, 2, 40, 40))
    assert torch.equal(given(coeffs), named(coeffs))
    other = DTCWTInverse("near_sym_b_bp", "qshift_b_bp")
    other.load_state_dict({name: 1.5 * one for name, one in named.state_dict().items()})
    assert (other(coeffs) - named(coeffs)).norm() > 0.1 * named(coeffs).norm()
    with pytest.raises(RuntimeError, match="g2o"):
        DTCWTInverse("near_sym_b", "qshift_b_bp").load_state_dict(named.state_dict())


@pytest.mark.parametrize("mode", ["symmetric", "zero"])
@pytest.mark.parametrize("whole", [0, 100])
def test_gradients(mode, whole):
    analysis = DTCWTForward("near_sym_b_bp", "qshift_b_bp", J=2, mode=mode)
    synthesis = DTCWTInverse("near_sym_b_bp", "qshift_b_bp", mode=mode)
    for module in (analysis, synthesis):
        module.retile(module.sizes._replace(tile=4, whole=whole))
    image = torch.randn(1, 1, 12, 8, requires_grad=True)

    def there(image):
        low, highs = analysis(image)
        return low, *highs

    assert gradcheck(there, image, fast_mode=True)
    leaves = [part.detach().requires_grad_() for part in there(image)]
    assert gradcheck(lambda low, *highs: synthesis((low, highs)), leaves, fast_mode=True)


def test_zero_mode_is_the_kernels():
    kernels = synthesis_kernels("near_sym_b_bp")
    band = dtcwt.coeffs.biort("near_sym_b_bp")[5].ravel()
    np.testing.assert_allclose(kernels["hh"], np.outer(band[::-1], band[::-1]))
    np.testing.assert_allclose(kernels["lh"], synthesis_kernels("near_sym_b")["lh"])


def test_counts_of_filters():
    with pytest.raises(ValueError, match=r"2 filters \(g0o, g1o\), or 3 .*\(g2o\); got 4"):
        DTCWTInverse(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"4 filters .* or 6 .*\(h2a, h2b\); got 5"):
        DTCWTForward(qshift=np.ones((5, 4)))
