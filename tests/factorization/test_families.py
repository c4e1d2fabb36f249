from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convfactor import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.grid import side_sizes, stage_sizes
from convfactor.factorization.families import (
    cropped,
    dilated,
    families,
    full,
    low_rank,
    one_row,
    pointwise,
    separable_pair,
)
from convfactor.factorization.splits import growing_dilations, stride_placements


def shape(out, channels, size, stride=(1, 1), dilation=(1, 1), groups=1) -> ConvGeometry:
    return ConvGeometry(channels, out, size, stride, dilation=dilation, groups=groups)


shapes = st.builds(
    lambda out, channels, size, stride, groups: shape(
        out * groups, channels * groups, size, (stride, stride), (1, 1), groups
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.integers(1, 3),
)


def everything(kernel):
    return [
        *full(kernel),
        *cropped(kernel),
        *dilated(kernel),
        *pointwise(kernel),
        *separable_pair(kernel),
        *low_rank(kernel),
    ]


@given(st.integers(1, 40))
def test_sides_compose_to_the_kernel(taps):
    sizes = side_sizes(taps)
    assert 1 + sum(size - 1 for size in sizes) == taps
    assert set(sizes) <= {2, 3}
    assert sizes.count(2) <= 1


@pytest.mark.parametrize(
    ("kernel_size", "sizes"),
    [
        ((7, 1), ((3, 1),) * 3),
        ((5, 7), ((3, 3), (3, 3), (1, 3))),
        ((4, 4), ((3, 3), (2, 2))),
        ((6, 5), ((3, 3), (3, 3), (2, 1))),
        ((1, 1), ((1, 1),)),
    ],
)
def test_stages_are_shorter_where_less_is_needed(kernel_size, sizes):
    assert stage_sizes(kernel_size) == sizes


@given(shapes)
def test_every_family_keeps_stride_channels_and_groups(kernel):
    for family in everything(kernel):
        structure = family.structure(family.widths(1.5))
        assert structure.stride == kernel.stride
        assert structure.stages[0].in_channels == kernel.in_channels
        assert structure.stages[-1].out_channels == kernel.out_channels
        assert structure.groups % kernel.groups == 0
        Cascade.random(structure)  # every group divides its channels


@given(shapes)
def test_full_families_cover_the_kernel(kernel):
    families = list(full(kernel))
    assert families
    for family in families:
        structure = family.structure(family.widths(1))
        for taps, span, offset in zip(
            kernel.kernel_size, structure.span, structure.offset, strict=True
        ):
            assert offset <= 0
            assert offset + span >= taps
            assert abs((offset + span - taps) + offset) <= 1  # centred


@given(shapes)
def test_an_unstrided_kernel_has_one_full_family_of_its_own_span(kernel):
    if kernel.stride == (1, 1):
        (family,) = full(kernel)
        assert family.structure(family.widths(1)).span == kernel.kernel_size
        assert family.offset == (0, 0)


@given(shapes, st.integers(1, 4))
def test_a_given_number_of_stages_is_kept(kernel, stages):
    assert {len(family.kernel_sizes) for family in full(kernel, stages)} <= {stages}


def test_strides_may_come_early_or_late():
    kernel = shape(8, 3, (7, 7), (2, 2))
    found = {tuple(s[0] for s in family.strides): family for family in full(kernel)}
    assert (1, 1, 2) in found
    assert (2, 1) in found
    early = found[2, 1].structure((8,))
    late = found[1, 1, 2].structure((8, 8))
    assert early.span == (7, 7)
    assert early.macs < late.macs


def test_a_strided_5x5_may_span_7():
    families = list(full(shape(8, 3, (5, 5), (2, 2))))
    spans = {f.strides[0]: (f.structure(f.widths(1)).span, f.offset) for f in families}
    assert spans[2, 2] == ((7, 7), (-1, -1))
    assert spans[1, 1] == ((5, 5), (0, 0))


@pytest.mark.parametrize("size", range(7, 33, 2))
def test_dilation_reaches_as_far_without_holes(size):
    families = list(dilated(shape(1, 1, (size, size))))
    assert families
    for family in families:
        structure = family.structure(family.widths(1))
        assert structure.span == (size, size)
        assert len(structure.stages) < (size - 1) // 2
        ones = Cascade.of(structure, [torch.ones(s.weight_shape) for s in structure.stages])
        assert ones.compose().min() > 0


@pytest.mark.parametrize("size", [(5, 5), (8, 8), (7, 9)])
def test_no_dilation_where_it_does_not_pay(size):
    assert not list(dilated(shape(1, 1, size)))


def test_cropping_drops_the_outer_ring():
    (family,) = cropped(shape(4, 4, (7, 5)))
    structure = family.structure(family.widths(1))
    assert (structure.span, structure.offset) == ((5, 3), (1, 1))
    assert not list(cropped(shape(4, 4, (3, 3))))


@given(shapes, st.sampled_from([1, 4, 8]))
def test_a_ladder_climbs_within_its_budget(kernel, multiple):
    for family in everything(kernel):
        rungs = family.ladder(kernel.macs, multiple)
        costs = [rung.macs for rung in rungs]
        assert costs == sorted(set(costs))
        assert all(cost <= kernel.macs for cost in costs)
        assert all(w % kernel.groups == 0 for rung in rungs for w in rung.widths)
        if rungs and rungs[0].widths:
            for narrow, wide in itertools.pairwise(rungs):
                assert all(a <= b for a, b in zip(narrow.widths, wide.widths, strict=True))


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_ladder_starts_at_one_hidden_channel_and_ends_at_the_budget(multiple):
    kernel = shape(16, 16, (5, 5))
    (family,) = full(kernel)
    rungs = family.ladder(kernel.macs, multiple)
    assert rungs[0].widths == (1,)
    step = 1 if multiple == 1 else multiple
    wider = family.structure((rungs[-1].widths[0] + step,))
    assert wider.macs > kernel.macs


def test_blocks_of_channels():
    (family,) = full(shape(32, 32, (5, 5)))
    widths = [rung.widths[0] for rung in family.ladder(10**5, 8)]
    assert widths[:6] == [1, 2, 4, 8, 16, 24]


def test_depthwise_hidden_stages_stay_in_their_chain():
    (family,) = full(shape(3, 3, (7, 7), groups=3))
    assert family.structure((3, 3)).groups == 3
    branches = family.structure((6, 6))
    assert [stage.groups for stage in branches.stages] == [3, 6, 3]
    assert branches.macs == 9 * (6 + 6 + 6)


def test_a_pair_is_a_column_then_a_row():
    (family,) = separable_pair(shape(4, 4, (5, 7), (2, 3)))
    column, row = family.structure((2,)).stages
    assert (column.kernel_size, column.stride) == ((5, 1), (2, 1))
    assert (row.kernel_size, row.stride) == ((1, 7), (1, 3))
    assert not list(separable_pair(shape(4, 4, (1, 7))))


def test_widths_taper():
    (family,) = full(shape(2, 64, (9, 9)))
    widths = family.widths(1)
    assert list(widths) == sorted(widths, reverse=True)
    assert math.isclose(widths[1], math.sqrt(2 * 64), rel_tol=0.05)


def test_pointwise_stages_come_first_where_many_channels_are_read():
    (family,) = pointwise(ConvGeometry(64, 32, (5, 5)))
    assert str(family.structure((40, 28))) == "1x1 3x3 3x3 (40, 28)"
    assert family.structure((40, 28)).span == (5, 5)
    assert not list(pointwise(ConvGeometry(3, 32, (9, 9))))


def test_taper_evens_the_widths_out():
    (family,) = full(ConvGeometry(32, 2, (9, 9)))
    assert family.widths(1.0, taper=1.0) == (16, 8, 4)
    assert family.widths(1.0) == (11, 8, 6)
    assert family.widths(1.0, taper=0.0) == (8, 8, 8)


@pytest.mark.parametrize("taper", [0.0, 0.5, 1.0])
def test_no_stage_is_much_narrower_than_the_others(taper):
    (family,) = full(ConvGeometry(1, 64, (9, 9)))
    for scale in (0.1, 0.3, 0.5, 1.0, 2.0):
        widths = family.widths(scale, taper)
        assert min(widths) >= min(4, max(widths))


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "overlaps"),
    [
        ((16, 16), (16, 16), (1, 1), False),
        ((16, 16), (15, 15), (1, 1), True),
        ((7, 7), (8, 4), (1, 1), True),
        ((1, 5), (1, 5), (1, 1), False),
        ((1, 5), (1, 1), (1, 1), True),
        ((5, 5), (2, 2), (2, 2), True),
        ((3, 3), (4, 4), (2, 2), True),
        ((2, 2), (4, 4), (2, 2), False),
        ((5, 5), (5, 5), (2, 2), False),
        ((6, 6), (5, 5), (2, 2), True),
        ((1, 1), (1, 1), (1, 1), False),
    ],
)
def test_only_kernels_that_read_pixels_twice_are_offered_a_cascade(
    size, stride, dilation, overlaps
):
    kernel = shape(8, 8, size, stride, dilation)
    shared = any(
        {a * d for a in range(k)} & {a * d + s * out for a in range(k)}
        for k, s, d in zip(size, stride, dilation, strict=True)
        for out in range(1, 20)
    )
    assert kernel.overlaps == overlaps == shared
    assert bool(families(kernel)) == overlaps
    assert overlaps or not list(separable_pair(kernel))


