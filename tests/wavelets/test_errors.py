"""What a transform does not take gets one clear error."""

import numpy as np
import pytest
import torch
from torch import nn

from convfactor.wavelets import DTCWTForward, DTCWTInverse

LOW = torch.zeros(1, 1, 8, 8)
BANDS = torch.zeros(1, 1, 6, 4, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"J": -1}, ValueError, "J must be 0 or more levels, got -1"),
        ({"J": 2.0}, TypeError, "J must be an integer, got 2.0"),
        ({"J": True}, TypeError, "J must be an integer, got True"),
        ({"o_dim": "2"}, TypeError, "o_dim must be an integer, got '2'"),
        ({"ri_dim": None}, TypeError, "ri_dim must be an integer, got None"),
        ({"ri_dim": -7}, ValueError, "ri_dim must lie in -6..5, got -7"),
        ({"mode": ["zero"]}, ValueError, r"mode must be one of .* got \['zero'\]"),
        ({"biort": 5}, TypeError, "biort is a name or 2 filters, got int"),
        ({"qshift": None}, TypeError, "qshift is a name or 4 filters, got NoneType"),
        ({"biort": (np.ones((3, 3)), np.ones(3))}, ValueError, "biort needs filters of one dim"),
        ({"biort": (["a"], [1.0])}, ValueError, "biort needs filters of one dim"),
        ({"biort": ([1j], [1.0])}, ValueError, "real numbers: got complex128"),
        ({"biort": ([], [])}, ValueError, "biort needs filters of odd length"),
        ({"qshift": "near_sym_a2", "biort": "farras"}, ValueError, "biort='farras' does not def"),
    ],
)
@pytest.mark.parametrize("kind", [DTCWTForward, DTCWTInverse])
def test_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", ["skip_hps", "include_scale"])
def test_answers_for_levels(name):
    for given in ("yes", [True, 2, False], 5, None):
        with pytest.raises(TypeError, match=f"{name} must be True or False, or a list"):
            DTCWTForward(**{name: given})
    with pytest.raises(ValueError, match=f"{name} needs one answer for each of 3 levels, got 4"):
        DTCWTForward(**{name: [False] * 4})
    for given in (np.array([True, False, True]), (1, 0, 1), iter([True, False, True])):
        assert getattr(DTCWTForward(**{name: given}), name) == (True, False, True)


IMAGES = [
    (np.zeros((1, 1, 8, 8)), TypeError, "x must be a tensor, got ndarray"),
    ([[1.0]], TypeError, "x must be a tensor, got list"),
    (torch.zeros(1, 8, 8), ValueError, r"got \(1, 8, 8\): add the batch by x.unsqueeze\(0\)"),
    (torch.zeros(8, 8), ValueError, r"x must have 4 dimensions \(N, C, H, W\), got \(8, 8\)"),
    (torch.zeros(1, 1, 1, 8, 8), ValueError, "x must have 4 dimensions"),
    (torch.zeros(1, 1, 0, 8), ValueError, r"x must have at least one pixel, got \(1, 1, 0, 8\)"),
    (LOW.to(torch.uint8), TypeError, r"x is torch.uint8, but .* convert by x.to\(torch.float32\)$"),
    (LOW.bool(), TypeError, "x is torch.bool, but the filters are torch.float32"),
    (LOW.double(), TypeError, r"x.to\(torch.float32\) or module.to\(torch.float64\)"),
    (LOW.half(), TypeError, "x is torch.float16, but the filters are torch.float32"),
    (LOW.to(torch.complex64), TypeError, "x is torch.complex64, but the filters"),
    (LOW.to("meta"), ValueError, r"x is on meta, but the filters are on cpu: move one, by x.to"),
    (LOW.to_sparse(), TypeError, r"x must be a dense tensor, got a torch.sparse_coo one: use x.to"),
]


@pytest.mark.parametrize(("image", "error", "message"), IMAGES)
def test_images(image, error, message):
    with pytest.raises(error, match=message):
        DTCWTForward()(image)


