"""The demo's network and photographs."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from convfactor.demo import network, photographs


def picture(height: int, width: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_load_returns_srcnn_9_5_5_in_eval_mode():
    srcnn = network.load()
    shapes = {name: tuple(w.shape) for name, w in srcnn.state_dict().items()}
    assert shapes == {
        "conv1.weight": (64, 1, 9, 9),
        "conv1.bias": (64,),
        "conv2.weight": (32, 64, 5, 5),
        "conv2.bias": (32,),
        "conv3.weight": (1, 32, 5, 5),
        "conv3.bias": (1,),
    }
    assert not srcnn.training
    for weight in srcnn.parameters():
        assert weight.dtype == torch.float32
        assert weight.device.type == "cpu"
        assert weight.isfinite().all()


def test_load_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    network.load()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(33, 48), (7, 5), (1, 1)])
def test_network_keeps_the_size(size):
    assert network.load()(picture(*size)).shape == (1, 1, *size)


@pytest.mark.parametrize("rim", [0, 6])
@pytest.mark.parametrize("name", ["astronaut", "camera"])
def test_network_beats_bicubic_by_a_decibel(name, rim):
    pytest.importorskip("skimage")
    luma = photographs.testing()[name]
    original, bicubic = photographs.crop(luma), photographs.degrade(luma)
    with torch.no_grad():
        sharpened = network.load()(bicubic)
    gain = photographs.psnr(sharpened, original, rim) - photographs.psnr(bicubic, original, rim)
    assert gain >= 1.0


def test_photographs_are_luma_and_the_test_ones_are_kept_apart():
    pytest.importorskip("skimage")
    training, testing = photographs.training(), photographs.testing()
    assert set(testing) == {"astronaut", "camera"}
    assert len(training) >= 10
    assert not set(testing) & set(training)
    for luma in (*training.values(), *testing.values()):
        assert luma.dtype == torch.float32
        assert luma.shape[:2] == (1, 1)
        assert luma.min() >= 0
        assert luma.max() <= 1
        assert luma.std() > 0.01


def test_luma_is_bt601_of_the_shipped_file():
    data = pytest.importorskip("skimage.data")
    ycbcr = pytest.importorskip("skimage.color").rgb2ycbcr(data.astronaut())
    # rgb2ycbcr gives BT.601 at studio range, 16 to 235.
    expected = (ycbcr[..., 0] - 16) / 219
    np.testing.assert_allclose(photographs.testing()["astronaut"][0, 0], expected, atol=1e-5)


def test_missing_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"convfactor\[demo\]"):
        photographs.testing()


@pytest.mark.parametrize(("size", "whole"), [((32, 47), (30, 45)), ((30, 45), (30, 45))])
def test_degrade_crops_to_a_multiple_of_the_scale(size, whole):
    luma = picture(*size)
    degraded = photographs.degrade(luma)
    assert degraded.shape == (1, 1, *whole)
    assert torch.equal(degraded, photographs.degrade(luma[..., : whole[0], : whole[1]]))
    assert torch.equal(photographs.crop(luma), luma[..., : whole[0], : whole[1]])


def test_degrade_keeps_slow_changes_and_loses_fast_ones():
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(90.0), indexing="ij")
    slow = (0.5 + 0.3 * torch.sin(columns / 20) * torch.cos(rows / 20))[None, None]
    checkers = ((rows + columns) % 2)[None, None]
    assert photographs.psnr(photographs.degrade(slow), slow, 6) > 50
    assert photographs.degrade(checkers)[..., 6:-6, 6:-6].std() < 0.1


def test_degrade_stays_in_range():
    edge = torch.zeros(1, 1, 60, 60)
    edge[..., 30:] = 1
    degraded = photographs.degrade(edge)
    assert degraded.min() == 0
    assert degraded.max() == 1


def test_degrade_refuses_a_picture_without_a_whole_block():
    with pytest.raises(ValueError, match=r"luma.*scale = 3.*\(1, 1, 2, 9\)"):
        photographs.degrade(picture(2, 9))


def test_psnr_of_a_known_error():
    a = torch.full((1, 1, 20, 30), 0.5)
    assert photographs.psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert photographs.psnr(a, a) == math.inf


def test_psnr_leaves_out_the_rim():
    a = picture(20, 30)
    b = a + 0.01
    b[..., :3, :] += 1
    b[..., :, -3:] += 1
    assert photographs.psnr(a, b, rim=3) == pytest.approx(40, abs=1e-3)
    assert photographs.psnr(a, b, rim=2) < 20


def test_psnr_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"crop\(\)"):
        photographs.psnr(picture(20, 20), picture(18, 18))
    for rim in (-1, 10):
        with pytest.raises(ValueError, match="rim"):
            photographs.psnr(picture(20, 20), picture(20, 20), rim)
