import random

import pytest
import pytorch_wavelets as reference
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from convfactor.wavelets import DTCWTForward, DTCWTInverse

BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(result, expected, tolerance):
    low, highs = result
    expected_low, expected_highs = expected
    lows = zip(low, expected_low, strict=True) if isinstance(low, list) else [(low, expected_low)]
    for one, other in [*lows, *zip(highs, expected_highs, strict=True)]:
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def cases():
    rng = random.Random(0)
    sizes = [(rng.randint(2, 12), rng.randint(2, 12)) for _ in range(40)]
    sizes += [(rng.randint(13, 70), rng.randint(2, 70)) for _ in range(40)]
    sizes += [(130, 94), (65, 200)]
    filters = [(b, q, mode) for b in BIORTS for q in QSHIFTS for mode in ("symmetric", "zero")]
    rng.shuffle(filters)
    return [(size, 1 + i % 5, *filters[i % len(filters)]) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(("size", "levels", "biort", "qshift", "mode"), cases())
def test_same_as_reference(size, levels, biort, qshift, mode, double):
    image = torch.randn(2, 2, *size)
    expected = reference.DTCWTForward(biort, qshift, levels, mode=mode)(image)
    assert_same(DTCWTForward(biort, qshift, levels, mode=mode)(image), expected, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"skip_hps": True},
        {"skip_hps": [True, False, False]},
        {"include_scale": True},
        {"include_scale": [False, True, False]},
        {"o_dim": 1},
        {"o_dim": 4, "ri_dim": 2},
        {"o_dim": -1, "ri_dim": 3},
    ],
)
def test_options(options):
    image = torch.randn(2, 3, 48, 40)
    expected = reference.DTCWTForward(**options)(image)
    module = DTCWTForward(**options)
    assert_same(module(image), expected, 1e-5)
    copied = DTCWTForward.from_module(reference.DTCWTForward(**options))
    assert_same(copied(image), expected, 1e-5)


def test_no_levels():
    image = torch.randn(1, 1, 4, 4)
    low, highs = DTCWTForward(J=0)(image)
    assert low is image
    assert highs is None


def test_perfect_reconstruction(double):
    image = torch.randn(1, 2, 70, 66)
    result = DTCWTInverse("near_sym_b", "qshift_b")(DTCWTForward("near_sym_b", "qshift_b")(image))
    torch.testing.assert_close(result[:, :, :70, :66], image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"mode": "zero"}, {"skip_hps": [True, False]}])
def test_gradcheck(options, double):
    module = DTCWTForward(J=2, **options)

    def transform(image):
        low, highs = module(image)
        return low, *(bands for bands in highs if bands.ndim)

    image = torch.randn(1, 1, 10, 12, requires_grad=True)
    assert gradcheck(transform, image)
    assert gradgradcheck(lambda image: transform(image)[-1].square(), image)


def test_errors():
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        DTCWTForward()(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="skip_hps needs one answer for each of 3 levels, got 2"):
        DTCWTForward(skip_hps=[True, False])
    with pytest.raises(TypeError, match="DTCWTForward, got DTCWTInverse"):
        DTCWTForward.from_module(reference.DTCWTInverse())


@pytest.mark.parametrize("trainable", [False, True])
def test_tune(trainable):
    module = DTCWTForward(J=1)
    if trainable:
        for name, taps in list(module.named_buffers()):
            setattr(module, name, nn.Parameter(taps, requires_grad=False))
    image = torch.randn(1, 1, 32, 32)
    expected = module(image)
    times = module.tune((1, 1, 32, 32))
    assert module.sizes == min(times, key=times.get)
    assert_same(module(image), expected, 1e-6)
