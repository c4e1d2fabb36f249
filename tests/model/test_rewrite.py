from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, Untraceable, batches, conv, images
from torch import nn
from torch.fx import symbolic_trace

import convfactor
from convfactor import CascadeConv2d, Plan, PlanMismatchError
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.plans.decisions import WholeModel


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(Net().eval())


def plan(model: nn.Module, inputs=None, **options) -> Plan:
    inputs = images() if inputs is None else inputs
    return convfactor.plan(model, inputs, 1e-3, objective="macs", **options)


def rewritten(model: nn.Module, inputs=None, **options) -> nn.Module:
    """Plan and apply; every site is expected to be replaced."""
    made = plan(model, inputs, **options)
    assert made.replaced == list(range(len(made.entries))) != []
    fast = made.apply(model)
    assert_close(fast, model, inputs)
    return fast


def assert_close(fast: nn.Module, model: nn.Module, inputs=None) -> None:
    args = (images(),) if inputs is None else inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args), rtol=1e-3, atol=1e-4)


class Net(nn.Module):
    """Two names for one module, tied weights, a functional call and a frozen child."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(conv(seed=1), nn.BatchNorm2d(2))
        self.tail = self.head
        self.tied = conv(seed=2)
        self.twin = nn.Conv2d(2, 2, 5, padding=2)
        self.twin.weight, self.twin.bias = self.tied.weight, self.tied.bias
        self.own = Functional(3)

    def forward(self, x):
        return self.twin(self.own(self.tail(self.tied(self.head(x)))))


def test_all_kinds_at_once_keep_class_names_and_ties():
    model = Net().eval()
    fast = rewritten(model)
    assert type(fast) is Net
    assert fast.head is fast.tail
    assert isinstance(fast.head[0], CascadeConv2d)
    assert [n for n, _ in fast.named_children()] == [n for n, _ in model.named_children()]
    for mine, other in zip(fast.tied.stages, fast.twin.stages, strict=True):
        assert mine.weight is other.weight
        assert mine.bias is other.bias
    assert type(fast.own) is Functional
    assert fast.own.kernel.shape == model.own.kernel.shape
    assert isinstance(fast.own.kernel_cascade, CascadeConv2d)


def test_the_original_is_untouched(planned):
    model = Net().train()
    model.own.eval()
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    modes = [module.training for module in modules]
    plan(model)
    planned.apply(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert [module.training for module in modules] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_modes_are_taken_over_one_by_one():
    class Frozen(Functional):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            return F.dropout(self.norm(super().forward(x)), training=self.training)

    model = nn.Sequential(Frozen(), conv())
    model.train()
    model[0].norm.eval()
    fast = plan(model).apply(model)
    assert [fast.training, fast[0].training, fast[0].norm.training, fast[1].training] == [
        True, True, False, True,
    ]  # fmt: skip
    assert_close(fast.eval(), model.eval())


def test_a_state_dict_loads_into_a_fresh_rewrite(planned):
    model = Net().eval()
    trained = planned.apply(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    fresh = planned.apply(model)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(images()), trained(images()))
    assert torch.equal(copy.deepcopy(fresh)(images()), trained(images()))
    assert trained(images()).requires_grad


def test_the_old_weights_are_gone():
    fast = rewritten(nn.Sequential(Functional(), conv()))
    assert not any(p.shape[2:] == (5, 5) for p in fast.parameters() if p.dim() == 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [Functional, lambda bias: conv(bias=bias)])
@pytest.mark.parametrize("calibration", [None, batches(4)], ids=["white", "data"])
def test_a_root_with_and_without_bias(make, bias, calibration):
    model = make(bias=bias)
    fast = rewritten(model, calibration=calibration)
    assert type(fast) is (CascadeConv2d if isinstance(model, nn.Conv2d) else Functional)


def test_a_functional_module_under_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Functional()
            self.second = self.first

        def forward(self, x):
            return self.first(self.second(x))

    fast = rewritten(Twice())
    assert fast.first is fast.second
    assert type(fast.first) is Functional


def test_one_weight_with_several_biases():
    class Siamese(Functional):
        def forward(self, x):
            y = F.conv2d(x, self.kernel, self.shift, padding=2)
            y = F.conv2d(y, self.kernel, None, padding=2)
            return y + F.conv2d(y, self.kernel, bias=self.shift, padding=2)

    fast = rewritten(Siamese())
    assert sum(isinstance(m, CascadeConv2d) for m in fast.modules()) == 1
    graph = rewritten(symbolic_trace(Siamese()))
    cascades = [m for m in graph.modules() if isinstance(m, CascadeConv2d)]
    assert len(cascades) == 2
    assert cascades[0].stages[0].weight is cascades[1].stages[0].weight


def test_a_weight_that_lives_in_another_module():
    class Borrower(nn.Module):
        def __init__(self, kernel):
            super().__init__()
            self.kernel = kernel

        def forward(self, x):
            return F.conv2d(x, self.kernel, padding=2)

    owner = Functional()
    fast = rewritten(nn.Sequential(owner, Borrower(owner.kernel)))
    first, second = (part.kernel_cascade.stages[0].weight for part in fast)
    assert first is second


def test_a_nested_functional_module_inside_another():
    class Outer(Functional):
        def __init__(self):
            super().__init__(seed=1)
            self.inner = Functional(seed=2)

        def forward(self, x):
            return self.inner(super().forward(x))

    fast = rewritten(nn.Sequential(Outer()))
    assert {"kernel_cascade", "inner"} == {name for name, _ in fast[0].named_children()}
    assert isinstance(fast[0].inner.kernel_cascade, CascadeConv2d)


def test_effects_of_a_forward_are_kept():
    class InPlace(Functional):
        def __init__(self):
            super().__init__()
            self.scale = torch.tensor(2.0)
            self.seen = None

        def forward(self, x):
            x = super().forward(x) * self.scale + torch.ones(1)
            F.relu(x, inplace=True)
            x.mul_(3)
            self.seen = x
            return x

    model = InPlace()
    rewritten(model)
    assert isinstance(model.seen, torch.Tensor)
    model.seen = None
    plan(model)
    assert model.seen is None


def test_forwards_that_can_not_be_traced_are_rewritten():
    class Branching(Functional):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    class Computed(Functional):
        def forward(self, x):
            return F.conv2d(x, self.kernel, padding=x.shape[2] // 6)

    class Caught(Functional):
        def forward(self, x, scale=None):
            try:
                k = int(x.shape[-1])
            except TypeError:
                k = 1
            x = super().forward(x) * k
            return x if scale is None else x * scale

    for model in (Branching(), Computed(), Caught()):
        fast = rewritten(model)
        assert_close(fast, model, -images())
        assert_close(fast, model, images(size=15))
    assert_close(fast, model, (images(), 2))


def test_arguments_computed_in_a_graph_are_kept_with_the_reason():
    class Computed(Functional):
        def forward(self, x):
            return F.conv2d(x, self.kernel, padding=x.shape[2] // 6)

    made = plan(symbolic_trace(Computed()))
    assert not made.replaced
    assert "computed in the graph" in made.entries[0].reason


def test_layers_in_plain_containers_are_exchanged_as_well():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.own = conv(), Functional(1)
            self.layers = [self.first, {"own": (self.own,)}]
            self.kernels = [self.own.kernel]

        def forward(self, x):
            x = self.layers[1]["own"][0](self.layers[0](x))
            return F.conv2d(x, self.kernels[0], padding=2)

    fast = rewritten(Lists())
    assert fast.layers[0] is fast.first
    assert isinstance(fast.first, CascadeConv2d)
    assert fast.kernels[0] is fast.own.kernel


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.tied.weight.data.add_(1e-3), r"layer tied: tied.weight .* is not the weight"),
        (lambda m: m.own.kernel.data.add_(1e-3), r"layer own.kernel: own.kernel .* is not"),
        (lambda m: m.double(), "float64"),
        (lambda m: delattr(m, "tied"), "layer tied: the model has no module 'tied'"),
        (lambda m: setattr(m, "tied", nn.Identity()), "layer tied: the model has no tied.weight"),
        (lambda m: setattr(m.tied, "stride", (2, 2)), "layer tied: tied is not the planned"),
        (lambda m: setattr(m, "own", nn.ParameterDict({"taps": m.own.kernel})), "own.kernel"),
    ],
)
def test_a_model_that_was_not_planned_is_refused_and_left_alone(planned, spoil, message):
    model = Net().eval()
    with torch.no_grad():
        spoil(model)
    modules = list(model.modules())
    with pytest.raises(PlanMismatchError, match=message):
        planned.apply(model)
    assert list(model.modules()) == modules


def test_what_a_model_keeps_is_changed_in_place_and_only_where_it_must_be():
    model = nn.Sequential(conv(), nn.ReLU())
    shared = {model[0], "name"}
    model.mine = model[1].its = shared
    model.pair, model.other = (model[0], 1), ({"a": 1}, 2)
    fast = rewritten(model)
    assert fast.mine is fast[1].its
    assert fast.mine == {fast[0], "name"}
    assert fast.pair == (fast[0], 1)
    assert isinstance(fast[0], CascadeConv2d)
    assert shared == {model[0], "name"}


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("layer", [
    conv(),
    nn.Conv1d(2, 2, 9),
    nn.ConvTranspose2d(2, 2, 6, 2),
    nn.utils.parametrizations.weight_norm(conv()),
], ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_layers_are_trained_where_the_originals_are(layer, grads):
    model = copy.deepcopy(nn.Sequential(layer).requires_grad_(grads))
    x = images()[:, :, 0] if isinstance(layer, nn.Conv1d) else images()
    with torch.no_grad():
        fast, plan = convfactor.optimize(model, x, 0.9, objective="macs")
    assert plan.replaced
    assert {parameter.requires_grad for parameter in fast.parameters()} == {grads}


def test_groups_stride_dilation_and_padding_modes():
    model = nn.Sequential(
        conv(groups=2, size=7, padding_mode="reflect"),
        conv(dilation=2, padding="same", padding_mode="circular"),
        conv(stride=2, dilation=2, padding=(1, 0), padding_mode="replicate"),
    )
    fast = rewritten(model, images(size=21))
    assert [layer.geometry.dilation for layer in fast] == [(1, 1), (2, 2), (2, 2)]
    assert_close(fast, model, images(size=22))


def test_a_rewritten_model_can_be_planned_again():
    model = nn.Sequential(conv(), Functional())
    fast = rewritten(model)
    assert plan(fast).entries == ()


def test_channels_last_leaves_other_dimensions_alone():
    model = nn.Sequential(conv(), nn.Unflatten(1, (2, 1)), nn.Conv3d(2, 1, 1))
    made = plan(model)
    whole = WholeModel((0.0,), None, None, "channels_last")
    fast = replace(made, whole=whole).apply(model)
    first, *_ = fast[0].stages
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(fast, model)


def test_untraceable_models_are_rewritten_by_module():
    fast = rewritten(Untraceable())
    assert type(fast) is Untraceable
    assert_close(fast, fast, -images())


def test_all_names_of_a_model_are_not_listed_for_every_layer(monkeypatch):
    """Which would take time that grows with the square of the layers."""
    listed = []

    def counted(listing):
        def counting(self, *args, **kwargs):
            listed.append(self)
            return listing(self, *args, **kwargs)

        return counting

    for kind in ("named_modules", "named_parameters"):
        monkeypatch.setattr(nn.Module, kind, counted(getattr(nn.Module, kind)))

    def listings(count):
        model = nn.Sequential(*(conv(seed=i) for i in range(count))).eval()
        plan = convfactor.plan(model, images(), 1e-3, objective="macs", structures="cascade")
        assert len(plan.replaced) == count
        listed.clear()
        assert len(find(model, ModelInputs.read(images()))) == count
        plan.rewrite(model)
        return sum(one is model for one in listed)

    assert listings(6) == listings(3)
