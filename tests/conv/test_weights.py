"""What stands in place of a weight: compiled, exported, copied, saved, trained."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, conv, images
from torch import nn

import convfactor
from convfactor import Cascade, CascadeConv2d, StageShape, Structure
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.weights import FactorizedWeight


class Net(Functional):
    """Asks for what a weight is, and scales by an optional argument."""

    def forward(self, x, scale=None):
        y = F.conv2d(x.to(self.kernel.dtype), self.kernel, self.shift, padding=2)
        return y * self.kernel.shape[0] if scale is None else y * scale


@pytest.fixture
def pair():
    model = Net().eval()
    fast, plan = convfactor.optimize(model, images(), 1e-3, objective="macs", structures="cascade")
    assert plan.replaced
    return model, fast


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_and_exports(pair, scale, dtype):
    _, fast = pair
    fast, x = fast.to(dtype), images().to(dtype)
    true = fast(x, scale)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, scale), true)
    for strict in (False, True):
        program = torch.export.export(fast, (x, scale), strict=strict)
        torch.testing.assert_close(program.module()(x, scale), true)
        convolved = [tuple(w.shape[2:]) for w in program.state_dict.values() if w.dim() == 4]
        assert set(convolved) == {(3, 3)}, "the cascade runs, not the composed kernel"
    if scale is None:
        torch.testing.assert_close(torch.jit.trace(fast, x)(x), true)


def test_copies_and_files_hold_their_own_cascade(pair):
    _, fast = pair
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for twin in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        with torch.no_grad():
            twin.kernel_cascade.stages[0].weight.zero_()
        assert twin.kernel.sum() == 0
        assert fast.kernel.sum() != 0
        assert torch.equal(twin(images())[0, :, 0, 0], 2 * fast.shift)


def test_gradients_reach_the_stages(pair):
    _, fast = pair
    assert fast.kernel.requires_grad
    fast(images()).sum().backward()
    assert all(stage.weight.grad.any() for stage in fast.kernel_cascade.stages)
    fast.zero_grad()
    fast.kernel.square().sum().backward()
    assert all(stage.weight.grad.any() for stage in fast.kernel_cascade.stages)


def test_the_state_dict_holds_the_stages(pair):
    model, fast = pair
    assert set(fast.state_dict()) == {
        "shift", "kernel_cascade.stages.0.weight", "kernel_cascade.stages.1.weight",
    }  # fmt: skip
    assert type(fast) is type(model)
    assert fast.half().kernel.dtype == torch.float16


def test_another_geometry_takes_the_composed_kernel(pair):
    model, fast = pair
    x = images()
    for options in ({"padding": 0}, {"stride": 2}, {"dilation": 2, "padding": "same"}):
        got = F.conv2d(x, fast.kernel, fast.shift, **options)
        torch.testing.assert_close(got, F.conv2d(x, model.kernel, model.shift, **options))


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w * 2,
        lambda w: 2 * w,
        lambda w: w - w.mean(),
        lambda w: -w,
        lambda w: w[0, :, 1],
        lambda w: torch.cat([w, w]),
        lambda w: torch.relu(w).sum(),
        lambda w: F.pad(w, (1, 1)),
        lambda w: w.flatten(1).norm(dim=1),
        lambda w: w == w,
        lambda w: torch.stack(list(w)),
        lambda w: torch.as_tensor(np.asarray(w.detach())),
        lambda w: w.detach(),
        lambda w: F.conv_transpose2d(torch.ones(1, 2, 3, 3), w),
        lambda w: torch.einsum("oiyx,oiyx->o", w, w),
        lambda w: torch.tensor([len(w), w.ndim, w.dim(), w.size(0), w.numel(), w.shape[-1]]),
    ],
)
def test_whatever_is_done_with_it_is_done_with_the_composed_kernel(pair, use):
    _, fast = pair
    layer = CascadeConv2d.from_conv(conv(), convfactor.factorize(conv().weight, stages=2))
    for weight in (fast.kernel, layer.weight):
        composed = weight._layer.cascade().compose().float()
        torch.testing.assert_close(use(weight), use(composed))


def test_a_layer_shows_its_weight_and_bias():
    layer = CascadeConv2d.from_conv(conv(), convfactor.factorize(conv().weight, stages=2))
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    assert tuple(layer.weight.shape) == (2, 2, 5, 5)
    assert repr(layer.weight) == "ComposedWeight(shape=(2, 2, 5, 5), dtype=torch.float32)"
    x = images()
    torch.testing.assert_close(F.conv2d(x, layer.weight, layer.bias, padding=2), layer(x))
    with pytest.raises(AttributeError):
        _ = layer.weight.nonsense


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_weight_stays_on_the_taps_of_the_original(dilation):
    """What the cascade spans beyond them is left out, and groups that it keeps apart are zero."""
    geometry = ConvGeometry(4, 4, (5, 5), (2, 2), dilation=(dilation, dilation), groups=2)
    stages = (StageShape(4, 4, (3, 3), (2, 2), groups=4), StageShape(4, 4, (3, 3), groups=4))
    cascade = Cascade.random(Structure(stages, (-1, -1)).dilated((dilation, dilation)))
    layer = CascadeConv2d.from_weight(torch.zeros(4, 2, 5, 5).double(), None, cascade, geometry)
    composed = cascade.compose()[..., dilation:-dilation:dilation, dilation:-dilation:dilation]
    weight = layer.composed()
    assert weight.shape == (4, 2, 5, 5)
    for channel in range(4):
        torch.testing.assert_close(weight[channel, channel % 2], composed[channel, 0])
        assert not weight[channel, 1 - channel % 2].any()


def test_it_is_no_tensor_and_what_does_not_ask_fails(pair):
    _, fast = pair
    assert not isinstance(fast.kernel, torch.Tensor)
    assert isinstance(fast.kernel, FactorizedWeight)
    with pytest.raises(RuntimeError):
        nn.Parameter(fast.kernel)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(0.5),
        lambda w: w.zero_(),
        lambda w: w.data.fill_(0),
        lambda w: nn.init.zeros_(w),
        lambda w: w.requires_grad_(False),
        lambda w: torch.add(torch.ones(1), 1, out=w),
        lambda w: torch.relu_(w),
        lambda w: setattr(w, "requires_grad", False),
    ],
)
def test_writing_to_it_is_refused(pair, write):
    _, fast = pair
    with torch.no_grad(), pytest.raises((AttributeError, TypeError)):
        write(fast.kernel)
