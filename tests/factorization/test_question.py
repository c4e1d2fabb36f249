"""What ``factorize`` reads as a kernel, and what it refuses before any work."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convfactor import StageShape, Structure, factorize
from convfactor.factorization.question import read_weight

BINOMIAL = [[1, 4, 6, 4, 1], [4, 16, 24, 16, 4], [6, 24, 36, 24, 6], [4, 16, 24, 16, 4],
            [1, 4, 6, 4, 1]]  # fmt: skip


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "given",
    [
        BINOMIAL,
        [[float(v) for v in row] for row in BINOMIAL],
        tuple(map(tuple, BINOMIAL)),
        np.array(BINOMIAL),
        np.array(BINOMIAL, dtype=np.uint8),
        np.array(BINOMIAL, dtype=">f8"),
        np.array(BINOMIAL, dtype=np.longdouble),
        np.array(BINOMIAL, dtype=">i2"),
        np.asfortranarray(np.array(BINOMIAL, dtype=float)),
        np.array(BINOMIAL, dtype=float)[::-1, ::-1],
        np.broadcast_to(np.array(BINOMIAL, dtype=float), (1, 1, 5, 5)),
        torch.tensor(BINOMIAL),
        torch.tensor(BINOMIAL, dtype=torch.int16),
        torch.tensor(BINOMIAL, dtype=torch.uint8)[None, None],
    ],
)
def test_masks_of_any_kind_are_taken_as_float64(given):
    f = factorize(given, 1e-9)
    assert [(k.dtype, tuple(k.shape)) for k in f.kernels] == [(torch.float64, (1, 1, 3, 3))] * 2
    torch.testing.assert_close(
        f.compose()[0, 0], torch.tensor(BINOMIAL).double(), atol=1e-11, rtol=0
    )


def test_booleans_are_zeros_and_ones():
    mask = np.eye(5, dtype=bool)
    for given in (mask, torch.from_numpy(mask), mask.tolist()):
        assert torch.equal(read_weight(given)[0, 0], torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_arrays_keep_their_dtype_and_their_owner_keeps_the_array(dtype):
    array = noise(4, 3, 5, 5).numpy().astype(dtype)
    read = read_weight(array[:, :, ::-1])
    assert read.dtype == torch.from_numpy(array).dtype
    np.testing.assert_array_equal(read.numpy(), array[:, :, ::-1])
    read.zero_()
    assert array.any()


def dense(**changes):
    return {"weight": noise(4, 2, 5, 5), "tolerance": 0.1, **changes}


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.rand(5, 5), 0.1, 0, torch.qint8)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.rand(5, 5), torch.rand(3, 3)])


@pytest.mark.parametrize(
    ("weight", "error", "match"),
    [
        (torch.empty(4, 4, 5, 5, device="meta"), ValueError, "meta device; load"),
        (torch.rand(5, 5).to_sparse(), TypeError, r"torch.sparse_coo; give weight.to_dense\(\)"),
        (torch.rand(5, 5).to_mkldnn(), TypeError, r"_mkldnn; give weight.to_dense\(\)"),
        (quantized(), TypeError, r"torch.qint8 one; give weight.dequantize\(\)"),
        (nested(), TypeError, "nested tensor; give one kernel"),
        (torch.rand(5, 5).to(torch.float8_e4m3fn), TypeError, "float8_e4m3fn; convert it"),
        (torch.rand(5, 5) + 1j, TypeError, "complex64; factorize its real"),
        (np.ones((5, 5), dtype=complex), TypeError, "complex128 array"),
        ([[1, 2], [3]], TypeError, "tensor or an array, got list"),
        ([["a"]], TypeError, "tensor or an array, got list"),
        ("kernel", TypeError, "tensor or an array, got str"),
        (np.array([[1, None]], dtype=object), TypeError, "got object array"),
        ([[10**400]], TypeError, "got list"),
        (nn.Conv2d(1, 1, 5), TypeError, "got Conv2d; give conv.weight"),
    ],
)
def test_what_is_no_kernel_is_refused(weight, error, match):
    with pytest.raises(error, match=match):
        factorize(weight, 0.1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": "1"}, TypeError, "seed must be an int, got str '1'"),
        ({"seed": 1.0}, TypeError, "seed must be an int, got float 1.0"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"seed": True}, TypeError, "seed must be an int, got bool"),
        ({"seed": 2**63}, ValueError, "seed must be an int of 64 bits"),
        ({"stride": 2**70}, ValueError, "stride must be at most 2147483647 pixels"),
        ({"dilation": (1, 2**31)}, ValueError, "dilation must be at most 2147483647 pixels"),
        ({"groups": 2**70}, ValueError, "groups must divide"),
        ({"time_limit": 0}, ValueError, "time_limit must be a number of seconds above 0"),
        ({"time_limit": math.nan}, ValueError, "time_limit must be a number of seconds above 0"),
        ({"time_limit": "1"}, ValueError, "time_limit must be a number of seconds above 0"),
        ({"time_limit": True}, ValueError, "time_limit must be a number of seconds above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        factorize(**dense(**options))


@pytest.mark.parametrize(
    ("question", "match"),
    [
        ({"stages": 10**9}, "stages must make at most 5 stages, twice .*5x5.*got 1000000000"),
        ({"widths": [1] * 100_000}, "widths must make at most 5 stages.*got 100001"),
        ({"widths": [10**12]}, "use narrower ones"),
        (
            {"structure": Structure((StageShape(2, 4, (3, 3), dilation=2**40),))},
            "too large .* takes some .* GB, and 4 are allowed",
        ),
        (
            {"structure": Structure((StageShape(2, 10**7, (3, 3)), StageShape(10**7, 4, (3, 3))))},
            "too large .* takes some .* GB",
        ),
    ],
)
def test_what_takes_too_much_is_refused_before_any_of_it_is_made(question, match):
    with pytest.raises(ValueError, match=match):
        factorize(noise(4, 2, 5, 5), **question)


def test_a_kernel_of_very_many_channels_is_not_begun():
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float32).expand(8192, 4096, 7, 7)[:2048, :512]
    f = factorize(weight, 0.1)
    assert f.met is False
    assert f.error == 0
    assert "can be solved: the cheapest takes some" in f.message


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("size", "stride"), [(16, 16), (7, 8), (4, 4)])
def test_a_kernel_not_larger_than_its_stride_is_returned_at_once(size, stride, groups, monkeypatch):
    monkeypatch.setattr("convfactor.factorization.factorizer.solve", None)  # nothing is solved
    weight = noise(192, 3 // groups, size, size)
    f = factorize(weight, 0.1, stride=stride, groups=groups)
    assert f.met is False
    assert "not larger than its stride" in f.message
    assert torch.equal(f.kernels[0], weight)
    assert f.structure.stride == (stride, stride)


@pytest.mark.parametrize(("size", "stride", "dilation"), [(5, 2, 2), (9, 4, 1), (9, (1, 16), 1)])
def test_a_kernel_that_reads_pixels_again_is_tried(size, stride, dilation):
    f = factorize(noise(2, 2, size, size), 0.9, stride=stride, dilation=dilation, time_limit=1)
    assert "not larger than its stride" not in f.message
    assert len(f.stages) > 1


def test_a_float16_kernel_of_large_weights_stays_finite():
    weight = (noise(1, 3, 6, 6) * 2e4).half()
    f = factorize(weight, stages=2, time_limit=1)
    assert all(bool(k.isfinite().all()) for k in f.kernels)
    assert f.error < 1