@pytest.mark.parametrize("stride", [2, 4, 6, 12, 16, 2**31 - 1])
@pytest.mark.parametrize(("size", "count"), [(5, 2), (9, 4), (31, 15), (31, 3)])
def test_strides_are_placed_wherever_the_span_stays_within_reach(size, stride, count):
    kernel = shape(4, 4, (size, size), (stride, stride))
    found = [tuple(s[0] for s in split) for split in stride_placements(kernel, count)]
    assert found[0] == (*(1,) * (count - 1), stride)
    assert len(set(found)) == len(found)

    def span(split):
        return 1 + 2 * sum(math.prod(split[:i]) for i in range(count))

    assert all(math.prod(split) == stride for split in found)
    assert all(span(split) <= size + 4 for split in found[1:])
    if stride <= 16 and count <= 4:
        factors = [f for f in range(1, stride + 1) if stride % f == 0]
        every = itertools.product(factors, repeat=count)
        every = (s for s in every if math.prod(s) == stride and span(s) <= size + 4)
        assert set(found) == {found[0], *every}


def test_dilations_are_as_even_as_possible():
    for reach, count in itertools.product(range(2, 16), range(1, 5)):
        options = [
            split
            for split in itertools.combinations_with_replacement(range(1, reach + 1), count)
            if sum(split) == reach
            and split[0] == 1
            and all(d <= 1 + 2 * sum(split[:i]) for i, d in enumerate(split))
        ]
        least = min((sum(d * d for d in split) for split in options), default=None)
        found = growing_dilations(reach, count)
        assert (found is None) == (least is None)
        assert found is None or (found in options and sum(d * d for d in found) == least)


