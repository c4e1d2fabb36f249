from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convfactor.conv.geometry import ConvGeometry, pair

sides = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")
@given(sides, sides, sides, st.sampled_from([0, 1, (2, 0), (0, 3), "valid", "same"]), sides)
def test_output_size_is_the_modules(kernel, stride, dilation, padding, extra):
    stride = (1, 1) if padding == "same" else stride
    conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    geometry = ConvGeometry.from_conv(conv)
    height, width = (e + extent for e, extent in zip(extra, geometry.extent, strict=True))
    with torch.no_grad():
        assert (
            geometry.output_size(height, width) == conv(torch.zeros(1, 1, height, width)).shape[2:]
        )


def test_same_padding_of_an_even_kernel_goes_right_and_down():
    geometry = ConvGeometry.from_shape(
        torch.zeros(1, 1, 4, 3).shape, padding="same", dilation=(1, 2)
    )
    assert geometry.padding == (2, 2, 1, 2)


def test_integers_of_a_grouped_module():
    conv = nn.Conv2d(6, 4, (5, 3), stride=2, padding=(2, 1), groups=2, padding_mode="reflect")
    geometry = ConvGeometry.from_conv(conv)
    assert geometry.weight_shape == tuple(conv.weight.shape) == (4, 3, 5, 3)
    assert (geometry.padding, geometry.padding_mode) == ((1, 1, 2, 2), "reflect")
    assert geometry.macs == 4 * 3 * 5 * 3
    assert hash(geometry) == hash(ConvGeometry.from_conv(conv))


@pytest.mark.parametrize(
    "value", [2, np.int64(2), (2,), [2, 2], torch.Size([2, 2]), (np.int32(2), 2)]
)
def test_pair_reads_what_torch_reads(value):
    F.conv2d(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 3, 3), stride=value)
    assert pair(value, "stride") == (2, 2)


@pytest.mark.parametrize("value", [0, (1, 0), (1, 2, 3), (), 1.5, "22", None])
def test_pair_names_what_is_wrong(value):
    with pytest.raises(ValueError, match="stride must be an int >= 1 or a pair"):
        pair(value, "stride")


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding must be .* got 'full'"):
        ConvGeometry.from_shape(torch.zeros(1, 1, 3, 3).shape, padding="full")
