"""The real networks that CONVFACTOR_CASES points to."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import convfactor
from convfactor.demo import photographs

pytest.importorskip("skimage")
FOLDER = os.environ.get("CONVFACTOR_CASES")
pytestmark = pytest.mark.skipif(not FOLDER, reason="CONVFACTOR_CASES is not set")
CALIBRATION = (
    "chelsea", "coffee", "coins", "hubble_deep_field", "ihc", "moon", "motorcycle_left", "retina",
    "rocket",
)  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    spec = importlib.util.spec_from_file_location("networks", Path(FOLDER) / "networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def luma(path):
    import skimage.io

    pixels = torch.from_numpy(skimage.io.imread(path)).double() / 255
    if pixels.ndim == 3:
        pixels = pixels[..., :3] @ torch.tensor(photographs.LUMA).double()
    return photographs.crop(pixels.float()[None, None])


def test_srcnn_keeps_its_quality_on_unseen_pictures(networks):
    net = networks.srcnn()
    training = photographs.training()
    batches = [photographs.degrade(training[name][..., :300, :300]) for name in CALIBRATION]
    fast, plan = convfactor.optimize(
        net,
        batches[0],
        tolerance=0.06,
        calibration=batches,
        select=lambda name, module: name == "conv2",
        objective="macs",
        structures="cascade",
        min_speedup=1.5,
    )
    entry = next(e for e in plan.entries if e.name == "conv2")
    assert entry.replaced, plan
    assert entry.error <= 0.06
    assert 1 / entry.decision.cost.relative >= 1.5
    assert type(fast) is type(net)
    for name in ("baby", "butterfly", "head"):
        true = luma(Path(FOLDER) / "images" / f"{name}_GT.png")
        x = photographs.degrade(true)
        with torch.no_grad():
            before, after = net(x).clamp(0, 1), fast(x).clamp(0, 1)
        for rim in (0, 6):
            loss = photographs.psnr(before, true, rim) - photographs.psnr(after, true, rim)
            assert loss <= 0.20, (name, rim, loss)


def test_networks_that_do_not_trace_are_planned_by_what_they_call(networks):
    for make, size, kernels in (
        (networks.style_transfer, (1, 3, 64, 64), {"convs.0": 9, "last": 9}),
        (networks.faceboxes, (1, 3, 128, 128), {"conv1.conv": 7, "conv2.conv": 5}),
    ):
        net = make()
        x = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 255
        plan = convfactor.plan(net, x, tolerance=1e-6, objective="macs", structures="cascade")
        assert {e.name: e.subject.kernel_size[0] for e in plan.entries} == kernels
        assert all(not e.replaced and e.missed for e in plan.entries), plan


def test_traced_cases_compute_the_same(networks):
    for make, size in ((networks.srcnn, (1, 1, 24, 30)), (networks.faceboxes, (1, 3, 128, 128))):
        net = make()
        x = torch.rand(size, generator=torch.Generator().manual_seed(0))
        graph = convfactor.fx.trace(net)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), net(x))