@given(shapes)
def test_stages_between_1x1_span_the_kernel_and_stride_where_they_reach(kernel):
    for family in low_rank(kernel):
        structure = family.structure(family.widths(2))
        assert structure.span == kernel.kernel_size
        assert structure.offset == (0, 0)
        first, *inner, last = structure.stages
        assert (first.kernel_size, last.kernel_size) == ((1, 1), (1, 1))
        assert (first.stride, last.stride) == ((1, 1), (1, 1))
        assert {stage.groups for stage in inner} == {first.out_channels}
        assert len(set(structure.widths)) == 1


def test_depthwise_stages_are_for_kernels_that_mix_channels():
    assert [str(f.structure(f.widths(0.5))) for f in low_rank(shape(8, 8, (5, 5), (2, 2)))] == [
        "1x1 dw5x5/2 1x1 (4, 4)",
        "1x1 dw3x3 dw3x3/2 1x1 (4, 4, 4)",
        "1x1 dw5x1/2x1 dw1x5/1x2 1x1 (4, 4, 4)",
    ]
    for single in (shape(6, 1, (5, 5)), shape(1, 6, (5, 5)), shape(6, 6, (5, 5), groups=6)):
        assert not list(low_rank(single))
    assert not list(low_rank(shape(6, 6, (4, 4), (4, 4))))


def test_many_channels_are_chosen_by_1x1_at_both_ends_of_dense_stages():
    wide = shape(256, 128, (5, 5))
    names = [str(f.structure(f.widths(0.25))) for f in [*pointwise(wide), *low_rank(wide)]]
    assert "1x1 3x3 3x3 1x1 (41, 45, 49)" in names
    assert "1x1 5x5 1x1 (43, 48)" in names


@pytest.mark.parametrize(
    ("channels", "sizes"), [((8, 1), "1x9/1x2 1x1 (2)"), ((1, 8), "1x1 1x9/1x2 (2)")]
)
def test_a_kernel_of_one_row_stands_at_the_end_with_fewer_channels(channels, sizes):
    (family,) = one_row(shape(*channels, (1, 9), (1, 2)))
    assert str(family.structure((2,))) == sizes
    assert family.structure((2,)).span == (1, 9)
    assert not list(one_row(shape(*channels, (3, 9))))
