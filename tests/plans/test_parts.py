"""Parts of plans, plans put together, and replacements taken back."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import Functional, batches, conv, images
from torch import fx, nn

import convfactor
from convfactor import CascadeConv2d, Plan, PlanMismatchError
from convfactor.latency import Timing
from convfactor.plans.circumstances import HeldOut
from convfactor.plans.decisions import Cost, Entry, Swapped

OPTIONS = {"objective": "macs", "structures": "cascade"}


class Net(nn.Module):
    """Modules under one name and under two, a functional call, and a norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(2))
        self.twice = conv(seed=1)
        self.again = self.twice
        self.call = Functional(seed=2)

    def forward(self, x):
        return self.call(self.again(self.twice(self.stem(x))))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model(images(count=4))  # moves the statistics of the norm
    return model.eval()


@pytest.fixture(scope="module")
def planned(original) -> Plan:
    plan = convfactor.optimize(original, images(), 1e-3, **OPTIONS)[1]
    assert [e.name for e in plan.entries] == ["stem.0", "twice", "call.kernel"]
    assert plan.replaced == [0, 1, 2]
    return plan


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        (["stem.0"], [1, 2]),
        (["stem.*"], [1, 2]),
        (["again"], [0, 2]),
        (["call"], [0, 1]),
        (["call.kernel"], [0, 1]),
        (["twice", "call*"], [0]),
        (["*"], []),
    ],
)
def test_layers_are_left_out_by_name(planned, original, layers, left):
    less = planned.without(*layers)
    assert less.replaced == left
    assert less.whole is None
    assert planned.whole is not None
    others = [i for i in range(3) if i not in left]
    assert all(less.entries[i].reason == "left out of the plan" for i in others)
    assert planned.only(*layers).replaced == others
    assert planned.only(*layers).without("*").replaced == []
    fast = less.apply(original)
    assert isinstance(fast.stem[0], CascadeConv2d) == (0 in left)
    assert isinstance(fast.again, CascadeConv2d) == (1 in left)
    assert str(less)


def test_a_name_that_is_not_there_is_refused(planned):
    for method in (planned.without, planned.only):
        with pytest.raises(ValueError, match=r"no layer 'stem'; it has 'stem.0', 'twice', 'call"):
            method("twice", "stem")
        with pytest.raises(ValueError, match="give the name of a layer"):
            method()
        with pytest.raises(TypeError, match="must be named by str, got int"):
            method(1)
    with pytest.raises(ValueError, match="it has no layer at all"):
        replace(planned, entries=()).without("stem")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_reverting_gives_the_original(planned, original, graph, trained):
    x = images(seed=5)
    if graph:
        original = fx.symbolic_trace(original)
        planned = convfactor.plan(original, images(), 1e-3, **OPTIONS)
    fast = planned.apply(original)
    before = copy.deepcopy(fast.state_dict())
    if trained:
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.mul_(1.5)
    back = planned.revert(fast, original)
    assert not any(isinstance(module, CascadeConv2d) for module in back.modules())
    assert set(back.state_dict()) == set(original.state_dict())
    expected = copy.deepcopy(original)
    if trained and not graph:  # in a graph the bias of a call goes into the cascade
        with torch.no_grad():  # what was not replaced stays as it was trained
            expected.call.shift.copy_(fast.call.shift)
    assert torch.equal(back(x), expected(x))
    assert isinstance(back, fx.GraphModule if graph else Net)
    assert trained or all(torch.equal(before[k], v) for k, v in fast.state_dict().items())


@pytest.mark.parametrize("graph", [False, True])
def test_some_layers_are_reverted(planned, original, graph):
    if graph:
        original = fx.symbolic_trace(original)
        planned = convfactor.plan(original, images(), 1e-3, **OPTIONS)
    fast = planned.apply(original)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1.5)
    x = images(seed=5)
    one = planned.revert(fast, original, "twice")
    assert isinstance(one.twice, nn.Conv2d)
    assert torch.equal(one.twice.weight, original.twice.weight)
    for name, value in one.state_dict().items():
        if not name.startswith(("twice.", "again.")):
            assert torch.equal(value, fast.state_dict()[name]), name
    twin = copy.deepcopy(fast)
    twin.twice = twin.again = copy.deepcopy(original.twice)
    assert torch.equal(one(x), twin(x))


