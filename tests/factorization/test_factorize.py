import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import nn

import convfactor
from convfactor import Cascade, Moments, StageShape, Structure, ToleranceError, factorize


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def binomial(taps):
    row = np.poly1d([1.0])
    for _ in range(taps - 1):
        row = row * np.poly1d([1.0, 1.0])
    return np.asarray(row.coeffs) / 2 ** (taps - 1)


def test_separable_kernel_splits_exactly_and_scipy_agrees():
    kernel = np.outer(binomial(9), binomial(9)[::-1] * np.arange(1, 10))
    f = factorize(kernel, 1e-12)
    product = np.ones((1, 1))
    for stage in f.kernels:
        assert stage.dtype == torch.float64
        product = convolve2d(product, stage[0, 0].numpy())
    assert [tuple(k.shape) for k in f.kernels] == [(1, 1, 3, 3)] * 4
    assert f.error < 1e-12
    assert f.met
    np.testing.assert_allclose(product, kernel, atol=1e-12 * np.abs(kernel).max())


@pytest.mark.parametrize("size", [(5, 7), (9, 3), (6, 6), (4, 5)])
def test_rectangular_and_even_separable_kernels_are_exact(size):
    kernel = torch.outer(noise(size[0]), noise(size[1], seed=1))
    f = factorize(kernel, 1e-10)
    assert f.error < 1e-10
    assert f.compose().shape[2:] == size
    assert max(max(k.shape[2:]) for k in f.kernels) <= 3


def test_dense_kernel_of_a_cascade_is_found_again():
    structure = Structure((StageShape(6, 4, (3, 3)), StageShape(4, 8, (3, 3))))
    kernel = Cascade.random(structure, seed=3).compose()
    f = factorize(kernel, widths=(4,))
    assert f.error < 1e-8
    assert f.structure == structure
    torch.testing.assert_close(f.compose(), kernel, atol=1e-8, rtol=0)


def test_tolerance_takes_the_cheapest_width_that_meets_it():
    structure = Structure((StageShape(6, 3, (3, 3)), StageShape(3, 8, (3, 3))))
    kernel = Cascade.random(structure, seed=5).compose()
    f = factorize(kernel, 1e-6)
    assert f.met
    assert f.structure.widths == (3,)
    assert f.macs == structure.macs < 6 * 8 * 25


