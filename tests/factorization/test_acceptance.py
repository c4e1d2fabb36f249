"""What the solvers must show, through the public interface where it is cheap and deterministic."""

from __future__ import annotations

import importlib.util
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import correlate
from torch import Tensor, nn

from convfactor import Cascade, Factorization, Moments, StageShape, Structure, factorize
from convfactor.factorization.solvers import Problem, Request, alternating, levenberg
from convfactor.factorization.solvers.chains import chain_structure

FOLDER = os.environ.get("CONVFACTOR_CASES")
BANDS = [
    (biort, band)
    for biort in ("antonini", "legall", "near_sym_a", "near_sym_b")
    for band in ("ll", "lh", "hl", "hh")
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def synthesis_kernel(biort: str, band: str) -> Tensor:
    pytest.importorskip("pytorch_wavelets")
    from convfactor.wavelets import synthesis_kernels

    return torch.from_numpy(synthesis_kernels(biort)[band].copy())


def gaussian(size: int, sigma: float) -> Tensor:
    taps = torch.exp(-((torch.arange(size) - (size - 1) / 2).double() ** 2) / (2 * sigma**2))
    return torch.outer(taps, taps)


def in_float32(kernel: Tensor, found: Factorization) -> float:
    """Error of running the cascade in float32 on noise with a mean, by scipy in float64."""
    image = noise(1, 1, *(side + 40 for side in kernel.shape)).float() + 1
    output = image
    for stage in found.cascade.to(torch.float32).stages:
        output = F.conv2d(output, stage.weight)
    exact = correlate(image[0, 0].double().numpy(), kernel.numpy(), "valid")
    return float(np.linalg.norm(output[0, 0].numpy() - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("biort", "band"), BANDS)
def test_wavelet_kernels_are_exact(biort: str, band: str) -> None:
    kernel = synthesis_kernel(biort, band)
    stages = (max(kernel.shape) - 1) // 2
    found = factorize(kernel, widths=(1,) * (stages - 1))
    assert max(max(weight.shape) for weight in found.kernels) <= 3
    assert found.error <= 1e-12


@pytest.mark.parametrize(("biort", "band"), BANDS)
def test_wavelet_kernels_run_in_float32(biort: str, band: str) -> None:
    kernel = synthesis_kernel(biort, band)
    found = factorize(kernel, widths=(1,) * ((max(kernel.shape) - 3) // 2))
    assert in_float32(kernel, found) <= 5e-7


@pytest.mark.parametrize(
    ("band", "most"), [("lh", 2.1206e-2), ("hl", 2.1206e-2), ("ll", 2.9987e-2), ("hh", 1e-12)]
)
def test_two_stages_of_near_sym_a(band: str, most: float) -> None:
    # The figures have five digits.
    assert factorize(synthesis_kernel("near_sym_a", band), widths=(1,)).error <= most * (1 + 2e-5)


@pytest.mark.parametrize(
    ("band", "most"), [("lh", 4.480e-4), ("hl", 4.480e-4), ("ll", 1.594e-2), ("hh", 1e-24)]
)
def test_mse_in_the_original_normalisation(band: str, most: float) -> None:
    kernel = synthesis_kernel("near_sym_a", band)
    problem = Problem(alternating.normalise(kernel)[None, None, None])
    corners = tuple((16 - side) // 2 + (side - 5) // 2 for side in kernel.shape)
    structure = chain_structure(1, 1, [(3, 3)] * 2, offset=(corners[0], corners[1]))
    found = levenberg.solve(Request(problem, structure))
    original = alternating.solve(Request(problem, structure))
    mse, theirs = (
        float(problem.residual(cascade).square().mean()) for cascade in (found, original.cascade)
    )
    assert mse <= most
    assert mse <= theirs


@pytest.mark.parametrize("band", ["lh", "hl", "hh"])
def test_admissibility_costs_exact_kernels_nothing(band: str) -> None:
    kernel = synthesis_kernel("near_sym_a", band)
    found = factorize(kernel, stages=(max(kernel.shape) - 1) // 2, preserve_dc=True)
    assert found.error <= 1e-12
    assert abs(float(found.compose().sum())) <= 1e-15


@pytest.mark.parametrize("size", [11, 15])
def test_gaussians_run_in_float32(size: int) -> None:
    kernel = gaussian(size, size / 8)
    found = factorize(kernel, widths=(1,) * ((size - 3) // 2))
    assert found.error <= 1e-12
    assert in_float32(kernel, found) <= 1e-4


@pytest.mark.parametrize("stages", [2, 3])
def test_the_original_method_is_never_better(stages: int) -> None:
    side = 2 * stages + 1
    weight = noise(12, 1, side, side)
    weight[:3] = gaussian(side, 1.0)
    weight[3:6] -= weight[3:6].mean((2, 3), keepdim=True)
    ours = factorize(weight, stages=stages, groups=12)
    original = factorize(weight, stages=stages, groups=12, solver="alternating")
    assert bool((ours.channel_errors <= original.channel_errors + 1e-9).all())


@pytest.mark.parametrize(("stages", "least"), [(2, 0.95), (3, 0.95), (4, 0.95), (5, 0.8)])
def test_composed_chains_are_recovered(stages: int, least: float) -> None:
    structure = chain_structure(100, 1, [(3, 3)] * stages)
    weight = Cascade.random(structure, stages).compose()
    found = factorize(weight, widths=(100,) * (stages - 1), groups=100, time_limit=math.inf)
    assert float((found.channel_errors <= 1e-8).double().mean()) >= least


def test_composed_dense_cascades_are_recovered() -> None:
    recovered = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(1000 + seed)
        inputs, outputs = torch.randint(2, 9, (2,), generator=generator).tolist()
        width = int(torch.randint(1, min(inputs, outputs) + 1, (1,), generator=generator))
        first, second = StageShape(inputs, width, (3, 3)), StageShape(width, outputs, (3, 3))
        structure = Structure((first, second))
        found = factorize(Cascade.random(structure, seed).compose(), widths=(width,))
        recovered += found.error <= 1e-8
    assert recovered >= 38


@pytest.mark.parametrize("power", [-300, -40, 3, 300])
@pytest.mark.parametrize("groups", [1, 4])
def test_scaling_by_a_power_of_two_scales_the_answer(power: int, groups: int) -> None:
    weight = noise(4, 4 // groups, 5, 5)
    widths = (groups if groups > 1 else 2,)
    plain = factorize(weight, widths=widths, groups=groups)
    scaled = factorize(weight * 2.0**power, widths=widths, groups=groups)
    assert scaled.error == pytest.approx(plain.error, rel=1e-9)
    torch.testing.assert_close(scaled.compose() / 2.0**power, plain.compose(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "widths"), [((3, 6, 5, 5), (3,)), ((2, 8, 7, 7), (3, 3)), ((4, 3, 7, 7), (2, 3))]
)
def test_transposed_kernels_reach_the_same_error(
    shape: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    weight = noise(*shape)
    found = factorize(weight, widths=widths)
    turned = factorize(weight.transpose(0, 1), widths=widths[::-1])
    assert turned.error == pytest.approx(found.error, abs=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_more_width_never_hurts_in_the_calibrated_metric(groups: int) -> None:
    side = 5 if groups == 1 else 7
    conv = nn.Conv2d(3, 3, side, groups=groups)
    moments = Moments.from_inputs(conv, [F.avg_pool2d(noise(4, 3, 40, 40), 3, 1) + 0.5])
    weight = noise(3, 3 // groups, side, side, seed=1)
    widths = (1, 2, 3) if groups == 1 else (3, 6)
    found = [factorize(weight, widths=(w,), groups=groups, moments=moments).error for w in widths]
    assert all(b <= a + 1e-7 for a, b in pairwise(found))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_all_zero_kernels_and_channels(groups: int) -> None:
    weight = noise(4, 4 // groups, 5, 5)
    weight[1] = 0
    if groups == 1:
        weight[:, 2] = 0
    found = factorize(weight, widths=(4,), groups=groups)
    assert all(bool(kernel.isfinite().all()) for kernel in found.kernels)
    assert float(found.channel_errors[1]) <= (0 if groups == 4 else 1)
    assert found.error < 1
    nothing = factorize(torch.zeros_like(weight), 1e-3, groups=groups)
    assert nothing.met
    assert nothing.error == 0
    assert not nothing.compose().any()


def test_rank_deficient_kernels() -> None:
    weight = noise(6, 1, 5, 5) * noise(1, 4, 1, 1, seed=1)  # one input mixture
    found = factorize(weight, widths=(4,))
    assert all(bool(kernel.isfinite().all()) for kernel in found.kernels)
    assert found.error < 1
    same = torch.outer(noise(5), noise(5, seed=1)).expand(6, 4, 5, 5)
    assert factorize(same, widths=(1,)).error <= 1e-8


@pytest.mark.parametrize("groups", [1, 4])
def test_a_tiny_channel_beside_huge_ones(groups: int) -> None:
    weight = noise(4, 4 // groups, 5, 5)
    weight[0] *= 1e-9
    weight[3] *= 1e9
    found = factorize(weight, widths=(4,), groups=groups)
    assert all(bool(kernel.isfinite().all()) for kernel in found.kernels)
    assert found.error < 0.9
    if groups == 4:
        alone = factorize(weight[:1], widths=(1,))
        assert float(found.channel_errors[0]) == pytest.approx(alone.error, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3)])
def test_kernels_that_are_small_already(size: tuple[int, int], dtype: torch.dtype) -> None:
    weight = noise(3, 2, *size).to(dtype)
    found = factorize(weight, 1e-6)
    assert len(found.kernels) == 1
    assert torch.equal(found.kernels[0], weight)
    assert found.error == 0
    assert found.met


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_scales(scale: float, groups: int, dtype: torch.dtype) -> None:
    weight = noise(4, 4 // groups, 5, 5)
    widths = (groups if groups > 1 else 2,)
    plain = factorize(weight.to(dtype), widths=widths, groups=groups)
    found = factorize((weight * scale).to(dtype), widths=widths, groups=groups)
    assert all(bool(kernel.isfinite().all()) for kernel in found.kernels)
    assert found.error == pytest.approx(plain.error, rel=1e-3)


@pytest.mark.parametrize("groups", [1, 4])
def test_subnormal_kernels_are_solved(groups: int) -> None:
    weight = noise(4, 4 // groups, 5, 5) * 1e-310
    widths = (groups if groups > 1 else 2,)
    found = factorize(weight, widths=widths, groups=groups)
    plain = factorize(weight * 1e300 * 1e10, widths=widths, groups=groups)
    wrong = (found.compose() - weight) * 1e300 * 1e10
    measured = float(wrong.norm() / (weight * 1e300 * 1e10).norm())
    assert measured == pytest.approx(plain.error, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-310, 1e-170])
def test_the_error_of_tiny_kernels_is_not_lost(scale: float) -> None:
    weight = noise(1, 1, 5, 5)
    error = factorize(weight, widths=(1,)).error
    assert factorize(weight * scale, widths=(1,)).error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("data", ["constant", "zero", "few"])
def test_degenerate_moments(data: str, groups: int) -> None:
    conv = nn.Conv2d(4, 4, 5, groups=groups, dtype=torch.float64).requires_grad_(False)
    conv.weight.copy_(noise(*conv.weight.shape))
    image = {
        "constant": torch.full((1, 4, 12, 12), 3.0, dtype=torch.float64),
        "zero": torch.zeros(1, 4, 12, 12, dtype=torch.float64),
        "few": noise(1, 4, 7, 7),  # 9 patches of 100 values
    }[data]
    moments = Moments.from_inputs(conv, [image])
    found = factorize(conv.weight, widths=(4,), groups=groups, moments=moments)
    assert all(bool(kernel.isfinite().all()) for kernel in found.kernels)
    output = image
    for stage in found.stages:
        output = F.conv2d(output, stage.weight, groups=stage.groups)
    output = output + found.bias_shift[:, None, None]
    exact = conv(image) - conv.bias[:, None, None]
    # Where the data leave taps open, the answer must be right on that data.
    allowed = 1e-9 * float(exact.norm()) if data != "few" else float(exact.norm()) * 0.7
    assert float((output - exact).norm()) <= allowed


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight = noise(2, 2, 5, 5)
    weight[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="weight must be finite"):
        factorize(weight, 0.1)
    image = noise(1, 2, 12, 12)
    image[0, 0, 5, 5] = bad
    with pytest.raises(ValueError, match="finite"):
        Moments.from_inputs(nn.Conv2d(2, 2, 5), [image])


@pytest.mark.skipif(not FOLDER, reason="CONVFACTOR_CASES is not set")
@pytest.mark.parametrize(
    ("network", "layer", "widths", "most"),
    [
        ("style_transfer", "last", (8, 8, 8), 0.2715),
        ("srcnn", "conv2", (24,), 0.4184),
    ],
)
def test_real_layers_in_the_weight_metric(
    network: str, layer: str, widths: tuple[int, ...], most: float
) -> None:
    assert FOLDER is not None
    spec = importlib.util.spec_from_file_location("networks", Path(FOLDER) / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    weight = getattr(networks, network)().get_submodule(layer).weight.detach()
    assert factorize(weight, widths=widths).error <= most


@pytest.mark.parametrize("taps", [31, 51])
def test_wide_gaussians_run_in_float32(taps: int) -> None:
    row = torch.exp(-0.5 * ((torch.arange(taps) - taps // 2) / (taps / 6)).double() ** 2)
    kernel = torch.outer(row, row)
    f = factorize(kernel, stages=(taps - 1) // 2)
    assert f.error < 1e-12
    x = noise(1, 1, taps + 40, taps + 40)
    y = x.float()
    for stage in f.cascade.to(torch.float32).stages:
        y = F.conv2d(y, stage.weight)
    true = F.conv2d(x, kernel[None, None])
    assert float((y - true).norm() / true.norm()) < 1e-4
