from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patches import every_patch
from torch import nn

from convfactor.conv import moments
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.moments import Moments, MomentsCollector

MODES = ("zeros", "reflect", "replicate", "circular")


@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, (2, 1)]),
    st.sampled_from([0, 1, (2, 0), "same"]),
    st.sampled_from([1, 2]),
    st.sampled_from([(0, 0), (1, 1), (0, 2)]),
    st.booleans(),
)
def test_moments_are_those_of_the_patches_that_the_layer_reads(
    mode, kernel, stride, dilation, padding, groups, margin, channels_last
):
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(2, 2, kernel, stride, padding, dilation, groups, padding_mode=mode)
    x = torch.randn(2, 2, 7, 6, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    patches = every_patch(conv, x, margin)
    found = Moments.from_inputs(conv, [x[:1], x[1]], margin=margin)
    centred = patches - patches.mean(1, keepdim=True)
    assert found.count == patches.shape[1]
    torch.testing.assert_close(found.mean, patches.mean(1))
    torch.testing.assert_close(found.covariance, centred.mT @ centred / patches.shape[1])


def test_a_large_mean_loses_no_digits():
    conv, x = nn.Conv2d(1, 1, 3), torch.randn(1, 1, 20, 20, dtype=torch.float64)
    near, far = (Moments.from_inputs(conv, [x + mean, x + mean]) for mean in (0.0, 1e6))
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-6, atol=1e-8)


def test_sampling_is_bounded_deterministic_and_its_own():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 1, 3), torch.randn(4, 2, 40, 40)
    state = torch.random.get_rng_state()
    first, again, other = (
        Moments.from_inputs(conv, [x, x], patches=300, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.count == 300
    assert torch.equal(first.covariance, again.covariance)
    assert not torch.equal(first.covariance, other.covariance)
    whole = Moments.from_inputs(conv, [x], patches=10**6)
    assert float((first.covariance - whole.covariance).norm() / whole.covariance.norm()) < 0.3


@pytest.mark.parametrize("rows", [1, 7])
def test_patches_that_are_gathered_in_parts_are_the_same(monkeypatch, rows):
    conv, x = nn.Conv2d(4, 2, 3, groups=2), torch.randn(2, 4, 12, 12)
    whole = Moments.from_inputs(conv, [x, x + 1], patches=100, margin=1)
    monkeypatch.setattr(moments, "SAMPLE_BYTES", rows * 8 * 4 * 25)
    largest = []
    mean = torch.Tensor.mean

    def seen(self, *args, **kwargs):
        largest.append(self.shape)
        return mean(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "mean", seen)
    parts = Moments.from_inputs(conv, [x, x + 1], patches=100, margin=1)
    assert largest == [(2, rows, 50)]
    assert parts.count == whole.count == 100
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.covariance, whole.covariance)


@pytest.mark.parametrize("margin", [(0, 0), (1, 0), (1, 2)])
def test_cropping_is_collecting_less(margin):
    conv, x = nn.Conv2d(2, 2, (3, 5), padding=2, groups=2), torch.randn(1, 2, 12, 12)
    cropped = Moments.from_inputs(conv, [x], margin=(1, 2)).cropped(margin)
    wanted = Moments.from_inputs(conv, [x], margin=margin)
    assert cropped.window == wanted.window
    torch.testing.assert_close(cropped.mean, wanted.mean)
    torch.testing.assert_close(cropped.covariance, wanted.covariance)


def test_a_margin_can_not_grow():
    found = Moments.from_inputs(nn.Conv2d(1, 1, 3), [torch.randn(1, 1, 9, 9)], margin=1)
    with pytest.raises(ValueError, match="margin of at least"):
        found.cropped((2, 1))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one input"),
        ([torch.zeros(1, 3, 9, 9)], r"shape \(N, 2, H, W\), got \(1, 3, 9, 9\)"),
        ([torch.zeros(2, 9)], r"shape \(N, 2, H, W\)"),
        ([torch.zeros(1, 2, 4, 9)], "as large as the kernel"),
        ([torch.full((1, 2, 9, 9), torch.nan)], "finite"),
    ],
)
def test_what_the_layer_does_not_accept_is_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        Moments.from_inputs(nn.Conv2d(2, 2, 5), batches)


def test_moments_check_their_shapes():
    with pytest.raises(ValueError, match="covariance must have shape"):
        Moments(torch.zeros(1, 9), torch.zeros(1, 8, 8), (3, 3))
    with pytest.raises(ValueError, match="whole patches of 3x3"):
        Moments(torch.zeros(1, 8), torch.zeros(1, 8, 8), (3, 3))


def test_a_batch_of_nothing_changes_nothing():
    conv, x = nn.Conv2d(2, 1, 3), torch.rand(2, 2, 8, 8)
    collectors = [MomentsCollector(ConvGeometry.from_conv(conv)) for _ in range(2)]
    collectors[0].add(x[:0], 100)
    assert not collectors[0].count
    for collector in collectors:
        collector.add(x, 100)
    collectors[0].add(x[:0], 100)
    first, second = (collector.moments() for collector in collectors)
    assert torch.equal(first.covariance, second.covariance)


def test_nothing_collected():
    collector = MomentsCollector(ConvGeometry.from_conv(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="no patches"):
        collector.moments()
