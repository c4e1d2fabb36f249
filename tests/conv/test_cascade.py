from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convfactor.conv.cascade import Cascade, convolve
from convfactor.conv.structure import StageShape, Structure

small = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def structures(draw, most_stages=4):
    groups = draw(st.integers(1, 2))
    count = draw(st.integers(1, most_stages))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(count + 1)]
    stages = []
    for a, b in itertools.pairwise(channels):
        finer = groups * draw(st.integers(1, 2))
        stage_groups = finer if a % finer == 0 and b % finer == 0 else groups
        strides = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        stages.append(StageShape(a, b, draw(small), strides, draw(small), stage_groups))
    return Structure(tuple(stages), (draw(st.integers(-2, 2)), 0))


def run(cascade: Cascade, x: Tensor) -> Tensor:
    for s in cascade.stages:
        x = F.conv2d(x, s.weight, None, s.stride, 0, s.dilation, s.groups)
    return x


def sample(structure: Structure) -> Tensor:
    height, width = (span + 3 for span in structure.span)
    generator = torch.Generator().manual_seed(1)
    shape = (1, structure.stages[0].in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@given(structures(), st.integers(0, 3))
def test_the_composed_kernel_does_what_the_stages_do(structure, seed):
    cascade, x = Cascade.random(structure, seed), sample(structure)
    kernel = cascade.compose()
    assert tuple(kernel.shape[2:]) == structure.span
    once = F.conv2d(x, kernel, None, structure.stride, 0, 1, structure.groups)
    torch.testing.assert_close(once, run(cascade, x), rtol=1e-12, atol=1e-12)


@given(structures())
def test_macs_count_every_stage_on_its_own_grid(structure):
    factor = math.prod(structure.stride)
    pixels, total = factor, 0
    for stage in structure.stages:
        pixels //= math.prod(stage.stride)
        total += pixels * math.prod(stage.weight_shape)
    assert structure.macs == total


@given(structures(), st.integers(0, 3))
def test_balancing_keeps_the_kernel_and_evens_out_the_power(structure, seed):
    cascade = Cascade.random(structure, seed)
    wild = [s.weight * 1e6 ** (-1) ** i for i, s in enumerate(cascade.stages)]
    balanced = Cascade.of(structure, wild).balanced()
    want = Cascade.of(structure, wild).compose()
    scale = float(want.abs().max())
    torch.testing.assert_close(balanced.compose(), want, rtol=0, atol=1e-11 * scale)
    for cut in range(1, len(balanced.stages)):
        power = Cascade(balanced.stages[:cut]).compose().flatten(1).norm(dim=1)
        torch.testing.assert_close(power, torch.ones_like(power))


@given(st.tuples(*[st.integers(1, 3)] * 4), small, small)
def test_convolve_is_associative(channels, step, further):
    draw = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randn(o, i, 2, 3, generator=draw, dtype=torch.float64)
        for i, o in itertools.pairwise(channels)
    )
    total = (step[0] * further[0], step[1] * further[1])
    left = convolve(convolve(a, b, step), c, total)
    right = convolve(a, convolve(b, c, further), step)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("early", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(2, 2), (1, 3)])
def test_a_dilated_cascade_reads_the_dilated_grid(dilation, early):
    stages = StageShape(1, 2, (3, 3), early), StageShape(2, 1, (3, 2), (2, 2))
    cascade = Cascade.random(Structure(stages, (-1, 0)))
    spread = cascade.dilated(dilation)
    assert spread.offset == (-dilation[0], 0)
    kernel = spread.compose()
    torch.testing.assert_close(kernel[..., :: dilation[0], :: dilation[1]], cascade.compose())
    assert kernel.count_nonzero() == cascade.compose().count_nonzero()


def test_stages_must_fit_together():
    with pytest.raises(ValueError, match="stage 0 writes 2 channels, but stage 1 reads 3"):
        Structure((StageShape(1, 2, (3, 3)), StageShape(3, 1, (3, 3))))
    with pytest.raises(ValueError, match="at least one stage"):
        Structure(())


def test_noise_gain_predicts_rounding_of_the_intermediate():
    structure = Structure((StageShape(2, 6, (3, 3)), StageShape(6, 3, (3, 3), groups=3)), (0, 0))
    cascade = Cascade.random(structure, 3).balanced()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 200, 200, generator=generator, dtype=torch.float64)
    hidden = F.conv2d(x, cascade.stages[0].weight)
    power = hidden.square().mean((0, 2, 3), keepdim=True).sqrt()
    noise = 1e-3 * power * torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
    wrong = F.conv2d(noise, cascade.stages[1].weight, groups=3)
    seen = wrong.norm() / run(cascade, x).norm()
    assert float(seen) == pytest.approx(1e-3 * cascade.noise_gain(), rel=0.05)
    assert Cascade.random(Structure((StageShape(1, 1, (3, 3)),))).noise_gain() == 0


def test_random_keeps_power_and_is_deterministic():
    structure = Structure((StageShape(8, 16, (3, 3)), StageShape(16, 8, (3, 3))))
    before = torch.random.get_rng_state()
    first, second = Cascade.random(structure, 5), Cascade.random(structure, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.compose(), second.compose())
    assert float(first.compose().square().sum()) / 8 == pytest.approx(1, rel=0.3)


def test_a_structure_reads_well():
    stages = (StageShape(4, 8, (3, 1), stride=(2, 2)), StageShape(8, 2, (3, 3), dilation=(2, 3)))
    assert str(Structure(stages)) == "3x1/2 3x3@2x3 (8)"


def test_one_int_stands_for_both_sides():
    short = StageShape(3, 16, 3, 2, 4)
    assert short == StageShape(3, 16, (3, 3), (2, 2), (4, 4))
    assert hash(short) == hash(StageShape(3, 16, [3, 3], np.int64(2), (4, 4)))
    assert Structure((StageShape(1, 2, 3), StageShape(2, 1, 3))).span == (5, 5)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation"])
@pytest.mark.parametrize("value", [0, 2.5, (1, 2, 3), (3, -1), "3"])
def test_sides_of_a_stage_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an int >= 1 or a pair of them, got"):
        StageShape(3, 16, **{"kernel_size": 3, name: value})