@pytest.mark.parametrize(
    ("groups", "stride", "dilation"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2)],
)
def test_error_is_what_white_noise_sees(groups, stride, dilation):
    weight = noise(4, 4 // groups, 5, 5)
    f = factorize(weight, stages=2, groups=groups, stride=stride, dilation=dilation)
    x = noise(8, 4, 96, 96, seed=1)
    true = F.conv2d(x, weight, stride=stride, dilation=dilation, groups=groups)
    conv = nn.Conv2d(4, 4, 5, stride, 0, dilation, groups, bias=False, dtype=torch.float64)
    got = convfactor.CascadeConv2d.from_conv(conv, f)(x).detach()
    assert got.shape == true.shape
    assert float((got - true).norm() / true.norm()) == pytest.approx(f.error, rel=0.05)
    per_channel = (got - true).square().mean((0, 2, 3)).sqrt() / true.std((0, 2, 3))
    torch.testing.assert_close(per_channel, f.channel_errors, rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_error_is_that_of_the_rounded_weights(dtype):
    kernel = torch.outer(noise(7), noise(7, seed=1)).to(dtype)
    f = factorize(kernel, stages=3)
    assert all(k.dtype == dtype for k in f.kernels)
    wrong = f.compose()[0, 0] - kernel.double()
    assert f.error == pytest.approx(float(wrong.norm() / kernel.double().norm()), rel=1e-9)
    assert f.error < 20 * torch.finfo(dtype).eps


def test_calibrated_fit_is_better_on_its_own_data_and_moves_the_mean_into_the_bias():
    conv = nn.Conv2d(3, 4, 5, padding=2, dtype=torch.float64).requires_grad_(False)
    conv.weight.copy_(noise(4, 3, 5, 5))
    smooth = F.avg_pool2d(noise(6, 3, 40, 40, seed=1), 5, 1) + 2
    moments = Moments.from_inputs(conv, [smooth], patches=10**6)
    white = factorize(conv.weight, widths=(3,))
    fitted = factorize(conv.weight, widths=(3,), moments=moments)
    true = conv(smooth)

    def error(f):
        got = convfactor.CascadeConv2d.from_conv(conv, f)(smooth)
        return float((got - true).square().mean((0, 2, 3)).sum() / true.var((0, 2, 3)).sum()) ** 0.5

    assert error(fitted) == pytest.approx(fitted.error, rel=1e-3)
    assert error(fitted) < 0.7 * error(white)
    got = convfactor.CascadeConv2d.from_conv(conv, fitted)(smooth)
    torch.testing.assert_close(got.mean((0, 2, 3)), true.mean((0, 2, 3)), atol=1e-9, rtol=0)


def test_more_width_never_hurts():
    weight = noise(4, 4, 5, 5)
    errors = [factorize(weight, widths=(w,)).error for w in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_stages_stay_within_the_original_cost():
    weight = noise(8, 4, 7, 7)
    for stages in (2, 3):
        f = factorize(weight, stages=stages)
        assert len(f.stages) == stages
        assert f.macs <= 8 * 4 * 49
        assert f.met is None


def test_strided_kernel_may_span_more_than_it_had():
    weight = noise(8, 8, 5, 5)
    f = factorize(weight, stages=2, stride=2)
    assert math.prod(s.stride[0] for s in f.stages) == 2
    assert f.macs <= 8 * 8 * 25
    assert 0 < f.error < 1


def test_missed_tolerance_says_what_would_be_needed():
    weight = noise(4, 4, 5, 5)
    f = factorize(weight, 1e-4, time_limit=math.inf)
    assert f.met is False
    assert f.macs <= 4 * 4 * 25
    assert "widths" in f.message
    with pytest.raises(ToleranceError, match="multiplies"):
        factorize(weight, 1e-4, strict=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_kernels_are_returned_as_they_are(size):
    weight = noise(4, 3, size, size)
    f = factorize(weight, 1e-9)
    assert len(f.stages) == 1
    assert torch.equal(f.kernels[0], weight)
    assert f.error == 0


def test_zero_kernel_has_no_error():
    f = factorize(torch.zeros(3, 2, 5, 5), 1e-3)
    assert f.error == 0
    assert f.met
    assert not f.compose().any()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_of_the_kernel_does_not_matter(scale):
    weight = noise(4, 4, 5, 5)
    plain, scaled = factorize(weight, widths=(3,)), factorize(weight * scale, widths=(3,))
    assert scaled.error == pytest.approx(plain.error, rel=1e-6)


def test_preserve_dc_keeps_the_sums():
    weight = noise(4, 3, 5, 5)
    weight -= weight.mean((2, 3), keepdim=True)
    free, kept = (factorize(weight, widths=(4,), preserve_dc=dc) for dc in (False, True))
    assert float(free.compose().sum((2, 3)).abs().max()) > 1e-6
    assert float(kept.compose().sum((2, 3)).abs().max()) < 1e-12
    assert free.error <= kept.error < 2 * free.error


def test_same_seed_same_answer_and_no_trace_in_the_global_generator():
    weight = noise(4, 4, 5, 5)
    state = torch.get_rng_state()
    first, second = factorize(weight, widths=(3,), seed=7), factorize(weight, widths=(3,), seed=7)
    assert all(torch.equal(a, b) for a, b in zip(first.kernels, second.kernels, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_bounds_hold_on_an_image():
    weight = noise(3, 2, 5, 5)
    f = factorize(weight, widths=(2,))
    conv = nn.Conv2d(2, 3, 5, bias=False, dtype=torch.float64).requires_grad_(False)
    conv.weight.copy_(weight)
    x = noise(1, 2, 30, 30).sign()
    wrong = convfactor.CascadeConv2d.from_conv(conv, f)(x) - conv(x)
    assert float(wrong.abs().max()) <= f.bounds.l_inf
    assert float(wrong.norm()) <= f.bounds.spectral * float(x.norm())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "give a tolerance"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
        ({"tolerance": float("nan")}, "tolerance must be a positive number"),
        ({"tolerance": True}, "tolerance must be a positive number.*got True"),
        ({"tolerance": 1}, r"tolerance must be .* a fraction below 1 \(0.05 is 5 %\), got 1"),
        ({"tolerance": 5.0}, r"tolerance must be .* a fraction below 1 \(0.05 is 5 %\), got 5.0"),
        ({"tolerance": "5%"}, "tolerance must be .*got '5%'"),
        ({"stages": 2, "tolerance": math.inf}, "tolerance must be .*got inf"),
        ({"stages": 2, "widths": (2,)}, "not both"),
        ({"stages": 2, "structure": Structure((StageShape(2, 4, (5, 5)),))}, "not both"),
        ({"structure": Structure((StageShape(4, 4, (5, 5)),))}, r"structure must .* got \(4, 4"),
        ({"stages": 0}, "at least 1"),
        ({"stages": 2.5}, "stages must be an int of at least 1, got 2.5"),
        ({"stages": True}, "stages must be an int of at least 1, got True"),
        ({"widths": 4}, "widths must be a sequence of ints .*got 4"),
        ({"widths": (2.0, 4)}, r"widths must be a sequence of ints .*got \(2.0, 4\)"),
        ({"widths": (0,)}, "positive multiples"),
        ({"widths": (3,), "groups": 2}, "positive multiples of the 2 groups"),
        ({"widths": (1000,)}, "narrower"),
        ({"tolerance": 0.1, "groups": 3}, "groups must divide"),
        ({"tolerance": 0.1, "groups": 2.0}, "groups must divide the 4 output channels, got 2.0"),
        ({"tolerance": 0.1, "stride": 0}, "stride"),
        ({"tolerance": 0.1, "ridge": "much"}, "ridge must be a number >= 0, got 'much'"),
        ({"tolerance": 0.1, "ridge": -1.0}, "ridge"),
        ({"tolerance": 0.1, "solver": "magic"}, "solver"),
    ],
)
def test_wrong_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        factorize(noise(4, 2, 5, 5), **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"structure": [3, 3]}, r"structure must be a convfactor\.Structure, got list; make one"),
        ({"structure": "separable"}, r"structure must be a convfactor\.Structure, got str"),
        (
            {"stages": 2, "moments": noise(3, 3)},
            r"moments must be a .*Moments, got Tensor; measure",
        ),
    ],
)
def test_arguments_of_another_type_are_named(arguments, match):
    with pytest.raises(TypeError, match=match):
        factorize(noise(4, 2, 5, 5), **arguments)


@pytest.mark.parametrize(
    ("weight", "error", "match"),
    [
        (torch.full((1, 1, 5, 5), math.nan), ValueError, "finite"),
        (nn.Conv2d(1, 1, 5), TypeError, "weight must be .*got Conv2d; give conv.weight"),
        (None, TypeError, "weight must be a tensor or an array, got NoneType"),
        (np.full((5, 5), "a"), TypeError, "weight must be a tensor or an array, got <U1 array"),
        (torch.ones(5), ValueError, "shape"),
        (torch.ones(0, 1, 5, 5), ValueError, "shape"),
    ],
)
def test_wrong_weights_are_named(weight, error, match):
    with pytest.raises(error, match=match):
        factorize(weight, 0.1)


def test_moments_of_another_layer_are_refused():
    moments = Moments.from_inputs(nn.Conv2d(3, 4, 7), [torch.rand(1, 3, 20, 20)])
    with pytest.raises(ValueError, match="own patches"):
        factorize(noise(4, 3, 5, 5), 0.1, moments=moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("taps", "asked"), [(31, {"stages": 15}), (13, {"tolerance": 1e-5})])
def test_a_wide_gaussian_stays_one_chain_in_any_dtype(dtype, taps, asked):
    row = torch.exp(-(torch.linspace(-3, 3, taps, dtype=torch.float64) ** 2) / 2)
    kernel = torch.outer(row, row).to(dtype)
    f = factorize(kernel, **asked)
    assert f.exact
    assert set(f.structure.widths) == {1}
    assert f.error <= (1e-5 if dtype == torch.float32 else 1e-12)
    assert f.noise_gain < 10


def test_what_rounding_forbids_is_told_apart_from_what_is_too_narrow():
    row = torch.exp(-(torch.linspace(-3, 3, 15) ** 2) / 2)
    f = factorize(torch.outer(row, row), 1e-8)
    assert f.met is False
    assert f.exact
    assert "rounding to float32" in f.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_to_any_dtype_leaves_a_separable_kernel_exact(dtype, seed):
    kernel = torch.outer(noise(7, seed=seed), noise(7, seed=seed + 100)).to(dtype)
    f = factorize(kernel, stages=3)
    assert f.exact
    assert set(f.structure.widths) == {1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_part_of_one_epsilon_is_more_than_rounding(dtype):
    t = torch.arange(11, dtype=torch.float64) - 5
    pairs = [torch.outer(u, u) / u.square().sum() for u in (torch.exp(-(t**2) / 8), t)]
    eps = torch.finfo(dtype).eps
    kernel = (pairs[0] + 0.8 * eps * pairs[1]).to(dtype)
    one, two = (
        Structure((StageShape(1, terms, (11, 1)), StageShape(terms, 1, (1, 11))))
        for terms in (1, 2)
    )
    assert not factorize(kernel, structure=one).exact
    assert factorize(kernel, structure=two).exact


def test_any_structure_can_be_asked_for():
    kernel = torch.outer(noise(9), noise(9))
    pair = Structure((StageShape(1, 1, (9, 1)), StageShape(1, 1, (1, 9))))
    f = factorize(kernel, 1e-9, structure=pair)
    assert f.structure == pair
    assert f.met
    assert f.error <= 1e-12
    dilated = Structure((StageShape(3, 6, (3, 3)), StageShape(6, 4, (3, 3), dilation=(2, 2))))
    f = factorize(noise(4, 3, 7, 7), structure=dilated)
    assert f.structure == dilated
    assert 0 < f.error < 1


def test_a_reversed_view_of_an_array_is_read():
    kernel = noise(5, 5).numpy()
    f = factorize(kernel[::-1], stages=2)
    assert f.error == pytest.approx(factorize(kernel[::-1].copy(), stages=2).error)


@pytest.mark.parametrize(("tolerance", "met"), [(0.99, True), (1e-9, False)])
def test_a_tolerance_beside_a_structure_is_only_checked(tolerance, met):
    f = factorize(noise(5, 5), tolerance, widths=(1,))
    assert f.structure.widths == (1,)
    assert f.met is met
    assert ("what was asked for has a relative error of" in f.message) == (not met)


def test_a_factorization_reads_well():
    f = factorize(noise(6, 6, 5, 5).float(), 0.999, widths=(4,))
    text = f"Factorization(3x3 3x3 (4), float32, error {f.error:.2e}, 432 multiplies, met=True)"
    assert repr(f) == text
    assert repr(f.cascade) == "Cascade(3x3 3x3 (4), float32, 432 multiplies)"