class Calls(nn.Module):
    """Three functional calls, which a graph numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.ModuleList(Functional(seed=i) for i in range(3))

    def forward(self, x):
        return [call(x) for call in self.calls]


def test_cascades_of_a_graph_keep_their_values_when_their_numbers_change():
    model = fx.symbolic_trace(Calls().eval())
    plan = convfactor.plan(model, images(), 1e-3, **OPTIONS)
    fast = plan.apply(model)
    with torch.no_grad():
        for i, name in enumerate(("cascade", "cascade_0", "cascade_1")):
            fast.get_submodule(name).stages[0].weight.mul_(i + 2)
    back = plan.revert(fast, model, plan.entries[0].name)
    x = images(seed=5)
    true, trained, got = model(x), fast(x), back(x)
    assert torch.equal(got[0], true[0])
    assert torch.equal(got[1], trained[1])
    assert torch.equal(got[2], trained[2])


def test_transforms_are_reverted():
    wavelets = pytest.importorskip("pytorch_wavelets")
    model = nn.Sequential(conv(), wavelets.DTCWTForward(J=2)).eval()
    plan = convfactor.plan(model, images(size=16), 1e-3, **OPTIONS)
    timing = Timing(2.0, 1.0, 3.0)
    swap = Swapped(Cost(timing, Timing(1.0, 1.0, 1.0)), 0.0, "torch")  # whatever the clock says
    plan = replace(plan, entries=(plan.entries[0], Entry(plan.entries[1].subject, swap)))
    fast = plan.apply(model)
    assert type(fast[1]) is convfactor.wavelets.DTCWTForward
    assert type(plan.revert(fast, model, "0")[1]) is convfactor.wavelets.DTCWTForward
    fast[1].h0o.mul_(2)
    back = plan.revert(fast, model)
    assert type(back[1]) is wavelets.DTCWTForward
    x = images(size=16)
    low, high = model(x)
    got_low, got_high = back(x)
    assert torch.equal(got_low, low)
    assert all(map(torch.equal, got_high, high))


def test_reverting_asks_for_the_models_of_the_plan(planned, original):
    fast = planned.apply(original)
    with pytest.raises(PlanMismatchError, match="fast must be what this plan makes of original"):
        planned.revert(original, original)
    fast.call.shift = nn.Parameter(torch.zeros(3))
    with pytest.raises(PlanMismatchError, match=r"differ in 'call\.shift'"):
        planned.revert(fast, original)
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.twice.weight.zero_()
    with pytest.raises(PlanMismatchError, match="not the weight that was planned"):
        planned.revert(planned.apply(original), other)


def test_plans_of_two_runs_are_merged(planned, original):
    first, second = (
        convfactor.plan(original, images(), 1e-3, select=select, **OPTIONS)
        for select in (lambda n, m: n == "twice", lambda n, m: n != "twice")
    )
    assert (first.replaced, second.replaced) == ([1], [0, 2])
    for merged in (first.merge(second), second.merge(first)):
        assert [e.name for e in merged.entries] == [e.name for e in planned.entries]
        assert merged.replaced == planned.replaced
        x = images(seed=3)
        expected = planned.only("*").apply(original)(x)
        assert torch.equal(merged.apply(original)(x), expected)
    assert first.merge(first.without("*")).replaced == [1]
    looser = replace(second, settings=replace(second.settings, tolerance=0.5))
    assert first.merge(looser).settings.tolerance == 0.5


def test_what_only_one_plan_has_seen_is_added(planned):
    part = replace(planned, entries=planned.entries[:1])
    rest = replace(planned, entries=planned.entries[1:])
    assert [e.name for e in part.merge(rest).entries] == [e.name for e in planned.entries]


def test_plans_that_do_not_agree_are_refused(planned, original):
    with pytest.raises(ValueError, match=r"stem.0 is replaced in both .* plan.without\('stem.0'\)"):
        planned.merge(convfactor.plan(original, images(), 1e-3, **OPTIONS))
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.twice.weight.mul_(2)
    another = convfactor.plan(other, images(), 1e-3, **OPTIONS).only("stem.0")
    with pytest.raises(PlanMismatchError, match="layer twice: the plans are of different weights"):
        planned.without("stem.0").merge(another)
    less = planned.without("*")
    budget = replace(less.settings, tolerance=None, model_tolerance=0.1)
    seed = replace(less.settings, seed=1)
    for change, message in (
        ({"settings": budget}, "a budget for the whole model can't be merged"),
        ({"settings": seed}, "their seed differs: 0 and 1; make one of them again"),
        ({"calibration": HeldOut(1, 1, "0" * 64)}, "their calibration differs: white noise and 1"),
        ({"environment": replace(less.environment, device="cuda")}, "their environment differs"),
    ):
        with pytest.raises(ValueError, match=message):
            planned.merge(replace(less, **change))
    first, second = (replace(less, calibration=HeldOut(1, 1, digit * 64)) for digit in "01")
    with pytest.raises(ValueError, match=r"sha256='0{64}'.* and HeldOut\(.*sha256='1{64}'"):
        first.merge(second)


def test_a_merged_plan_is_kept_in_files(planned, original, tmp_path):
    merged = planned.without("twice").merge(planned.only("twice"))
    merged.save(tmp_path)
    x = images()
    assert torch.equal(Plan.load(tmp_path).apply(original)(x), merged.apply(original)(x))


def test_calibrated_plans_of_the_same_data_are_merged(original):
    first, second = (
        convfactor.plan(original, images(), 1e-3, select=select, calibration=batches(), **OPTIONS)
        for select in (lambda n, m: n == "twice", lambda n, m: n == "stem.0")
    )
    assert first.merge(second).replaced == [0, 1]
