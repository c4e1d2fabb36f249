from __future__ import annotations

import itertools
import math

import pytest
import torch

from convfactor import Cascade
from convfactor.conv.scales import LEAST, Scales, relative
from convfactor.conv.structure import StageShape, Structure


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_cascade_is_scaled_as_its_kernel_is(groups, count):
    widths = [4, *[2 * groups] * (count - 1), 6]
    stages = [StageShape(a, b, (3, 3), groups=groups) for a, b in itertools.pairwise(widths)]
    cascade = Cascade.random(Structure(tuple(stages)), dtype=torch.float32)
    scales = Scales(torch.rand(4).double() + 1, torch.rand(6).double() + 1)
    scaled = scales.cascade(cascade)
    kernel = cascade.compose().unflatten(0, (groups, -1))
    expected = kernel * scales.outputs.view(groups, -1, 1, 1, 1)
    expected = expected * scales.inputs.view(groups, 1, -1, 1, 1)
    torch.testing.assert_close(scaled.compose(), expected.flatten(0, 1))
    torch.testing.assert_close(scales.kernel(kernel), expected)
    torch.testing.assert_close(scales.inverse.cascade(scaled).compose(), cascade.compose())
    plain = Scales().cascade(cascade)
    assert all(a.weight is b.weight for a, b in zip(plain.stages, cascade.stages, strict=True))


def test_scales_are_beside_the_largest():
    found = relative(torch.tensor([-2.0, 1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, LEAST]).double())


@pytest.mark.parametrize("scale", [[1.0, -1.0], [0.0, 0.0], [1.0, math.inf], [math.nan, 1.0]])
def test_what_says_nothing_is_none(scale):
    assert relative(torch.tensor(scale)) is None
