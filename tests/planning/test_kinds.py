"""Every kind of convolution that people bring, replaced with the right numbers."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import convfactor
from convfactor.conv.cascade import Cascade
from convfactor.conv.forms import of_module
from convfactor.conv.framed import CascadeConvNd
from convfactor.factorization.families import families

OPTIONS = {"objective": "macs", "structures": "cascade"}
IMAGE, SEQUENCE = (2, 2, 15, 18), (2, 2, 61)


def exact(conv: nn.Module) -> nn.Module:
    """Give a convolution a kernel that a narrow cascade computes exactly."""
    form, geometry = of_module(conv.double())
    family = families(geometry)[0]
    kernel = Cascade.random(family.structure(family.widths(1e-9)), 0).compose()
    with torch.no_grad():
        conv.weight.copy_(form.kernel(kernel, geometry.groups))
    return conv


class Transposing(nn.Module):
    """Calls ``F.conv_transpose2d`` and ``F.conv1d`` itself."""

    def __init__(self):
        super().__init__()
        self.taps = nn.Parameter(exact(nn.ConvTranspose2d(2, 2, 10, 2)).weight.detach())
        self.shift = nn.Parameter(torch.tensor([0.5, -1.0]).double())
        self.row = nn.Parameter(exact(nn.Conv1d(2, 2, 5)).weight.detach())

    def forward(self, x):
        y = F.conv_transpose2d(x, self.taps, self.shift, 2, output_padding=1)
        return F.conv1d(y.flatten(-2), self.row, stride=2)


class Renamed(nn.Conv2d):
    def __init__(self, *args, note="", **options):
        super().__init__(*args, **options)
        self.note = note

    def forward(self, x):
        assert self.note == "kept"
        return super().forward(x)


class Same(nn.Conv2d):
    """Padding computed from the size, as timm's Conv2dSame."""

    def forward(self, x):
        pads = []
        for size, taps, step in zip(x.shape[:-3:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + taps - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


class Gained(nn.Conv2d):
    """Computes its weight, as timm's ScaledStdConv2d does."""

    def forward(self, x):
        return F.conv2d(x, 0.5 * self.weight, self.bias, self.stride, self.padding)


class GainedSame(Same):
    """Computes both, as timm's StdConv2dSame does."""

    def forward(self, x):
        pads = []
        for size, taps, step in zip(x.shape[:-3:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + taps - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), 0.5 * self.weight, self.bias, self.stride)


def pruned():
    conv = exact(nn.Conv2d(2, 3, 5, padding=2))
    prune.custom_from_mask(conv, "weight", torch.ones_like(conv.weight))
    return conv


def hooked():
    conv = exact(nn.Conv2d(2, 3, 5))
    conv.register_forward_hook(lambda module, args, output: output.relu())
    return conv


MODELS = {
    "sequences": lambda: exact(nn.Conv1d(2, 3, 5, padding=2)),
    "dilated sequences": lambda: exact(nn.Conv1d(2, 3, 5, padding="same", dilation=2)),
    "circular sequences": lambda: exact(nn.Conv1d(2, 2, 5, padding=4, padding_mode="circular")),
    "transposed": lambda: exact(nn.ConvTranspose2d(2, 3, 10, 2, 4, 1)),
    "transposed, 3 phases": lambda: exact(nn.ConvTranspose2d(2, 2, 15, 3, 4, 2)),
    "transposed, no stride": lambda: exact(nn.ConvTranspose2d(2, 2, 5, padding=2)),
    "transposed, dilated": lambda: exact(nn.ConvTranspose2d(2, 2, 5, padding=3, dilation=2)),
    "transposed, groups": lambda: exact(nn.ConvTranspose2d(2, 4, 10, 2, groups=2)),
    "transposed sequences": lambda: exact(nn.ConvTranspose1d(2, 2, 20, 4, 6)),
    "functional": Transposing,
    "renamed": lambda: exact(Renamed(2, 3, 5, padding=2, note="kept")),
    "same": lambda: exact(Same(2, 3, 5)),
    "computed": lambda: exact(Gained(2, 3, 5, padding=1)),
    "computed, same": lambda: exact(GainedSame(2, 3, 5, 2)),
    "parametrized": lambda: parametrizations.weight_norm(exact(nn.Conv2d(2, 3, 5))),
    "parametrized sequences": lambda: parametrizations.weight_norm(exact(nn.Conv1d(2, 3, 5))),
    "pruned": pruned,
    "hooked": hooked,
}


ROOTS = ("sequences", "transposed", "functional", "computed", "hooked")


@pytest.mark.parametrize("name", [*MODELS, *(f"{name} as the root" for name in ROOTS)])
def test_every_kind_is_replaced_and_computes_the_same(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name.removesuffix(" as the root")]().eval()
    model = model if name.endswith("root") else nn.Sequential(nn.Identity(), model)
    shape = SEQUENCE if "sequences" in name else IMAGE
    x = torch.randn(shape, dtype=torch.float64)
    wider = torch.randn(*shape[:-1], shape[-1] + 5, dtype=torch.float64)

    fast, plan = convfactor.optimize(model, x, 1e-6, **OPTIONS)

    assert [entry.decision.label for entry in plan.entries] == ["replaced"] * len(plan.entries)
    assert plan.entries
    for given in (x, wider, x[0]):
        true = model(given)
        torch.testing.assert_close(fast(given), true, rtol=0, atol=1e-10)
    plan.save(tmp_path)
    again = convfactor.Plan.load(tmp_path).apply(model)
    assert torch.equal(again(wider), fast(wider))
    torch.testing.assert_close(copy.deepcopy(fast)(x), fast(x))
    torch.manual_seed(1)
    convfactor.save(fast, tmp_path / "saved")
    fresh = MODELS[name.removesuffix(" as the root")]().eval()
    fresh = fresh if name.endswith("root") else nn.Sequential(nn.Identity(), fresh)
    assert torch.equal(convfactor.load(tmp_path / "saved", fresh)(wider), fast(wider))
    assert torch.equal(plan.revert(fast, model)(wider), model(wider))
    traceable = all(entry.subject.kind == "module" for entry in plan.entries) and "same" not in name
    if traceable and "root" not in name:
        traced = torch.fx.symbolic_trace(fast)
        torch.testing.assert_close(traced(wider), fast(wider))
    exported = torch.export.export(fast, (x,)).module()
    torch.testing.assert_close(exported(x), fast(x))
    assert plan.to_html(None, model)


def test_what_computes_its_weight_from_others_is_refused():
    model = nn.Sequential(exact(Gained(2, 3, 5)))
    x = torch.randn(IMAGE, dtype=torch.float64)
    plan = convfactor.plan(model, x, 1e-6, **OPTIONS)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(convfactor.PlanMismatchError, match="computes its weight from other"):
        plan.apply(model)


def test_the_layer_answers_as_a_transposed_convolution():
    conv = exact(nn.ConvTranspose2d(2, 3, 10, 2, 4, 1))
    x = torch.randn(IMAGE, dtype=torch.float64)
    fast, _ = convfactor.optimize(nn.Sequential(conv), x, 1e-6, **OPTIONS)
    layer = fast[0]
    assert isinstance(layer, CascadeConvNd)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding",
                 "output_padding", "dilation", "groups", "transposed"):  # fmt: skip
        assert getattr(layer, name) == getattr(conv, name)
    assert (layer.weight.shape, layer.weight.ndim) == (conv.weight.shape, 4)
    torch.testing.assert_close(layer.weight.detach(), conv.weight.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(layer.bias, conv.bias, rtol=0, atol=1e-10)
    size = conv(x).shape[-2:]
    assert torch.equal(layer(x, output_size=size), layer(x))
    for change in itertools.product((-1, 0), (-1, 0)):
        asked = [side + by for side, by in zip(size, change, strict=True)]
        for image in (x, x[0]):
            torch.testing.assert_close(
                layer(image, output_size=asked), conv(image, output_size=asked), rtol=0, atol=1e-8
            )
    with pytest.raises(ValueError, match=r"output_size must be between .* and .*, got"):
        layer(x, output_size=[size[0] + 1, size[1]])


def test_an_output_size_may_be_larger_than_that_of_the_module():
    conv = exact(nn.ConvTranspose1d(2, 3, 21, 4, 3))
    x = torch.randn(1, 2, 16, dtype=torch.float64)
    fast, plan = convfactor.optimize(nn.Sequential(conv), x, 1e-6, **OPTIONS)
    assert plan.replaced
    for more in range(4):
        size = [conv(x).shape[-1] + more]
        torch.testing.assert_close(
            fast[0](x, output_size=size), conv(x, output_size=size), rtol=0, atol=1e-8
        )


def test_eighty_taps_of_separable_structure_are_exact():
    conv = nn.Conv1d(8, 12, 80, stride=2).double()
    torch.manual_seed(0)
    taps = torch.randn(2, 80, dtype=torch.float64)
    across = torch.randn(12, 2, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("or,ri,rk->oik", *across, taps))
    x = torch.randn(1, 8, 300, dtype=torch.float64)
    fast, plan = convfactor.optimize(conv, x, 1e-9, objective="macs")
    assert plan.entries[0].decision.cost.relative < 0.1
    torch.testing.assert_close(fast(x), conv(x), rtol=1e-12, atol=1e-11)


def test_refinement_trains_them():
    torch.manual_seed(0)
    torch.manual_seed(0)
    layers = exact(nn.Conv1d(4, 4, 5, padding=2)), exact(nn.ConvTranspose1d(4, 4, 10, 2))
    with torch.no_grad():
        for layer in layers:
            layer.weight += 0.05 * torch.randn_like(layer.weight)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()
    batches = [torch.randn(2, 4, 40, dtype=torch.float64) for _ in range(4)]
    _, plan = convfactor.optimize(
        model, batches[0], model_tolerance=0.5, calibration=batches, **OPTIONS
    )
    assert plan.replaced
    (refined,) = plan.whole.errors
    _, plain = convfactor.optimize(
        model, batches[0], model_tolerance=0.5, calibration=batches, refine=False, **OPTIONS
    )
    assert refined < plain.whole.errors[0]
