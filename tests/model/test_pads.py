"""Zeros that a module pads in front of a convolution become the cascade's own."""

from __future__ import annotations

import pytest
import torch
from tiny import conv, images
from torch import nn

import convfactor
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.model.pads import FoldedPad

OPTIONS = {"objective": "macs", "structures": "cascade"}


class Uses(nn.Module):
    """A padding and a convolution, put together by a function."""

    def __init__(self, use, pad=None, layer=None):
        super().__init__()
        self.use = use
        self.pad = nn.ZeroPad2d((1, 2, 3, 0)) if pad is None else pad
        self.layer = conv(padding=0) if layer is None else layer

    def forward(self, x):
        return self.use(self, x)


def plain(m, x):
    return m.layer(m.pad(x))


def found(model):
    (site,) = find(model.eval(), ModelInputs.read(images()))
    return site.subject


def sequence(pad, layer):
    return nn.Sequential(pad, layer).eval()


TOGETHER = {
    "zeros": sequence(nn.ZeroPad2d((1, 2, 3, 0)), conv(padding=0)),
    "strided": sequence(nn.ConstantPad2d(2, 0.0), conv(padding=1, stride=2)),
    "computed": sequence(
        nn.ZeroPad2d((1, 2, 3, 0)), nn.utils.parametrizations.weight_norm(conv(padding=0))
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_zeros_in_front_become_the_cascades_own(name, tmp_path):
    model = TOGETHER[name]
    x = images(count=2)
    fast, plan = convfactor.optimize(model, x, 1e-3, **OPTIONS)
    (entry,) = plan.entries
    assert entry.subject.pad == "0"
    assert type(fast[0]) is FoldedPad
    left, right, top, bottom = model[0].padding
    own = model[1].padding[0]
    assert fast[1].geometry.padding == (left + own, right + own, top + own, bottom + own)
    for size in (12, 15):
        given = images(1, count=2, size=size)
        torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-4)
    plan.save(tmp_path)
    assert torch.equal(convfactor.Plan.load(tmp_path).apply(model)(x), fast(x))
    convfactor.save(fast, tmp_path / "saved")
    again = convfactor.load(tmp_path / "saved", model)
    assert type(again[0]) is FoldedPad
    assert torch.equal(again(x), fast(x))
    assert torch.equal(plan.revert(fast, model)(x), model(x))


def reader(m, x):
    y = m.pad(x)
    return m.layer(y) + y.mean()


def hooked():
    pad = nn.ZeroPad2d(2)
    pad.register_full_backward_hook(lambda *args: None)
    return sequence(pad, conv(padding=0))


def placed_twice():
    layer = conv(padding=0)
    return nn.Sequential(nn.Sequential(nn.ZeroPad2d(2), layer), nn.Sequential(layer))


APART = {
    "put together by a forward": Uses(plain),
    "left out for other sizes": Uses(lambda m, x: plain(m, x) if x.shape[-1] < 20 else m.layer(x)),
    "with a hook": hooked(),
    "of a layer in two places": placed_twice(),
    "something between in a sequence": nn.Sequential(nn.ZeroPad2d(2), nn.ReLU(), conv(padding=0)),
    "read elsewhere": Uses(reader),
    "returned": Uses(lambda m, x: [y := m.pad(x), (m.layer(y), y)][1]),
    "used elsewhere": Uses(lambda m, x: plain(m, x) + m.pad(x).mean()),
    "not every time": Uses(lambda m, x: plain(m, x).mean() + m.layer(x)),
    "something between": Uses(lambda m, x: m.layer(m.pad(x).relu())),
    "ones": Uses(plain, nn.ConstantPad2d(2, 1.0)),
    "cropped": Uses(plain, nn.ZeroPad2d((-1, 2, 2, 2))),
    "reflected": Uses(plain, nn.ReflectionPad2d(2)),
    "reflects itself": Uses(plain, layer=conv(padding=1, padding_mode="reflect")),
}


@pytest.mark.parametrize("model", APART.values(), ids=list(APART))
def test_other_paddings_stay(model):
    assert (found(model).pad, found(model).pads) == ("", (0, 0, 0, 0))


def test_a_plan_is_of_its_padding(tmp_path):
    layer = conv(padding=0)
    fast, plan = convfactor.optimize(sequence(nn.ZeroPad2d(2), layer), images(), 1e-3, **OPTIONS)
    convfactor.save(fast, tmp_path)
    for pad in (nn.ZeroPad2d(1), nn.Identity()):
        other = sequence(pad, layer)
        with pytest.raises(convfactor.PlanMismatchError, match="adds"):
            plan.apply(other)
        with pytest.raises(convfactor.PlanMismatchError):
            convfactor.load(tmp_path, other)