COEFFICIENTS = [
    (LOW, TypeError, r"coeffs must be the pair \(yl, yh\), got a Tensor: pass both"),
    ((LOW,), TypeError, "got a tuple of 1"),
    ((LOW, [BANDS], []), TypeError, "got a tuple of 3"),
    (None, TypeError, "got a NoneType"),
    ((LOW, BANDS), TypeError, r"yh must be a list .* got a Tensor: pass \[yh\]"),
    (([LOW, LOW], [BANDS]), TypeError, r"yl must be one tensor, got a list of 2: pass .* yl\[-1\]"),
    ((LOW.numpy(), [BANDS]), TypeError, "yl must be a tensor, got ndarray"),
    ((LOW[0], [BANDS]), ValueError, r"got \(1, 8, 8\): add the batch by yl.unsqueeze\(0\)"),
    ((LOW.long(), [BANDS]), TypeError, "yl is torch.int64, but the filters are torch.float32"),
    ((LOW.double(), [BANDS]), TypeError, "yl is torch.float64, but the filters"),
    ((LOW, [BANDS.double()]), TypeError, r"yh\[0\] is torch.float64, but the filters"),
    ((LOW, [BANDS.numpy()]), TypeError, r"yh\[0\] must be a tensor, got ndarray"),
    ((LOW, ["bands"]), TypeError, r"yh\[0\] must be a tensor, got str"),
    ((LOW, [torch.view_as_complex(BANDS)]), TypeError, r"by torch.view_as_real\(yh\[0\]\)"),
    ((LOW, [None, BANDS.to("meta")]), ValueError, r"yh\[1\] is on meta, but the filters"),
    ((LOW.to("meta"), [BANDS]), ValueError, "yl is on meta, but the filters are on cpu"),
    ((LOW, [BANDS[0]]), ValueError, r"yh\[0\]: bands of level 1 must have 6 dimensions"),
    ((LOW, [BANDS[:, :, :5]]), ValueError, r"6 orientations in dimension 2 .* got \(1, 1, 5"),
    ((LOW, [BANDS[..., :1]]), ValueError, "real and imaginary parts in 5"),
    ((LOW, [BANDS[:, :, :, :2]]), ValueError, r"yh\[0\]: the bands of level 1 ask for .* 4 x 8"),
    ((LOW, [BANDS[:, :, :, :0]]), ValueError, r"yh\[0\] must have at least one coefficient"),
    ((LOW[:, :, :0], [BANDS]), ValueError, "yl must have at least one pixel"),
    ((LOW.expand(2, 1, 8, 8), [BANDS]), ValueError, r"yh\[0\]: .* batch and channels \(1, 1\)"),
    ((LOW[:, :, :7], [None, None]), ValueError, "without bands level 2 needs a lowpass of even"),
]


@pytest.mark.parametrize(("coeffs", "error", "message"), COEFFICIENTS)
def test_coefficients(coeffs, error, message):
    with pytest.raises(error, match=message):
        DTCWTInverse()(coeffs)


def test_levels_of_the_inverse():
    """The original notebook gives J to the inverse, which pytorch_wavelets 1.3.0 does not take."""
    module = DTCWTInverse(J=1, biort="near_sym_b", qshift="qshift_b")
    plain = DTCWTInverse("near_sym_b", "qshift_b")
    coeffs = (torch.randn(1, 1, 8, 8), [torch.randn(1, 1, 6, 4, 4, 2)])
    assert torch.equal(module(coeffs), plain(coeffs))
    assert torch.equal(module((coeffs[0], [None])), plain((coeffs[0], [None])))
    assert "J=1" in repr(module)
    assert "J" not in repr(plain).replace("DTCWT", "")
    with pytest.raises(ValueError, match="yh has 2 levels, but the transform was made for J=1"):
        module((coeffs[0], [None, None]))
    with pytest.raises(ValueError, match="yh has 0 levels, but"):
        module((coeffs[0], None))
    low = torch.randn(1, 1, 4, 4)
    assert torch.equal(DTCWTInverse(J=0)((low, [])), low)


@pytest.mark.parametrize(
    ("taps", "error", "message"),
    [
        (None, TypeError, "the filter g0a must be a tensor of real numbers, got NoneType"),
        (torch.ones(1, 1, 10, 1).int(), TypeError, "the filter g0a must be .* got torch.int32"),
        (torch.ones(1, 1, 10, 1).double(), TypeError, "g0o and g0a must have one dtype, got torch"),
        (torch.ones(1, 1, 10, 1, device="meta"), ValueError, "g0o and g0a must be on one device"),
        (torch.ones(1, 1, 9, 1), ValueError, "even length, .* got 9 and 10 for g0a and g0b"),
    ],
)
def test_filters_put_in_place(taps, error, message):
    module = DTCWTInverse()
    module((LOW, [BANDS]))
    module.g0a = taps
    for _ in range(2):
        with pytest.raises(error, match=message):
            module((LOW, [BANDS]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_mixed_precisions(dtype):
    """As a convolution does, and so pytorch_wavelets: coefficients of layers before it are low."""
    image = torch.randn(1, 2, 40, 40)
    low, highs = DTCWTForward(J=2)(image)
    expected = DTCWTInverse()((low, highs))
    mixed = low.to(dtype).requires_grad_(), [highs[0], highs[1].to(dtype)]
    with torch.autocast("cpu", dtype):
        result = DTCWTInverse()(mixed)
        analysis = DTCWTForward(J=2)(image.to(dtype))
    assert (result.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert (analysis[0].float() - low).abs().max() < 0.05 * low.abs().max()
    result.float().sum().backward()
    assert mixed[0].grad.dtype == dtype
    with torch.autocast("cpu", dtype), pytest.raises(TypeError, match=r"yl is torch\.float64"):
        DTCWTInverse()((low.double(), highs))


def test_a_trainable_filter_of_a_reference_stays_one():
    reference = pytest.importorskip("pytorch_wavelets")
    original = reference.DTCWTInverse()
    original.g0o = nn.Parameter(1.5 * original.g0o)
    module = DTCWTInverse.from_module(original)
    assert [name for name, _ in module.named_parameters()] == ["g0o"]
    assert module.g0o is not original.g0o
    coeffs = torch.randn(1, 1, 8, 8), [torch.randn(1, 1, 6, 4, 4, 2)]
    torch.testing.assert_close(module(coeffs), original(coeffs))
    assert module.state_dict().keys() == original.state_dict().keys()
