"""The scattering layers, against those of pytorch_wavelets."""

import itertools

import pytest
import pytorch_wavelets as reference
import torch

from convfactor.wavelets import ScatLayer, ScatLayerj2, kernels

FILTERS = (
    ("near_sym_a", "qshift_a"),
    ("near_sym_b", "qshift_d"),
    ("antonini", "qshift_06"),
    ("near_sym_b_bp", "qshift_b_bp"),
)
CASES = list(itertools.product((1, 2), FILTERS, (False, True)))
SIZES = ((32, 40), (17, 22), (21, 71), (3, 4))


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["torch", "cpp"])
def backend(request):
    if request.param == "cpp":
        try:
            kernels.load()
        except RuntimeError as error:
            pytest.skip(f"no compiled kernels: {error}")
    return request.param


def pair(order, biort, qshift, backend, **options):
    if order == 1:
        original = reference.ScatLayer(biort, **options)
        return original, ScatLayer.from_module(original, backend)
    original = reference.ScatLayerj2(biort, qshift, **options)
    return original, ScatLayerj2.from_module(original, backend)


def with_gradient(module, image):
    image = image.clone().requires_grad_()
    out = module(image)
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(1))
    return out.detach(), torch.autograd.grad((weights * out).sum(), image)[0]


@pytest.mark.parametrize(("order", "filters", "combine"), CASES)
def test_same_values_and_gradients_in_double(order, filters, combine, backend, double):
    options = {"combine_colour": combine, "magbias": 0.03}
    original, ours = pair(order, *filters, backend, **options)
    for size in SIZES:
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected, gradient = with_gradient(original, image)
        result, other = with_gradient(ours, image)
        torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(other, gradient, atol=1e-10, rtol=0)


def test_same_values_with_zeros_outside(backend, double):
    original, ours = pair(1, *FILTERS[0], backend, mode="zero")
    image = torch.randn(1, 5, 24, 24)
    torch.testing.assert_close(ours(image), original(image), atol=1e-10, rtol=0)


def test_made_by_name_they_load_the_originals_state():
    for ours, original in (
        (ScatLayer("near_sym_b_bp"), reference.ScatLayer("near_sym_b_bp")),
        (ScatLayerj2("near_sym_b"), reference.ScatLayerj2("near_sym_b")),
    ):
        image = torch.rand(1, 2, 16, 16)
        torch.testing.assert_close(ours(image), original(image), atol=1e-5, rtol=0)
        ours.load_state_dict(original.state_dict())


@pytest.mark.parametrize("build", [reference.ScatLayer, reference.ScatLayerj2])
def test_filters_keep_their_dtype_and_count_when_edited(build):
    original = build().double().eval()
    ours = {reference.ScatLayer: ScatLayer, reference.ScatLayerj2: ScatLayerj2}[build]
    ours = ours.from_module(original)
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    image = torch.rand(1, 2, 16, 16, dtype=torch.float64)
    for module in (original, ours):
        module.h1o.mul_(1.5)
    torch.testing.assert_close(ours(image), original(image), atol=1e-10, rtol=0)


def test_exported_programs_hold_them():
    image = torch.rand(2, 3, 32, 32)
    for layer in (ScatLayer(), ScatLayerj2()):
        program = torch.export.export(layer, (image,)).module()
        torch.testing.assert_close(program(image), layer(image), atol=1e-5, rtol=0)


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"3 channels for combine_colour, got 2"):
        ScatLayer(combine_colour=True)(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"at least 3 rows and columns, got 2"):
        ScatLayerj2()(torch.rand(1, 2, 2, 8))
    with pytest.raises(ValueError, match="4 dimensions"):
        ScatLayer()(torch.rand(2, 8, 8))
    with pytest.raises(TypeError, match=r"pytorch_wavelets.ScatLayer, got ReLU"):
        ScatLayer.from_module(torch.nn.ReLU())
