from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from convfactor.conv.forms import (
    PLAIN,
    Form,
    UnsupportedConvolutionError,
    convolution,
    is_consistent,
    of_call,
    of_module,
)

KINDS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@st.composite
def convolutions(draw) -> nn.Module:
    """Convolution modules of every kind that is a plain one."""
    kind = draw(st.sampled_from(KINDS))
    dims = 1 if "1d" in kind.__name__ else 2
    groups = draw(st.sampled_from((1, 2, 3)))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]

    def sides(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    size, stride, dilation, padding = sides(1, 9), sides(1, 4), sides(1, 2), sides(0, 4)
    options = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if "Transpose" in kind.__name__:
        most = [max(pair) for pair in zip(stride, dilation, strict=True)]
        more = tuple(draw(st.integers(0, m - 1)) for m in most)
        options["output_padding"] = more
    torch.manual_seed(0)
    return kind(*channels, size, stride, padding, **options).double()


@given(convolutions(), st.integers(1, 12), st.integers(1, 12))
def test_a_convolution_is_the_plain_one_that_it_is_read_as(conv, height, width):
    dims = conv.weight.dim() - 2
    x = torch.randn(2, conv.in_channels, *(height, width)[2 - dims :], dtype=torch.float64)
    try:
        true = conv(x)
        form, geometry = of_module(conv)
    except (RuntimeError, UnsupportedConvolutionError):
        assume(False)

    weight = form.weight(conv.weight, conv.groups)
    assert weight.shape == geometry.weight_shape
    got = form.output(convolution(form.input(x), weight, form.bias(conv.bias), geometry))
    assert got.shape == true.shape
    torch.testing.assert_close(got, true, rtol=0, atol=1e-12)

    assert torch.equal(form.kernel(weight, conv.groups), conv.weight)
    assert form.weight_shape(geometry) == conv.weight.shape
    assert form.kernel_size(geometry) == conv.kernel_size
    assert form.out_channels(geometry) == conv.out_channels
    torch.testing.assert_close(form.convolve(x, conv.weight, conv.bias, geometry), true)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_of_sequences(mode):
    conv = nn.Conv1d(2, 3, 7, padding=3, padding_mode=mode).double()
    form, geometry = of_module(conv)
    x = torch.randn(2, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(form.convolve(x, conv.weight, conv.bias, geometry), conv(x))


def test_the_multiplies_are_those_of_the_original():
    form, geometry = of_module(nn.ConvTranspose2d(56, 2, 9, stride=3))
    assert form.macs(geometry) == 56 * 2 * 81
    form, geometry = of_module(nn.Conv2d(4, 8, 5, groups=2))
    assert form == PLAIN
    assert form.macs(geometry) == geometry.macs


@pytest.mark.parametrize(
    ("conv", "said"),
    [
        (nn.Conv3d(2, 2, 5), "3 dimensions"),
        (nn.ConvTranspose2d(2, 2, 5, stride=2, dilation=2), "stride and dilation"),
        (nn.ConvTranspose2d(2, 2, 5, padding=6), "padded by more than its kernel"),
    ],
)
def test_what_is_no_plain_convolution_is_refused(conv, said):
    with pytest.raises(UnsupportedConvolutionError, match=said):
        of_module(conv)


def test_arguments_that_torch_refuses_are_refused():
    with pytest.raises(ValueError, match="stride"):
        of_call(torch.zeros(2, 2, 5), stride=0)


def test_forms_can_be_compared():
    assert of_module(nn.Conv1d(2, 2, 5))[0] == Form(1)
    assert of_module(nn.ConvTranspose2d(2, 2, 5))[0] != Form(2)


def test_a_form_belongs_to_its_geometry():
    form, geometry = of_module(nn.ConvTranspose2d(4, 2, 9, 3, 4, 1))
    other, plain = of_module(nn.Conv2d(4, 18, 3, padding=1))
    assert is_consistent(form, geometry)
    assert is_consistent(other, plain)
    assert not is_consistent(form, replace(geometry, padding=(0, 0, 0, 0)))
    assert not is_consistent(form, replace(geometry, out_channels=19))
    assert not is_consistent(Form(1), plain)
    assert not is_consistent(Form(3), plain)
