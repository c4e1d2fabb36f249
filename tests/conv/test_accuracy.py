from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convfactor.conv.accuracy import ErrorMeter, layer_errors, reads_padding
from convfactor.conv.geometry import ConvGeometry


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from([0, 1, (2, 0), "same"]), st.tuples(st.integers(1, 5), st.integers(1, 5)),
)  # fmt: skip
def test_padding_is_read_where_ones_show_through(taps, stride, dilation, padding, extra):
    """A kernel of ones over an image of zeros, padded with ones, is zero only inside."""
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(1, 1, taps, stride, padding, dilation)
    geometry = ConvGeometry.from_conv(conv)
    size = tuple(e + extent for e, extent in zip(extra, geometry.extent, strict=True))
    image = nn.functional.pad(torch.zeros(1, 1, *size), geometry.padding, value=1.0)
    seen = nn.functional.conv2d(image, torch.ones(1, 1, taps, taps), None, stride, 0, dilation)
    assert torch.equal(reads_padding(geometry, size), seen[0, 0] > 0)


def test_errors_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    true = (
        torch.randn(3, 4, 6, 5, generator=generator) * torch.tensor([1.0, 2, 3, 4])[:, None, None]
        + 7
    )
    wrong = 0.01 * torch.randn(3, 4, 6, 5, generator=generator)
    border = torch.zeros(6, 5, dtype=torch.bool)
    border[0] = True
    meter = ErrorMeter(4)
    for x, d in zip(true[:2], wrong[:2], strict=True):
        meter.add(x, x + d, border)
    meter.add(true[2:], true[2:] + wrong[2:], border)
    errors = meter.errors()
    deviation = true.double().transpose(0, 1).flatten(1).std(1, correction=0)
    pooled = deviation.square().mean().sqrt()
    wrong = wrong.double()
    assert errors.pooled == pytest.approx(float(wrong.square().mean().sqrt() / pooled), rel=1e-4)
    by_batch = wrong.square().mean((1, 2, 3)).sqrt() / pooled
    assert errors.worst_batch == pytest.approx(float(by_batch.max()), rel=1e-4)
    by_channel = wrong.square().mean((0, 2, 3)).sqrt() / deviation
    assert errors.worst_channel == pytest.approx(float(by_channel.max()), rel=1e-4)
    rim = wrong[..., 0, :].square().mean().sqrt() / pooled
    assert errors.border == pytest.approx(float(rim), rel=1e-4)


def test_an_output_that_never_varies_has_no_scale():
    flat = torch.ones(1, 2, 4, 4)
    exact, off = ErrorMeter(2), ErrorMeter(2)
    exact.add(flat, flat)
    off.add(flat, flat + 1)
    assert exact.errors().pooled == 0
    assert exact.errors().border is None
    assert off.errors().pooled == off.errors().worst_channel == math.inf
    with pytest.raises(ValueError, match="no outputs"):
        ErrorMeter(2).errors()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("channel", [0, 1])
def test_what_is_no_number_is_infinitely_far_off(value, batch, channel):
    meter = ErrorMeter(2)
    for i in range(2):
        true = torch.arange(32.0).reshape(1, 2, 4, 4)
        got = true + 0.1
        if i == batch:
            got[0, channel, 1, 2] = value
        meter.add(true, got)
    errors = meter.errors()
    assert errors.pooled == errors.worst_batch == errors.worst_channel == math.inf


def test_layers_are_compared_in_their_own_dtype():
    conv = nn.Conv2d(2, 3, 5, padding=2)
    geometry = ConvGeometry.from_conv(conv)
    inputs = [torch.randn(1, 2, 8, 8), torch.randn(2, 9, 7), torch.randn(2, 2, 8, 8)]
    with torch.no_grad():
        pairs = [(x, conv(x)) for x in inputs]

    def shifted(x):
        assert not torch.is_grad_enabled()
        return conv(x) + 0.1

    errors = layer_errors(shifted, pairs, geometry)
    assert errors.pooled == pytest.approx(errors.border, rel=1e-3)
    assert errors.pooled == pytest.approx(errors.worst_batch, rel=1e-3)
    assert layer_errors(conv, pairs, geometry).pooled == 0
