from __future__ import annotations

import copy

import pytest
import torch
from tiny import conv, images
from torch import fx, nn

import convfactor
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.model.norms import FoldedNorm
from convfactor.model.sites import Site

OPTIONS = {"objective": "macs", "structures": "cascade"}


def norm(channels: int = 2, kind: type[nn.Module] = nn.BatchNorm2d, **options) -> nn.Module:
    """A normalization with statistics and weights that matter."""
    made = kind(channels, **options).eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in (*made.named_parameters(), *made.named_buffers()):
        if value.is_floating_point():
            value.data = torch.rand(channels, generator=generator) + (name == "running_var")
    return made


class Uses(nn.Module):
    """A convolution and a normalization, put together by a function."""

    def __init__(self, use, layer=None, after=None):
        super().__init__()
        self.use = use
        self.layer = conv() if layer is None else layer
        self.norm = norm() if after is None else after

    def forward(self, x):
        return self.use(self, x)


def site(model: nn.Module, x=None) -> Site:
    (found,) = find(model.eval(), ModelInputs.read(images() if x is None else x))
    assert isinstance(found, Site)
    return found


def transposed() -> nn.ConvTranspose2d:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(2, 2, 9, 3, 4, 1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(conv(), norm(), nn.ReLU()), (2, 2, 12, 12)),
        (nn.Sequential(conv(bias=False), norm(affine=False)), (2, 2, 12, 12)),
        (nn.Sequential(conv(), norm(2, nn.SyncBatchNorm)), (2, 2, 12, 12)),
        (nn.Sequential(nn.Sequential(conv()), nn.Sequential(norm())), (2, 2, 12, 12)),
        (nn.Sequential(nn.Conv1d(2, 2, 5), norm(2, nn.BatchNorm1d)), (2, 2, 12)),
        (nn.Sequential(transposed(), norm()), (2, 2, 7, 7)),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), norm()), (2, 2, 12, 12)),
    ],
    ids=[
        "plain",
        "without weights",
        "synchronized",
        "nested",
        "sequences",
        "transposed",
        "computed",
    ],
)
def test_a_normalization_is_folded(model, shape):
    x = torch.randn(shape)
    found = site(model, x)
    form = found.form
    y = form.output(
        torch.nn.functional.conv2d(
            torch.nn.functional.pad(form.input(x), found.geometry.padding), found.weight, found.bias
        )
    )
    torch.testing.assert_close(y, model[:2](x), rtol=1e-4, atol=1e-5)


ALONE = [
    lambda m, x: m.norm(m.layer(x)),
    lambda m, x: m.norm(input=m.layer(x)) + m.norm(m.layer(x + 1)),
]
NOT_ALONE = [
    lambda m, x: m.norm(m.layer(x)) + m.layer(x),
    lambda m, x: [y := m.layer(x), m.norm(y) + y][1],
    lambda m, x: (y := m.layer(x), m.norm(y)),
    lambda m, x: [setattr(m, "last", m.layer(x)), m.norm(m.last)][1],
    lambda m, x: m.norm(m.layer(x)) + m.norm(x),
    lambda m, x: m.norm(m.layer(x).relu()),
    lambda m, x: [y := m.layer(x), m.norm(m.norm(y))][1],
    lambda m, x: [y := m.layer(x), m.norm(y) * m.norm(y)][1],
]


@pytest.mark.parametrize("use", ALONE)
def test_what_a_forward_puts_together_is_weighed_and_stays(use):
    found = site(Uses(use))
    assert found.subject.norm == ""
    assert found.scales.outputs is not None


def test_another_normalization_may_be_chosen_in_the_next_call():
    model = Uses(lambda m, x: m.after[int(x.shape[0] > 1)](m.layer(x)))
    model.after = nn.ModuleList([norm(), norm()])
    model.after[1].weight.data *= torch.tensor([3.0, -1.0])
    fast, plan = convfactor.optimize(model.eval(), images(), 1e-3, **OPTIONS)
    assert plan.replaced
    for count in (1, 2):
        x = images(1, count=count)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


class Walks(nn.Module):
    """Walks through a sequence by itself, and may leave it early."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, upto=None):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == upto:
                break
        return x


@pytest.mark.parametrize("layers", [
    nn.Sequential(conv(), norm()),
    nn.Sequential(nn.Sequential(conv()), nn.Sequential(norm())),
    nn.Sequential(nn.Sequential(conv()), norm()),
])  # fmt: skip
def test_a_sequence_may_be_left_between_two_modules(layers):
    model = Walks(layers).eval()
    fast, plan = convfactor.optimize(model, images(), 1e-3, **OPTIONS)
    assert plan.replaced
    assert plan.entries[0].subject.norm == ""
    for upto in (None, 0):
        torch.testing.assert_close(fast(images(), upto), model(images(), upto), rtol=0, atol=2e-3)


def test_a_sequence_in_a_sequence_that_is_walked_through_is_one():
    model = Walks(nn.Sequential(nn.Sequential(conv(), norm()), nn.ReLU()))
    assert site(model).subject.norm == "layers.0.1"


@pytest.mark.parametrize("change", [
    lambda m: m.register_full_backward_hook(lambda *args: None),
    lambda m: setattr(m, "forward", m.forward),
])  # fmt: skip
def test_what_else_runs_with_a_normalization_is_not_lost(change):
    model = nn.Sequential(conv(), norm()).eval()
    change(model[1])
    assert site(model).subject.norm == ""


@pytest.mark.parametrize("use", NOT_ALONE)
def test_what_somebody_else_reads_is_not_folded(use):
    assert site(Uses(use)).subject.norm == ""


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "after", [norm(kind=Activated), norm(track_running_stats=False), nn.GroupNorm(1, 2)]
)
def test_other_normalizations_stay(after):
    assert site(Uses(ALONE[0], after=after)).subject.norm == ""


def test_a_training_normalization_stays():
    model = Uses(ALONE[0]).eval()
    model.norm.train()
    (found,) = find(model, ModelInputs.read(images()))
    assert found.subject.norm == ""


def test_the_pair_is_judged_by_its_output():
    """Where the normalization scales a noisy channel down, its error counts for nothing."""
    torch.manual_seed(0)
    layer = conv(out=6)
    with torch.no_grad():
        layer.weight[2:] = torch.randn_like(layer.weight[2:])
    after = norm(6)
    after.weight.data = torch.tensor([1.0, 1.0, *[1e-5] * 4])
    x = images()
    alone = convfactor.plan(nn.Sequential(layer), x, 1e-3, **OPTIONS)
    assert not alone.replaced
    model = nn.Sequential(layer, after).eval()
    fast, plan = convfactor.optimize(model, x, 1e-3, **OPTIONS)
    assert plan.replaced
    assert isinstance(fast[1], FoldedNorm)
    assert not fast[1].training
    torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_a_plan_is_of_its_normalization(tmp_path):
    model = nn.Sequential(conv(), norm()).eval()
    fast, plan = convfactor.optimize(model, images(), 1e-3, **OPTIONS)
    plan.save(tmp_path)
    again = convfactor.Plan.load(tmp_path).apply(model)
    assert torch.equal(again(images()), fast(images()))
    convfactor.save(fast, tmp_path / "saved")
    fresh = nn.Sequential(conv(seed=3), nn.BatchNorm2d(2)).eval()
    assert torch.equal(convfactor.load(tmp_path / "saved", fresh)(images()), fast(images()))
    assert torch.equal(plan.revert(fast, model)(images()), model(images()))
    with pytest.raises(convfactor.PlanMismatchError, match="a batch normalization"):
        convfactor.load(tmp_path / "saved", nn.Sequential(conv(), nn.ReLU()))
    model[1].running_mean += 1
    with pytest.raises(convfactor.PlanMismatchError, match="not the weight that was planned"):
        plan.apply(model)
    with pytest.raises(convfactor.PlanMismatchError, match="no batch normalization '1'"):
        plan.apply(nn.Sequential(model[0], nn.ReLU()))


class Skips(nn.Sequential):
    """The same layers, whose forward reads what is between them."""

    def forward(self, x):
        return self[1](y := self[0](x)) + y


class Tapped(fx.GraphModule):
    """The same layers in a graph that gives what is between them as well."""

    def __init__(self, model):
        traced = fx.symbolic_trace(model)
        first, *_, output = (n for n in traced.graph.nodes if n.op != "placeholder")
        output.args = ((first, output.args[0]),)
        super().__init__(traced, traced.graph)


def hooked(model, which):
    changed = copy.deepcopy(model)
    changed[which].register_forward_hook(lambda module, args, output: None)
    return changed


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: Skips(*m), "folds 1 into it"),
    (Tapped, "folds 1 into it"),
    (lambda m: hooked(m, 1), "folds 1 into it"),
    (lambda m: hooked(m, 0), "0 has hooks"),
])  # fmt: skip
def test_a_plan_is_refused_where_others_see_what_it_folds(change, message):
    model = nn.Sequential(conv(), norm()).eval()
    plan = convfactor.plan(model, images(), 1e-3, **OPTIONS)
    assert plan.entries[0].subject.norm == "1"
    plan.apply(fx.symbolic_trace(model))
    with pytest.raises(convfactor.PlanMismatchError, match=message):
        plan.apply(change(model))
