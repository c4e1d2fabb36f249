from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import ConvGeometry, Inputs, Plan
from convfactor.factorization.families import separable_pair
from convfactor.latency import Timing, weighted
from convfactor.model.finding import find, reaching
from convfactor.model.inputs import ModelInputs, Workload
from convfactor.model.sites import InputShape, Site
from convfactor.planning.batches import read_workload, split
from convfactor.planning.pricing import Stopwatch
from convfactor.planning.whole import time_models

MACS = {"objective": "macs", "structures": "cascade"}


class Modes(nn.Module):
    """Reaches its second layer only where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(seed=0), conv(seed=1)

    def forward(self, x, deep=False):
        y = self.first(x)
        return self.second(y.relu()) if deep else y


class Gated(nn.Module):
    """Reaches a layer, and a functional call, only where its input is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.bright, self.call = conv(seed=0), conv(seed=1), Functional(seed=2)
        self.never = conv(seed=3)

    def forward(self, x):
        y = self.always(x)
        return self.call(self.bright(y).relu()) if x.mean() > 0.2 else y


CALLS = [Inputs(images()), Inputs(images(1, size=20), deep=True).times(3)]


def test_a_call_holds_any_arguments_of_a_model():
    call = Inputs(1, 2, self=3, weight=4, times=5, args=6)
    assert (call.args, call.kwargs) == ((1, 2), {"self": 3, "weight": 4, "times": 5, "args": 6})
    assert (call.weight, call.times(2).weight, call.times(0.5).times(3).weight) == (1, 2, 1.5)
    with pytest.raises(AttributeError):
        call.weight = 2


@pytest.mark.parametrize("count", [0, -1, math.inf, math.nan, "2", True, None])
def test_a_call_counts_a_positive_number_of_times(count):
    with pytest.raises(ValueError, match="count must be a positive number, got"):
        Inputs(images()).times(count)


def test_sites_count_the_calls_of_all_as_they_weigh():
    first, second = find(Modes().eval(), read_workload(CALLS))
    small, large = InputShape((1, 2, 12, 12), False), InputShape((1, 2, 20, 20), False)
    assert dict(first.subject.shapes) == {small: 1, large: 3}
    assert dict(second.subject.shapes) == {large: 3}
    assert (first.subject.calls, second.subject.calls) == ((1, 1), (0, 1))


def test_several_calls_are_optimized_together(tmp_path):
    model = Modes()
    fast, plan = convfactor.optimize(model, CALLS, 1e-3, **MACS)
    assert len(plan.replaced) == 2
    for call in CALLS:
        torch.testing.assert_close(
            fast(*call.args, **call.kwargs), model(*call.args, **call.kwargs), rtol=0, atol=1e-5
        )
    text = "times and layers of 2 calls: 1 x (1x2x12x12); 3 x (1x2x20x20)"
    assert text in str(plan)
    assert "3 x (1x2x20x20)" in plan.to_html()
    plan.save(tmp_path)
    assert Plan.load(tmp_path).calls == plan.calls
    assert len(convfactor.plan(model, images(), 1e-3, **MACS).replaced) == 1


def test_one_call_is_as_good_as_its_arguments():
    for given in (Inputs(images(), True), [Inputs(images(), True)], (images(), True)):
        workload = read_workload(given)
        assert workload.weights == (1,)
        assert torch.equal(workload.calls[0].args[0], images())
        assert (workload.calls[0].args[1:], workload.calls[0].kwargs) == ((True,), {})
    plan = convfactor.plan(Modes(), Inputs(images(), deep=True).times(2), 1e-3, **MACS)
    assert len(plan.replaced) == 2
    assert [str(call) for call in plan.calls] == ["2 x (1x2x12x12)"]
    assert "calls" not in str(plan)


class Suspicious(Modes):
    """Asks in one mode what its layer is."""

    def forward(self, x, deep=False):
        y = super().forward(x, deep)
        return y if not deep or type(self.first) is nn.Conv2d else y + 1


@pytest.mark.parametrize("calibration", [None, batches(4)])
def test_every_call_is_compared(calibration):
    model = Suspicious()
    given = {"tolerance": 1e-3, "calibration": calibration, **MACS}
    assert convfactor.plan(model, images(), **given).replaced == [0]
    plan = convfactor.plan(model, [Inputs(images()), Inputs(images(1), deep=True)], **given)
    assert "undone: output differs" in plan.entries[0].reason


def test_the_output_error_is_that_of_all_calls():
    model = Modes()
    _, plan = convfactor.optimize(model, CALLS, model_tolerance=1e-3, **MACS)
    assert plan.spending.samples == 2
    assert len(plan.replaced) == 2


def test_what_only_the_calibration_reaches_is_replaced():
    model, data = Gated(), batches(4)
    dark = images() * 0.1
    fast, plan = convfactor.optimize(model, dark, 1e-3, calibration=data, **MACS)
    names = {entry.name: entry for entry in plan.entries}
    replaced = [entry.name for entry in plan.entries if entry.replaced]
    assert replaced == ["always", "bright", "call.kernel"]
    assert names["never"].reason == "not called with the example inputs"
    assert names["bright"].subject.shapes == ((InputShape((2, 2, 12, 12), False), 1),)
    assert [call.added for call in plan.calls] == [False, True]
    assert "1 x (2x2x12x12), a calibration batch, for the layers that only it" in str(plan)
    with torch.no_grad():
        for x in (dark, *batches(6)):
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-4)
    without = convfactor.plan(model, dark, 1e-3, **MACS)
    assert [e.name for e in without.entries if e.replaced] == ["always"]


def test_no_batch_is_run_where_all_is_reached():
    def refuse():
        raise AssertionError("run")
        yield

    workload = Workload.of(ModelInputs.read((images(), True)))
    assert reaching(Modes(), workload, refuse()) == []


def test_only_the_first_batch_that_reaches_a_layer_is_added():
    dark, data = ModelInputs.read(images() * 0.1), [ModelInputs.read(x) for x in batches(3)]
    assert [id(one) for one in reaching(Gated(), Workload.of(dark), [dark, *data])] == [id(data[0])]


def test_a_layer_that_the_fit_does_not_see_is_kept():
    dark = [x * 0.1 for x in batches(4)]
    parts = split(dark, ModelInputs.read(images()))
    place = next(i for i, x in enumerate(dark) if x is parts.held_out[0].args[0])
    data = [x * 10 if i == place else x for i, x in enumerate(dark)]
    plan = convfactor.plan(Gated(), dark[0], 1e-3, calibration=data, **MACS)
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert reasons["bright"] == "not called with calibration data to fit on and to verify on"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([Inputs(images()), images()], "list of Inputs and Tensor; wrap every call: Inputs"),
        ([Inputs(images()), Inputs(3)], r"example_inputs\[1\] must hold a tensor"),
        (Inputs(), "example_inputs must hold a tensor"),
    ],
)
def test_calls_that_can_not_be_made_are_refused(given, message):
    with pytest.raises(TypeError, match=message):
        convfactor.plan(Modes(), given)


def test_a_call_that_the_model_does_not_take_is_refused():
    with pytest.raises(ValueError, match="example_inputs must be what the model takes"):
        convfactor.plan(Modes(), [Inputs(images()), Inputs(images(), wide=True)])


def test_batches_may_look_like_any_of_the_calls():
    calls = [ModelInputs.read(images()), ModelInputs.read(images(channels=3))]
    parts = split([images(1), images(2, channels=3), Inputs(images(3))], *calls)
    assert {x.args[0].shape[1] for x in parts.all} == {2, 3}
    with pytest.raises(ValueError, match=r"batch 0 must look like .* or shapes .*\(1, 4, 12"):
        split([images(channels=4)], *calls)
    with pytest.raises(ValueError, match="batch 0 must count once"):
        split([Inputs(images()).times(2)], *calls)


def timings(*seconds: float) -> list[Timing]:
    return [Timing(s, 0.5 * s, 2 * s, 5) for s in seconds]


def test_times_add_up_by_weight():
    assert weighted(timings(1.0, 10.0), [2, 0.5]) == Timing(7.0, 3.5, 14.0, 5)


def test_models_are_timed_call_by_call():
    ran = []

    def clock(calls, device, seconds, rounds):
        ran.extend(float(call().sum()) for call in calls)
        return timings(*(10.0**i for i in range(len(calls))))

    calls = Workload((ModelInputs.read(images()), ModelInputs.read(images(1))), (1, 3))
    models = [nn.Identity(), nn.ReLU()]
    first, second = time_models(models, calls, clock, 1.0)
    assert [t.median for t in first.values()] == [1 + 3e1, 1e4 + 3e5]
    assert [t.median for t in second.values()] == [1e2 + 3e3, 1e6 + 3e7]
    assert [*first] == [*second] == ["as given", "channels_last"]
    assert ran == pytest.approx([float(images(i).sum()) for i in (0, 1)] * 4, rel=1e-5)


class Views(nn.Sequential):
    """Reads its features as LeNet and many others do, which channels_last does not allow."""

    def forward(self, x):
        return super().forward(x).view(len(x), -1)


def test_a_model_is_timed_in_the_formats_in_which_it_runs():
    def clock(calls, device, seconds, rounds):
        return timings(*(1.0 + i for i, call in enumerate(calls) if call() is not None))

    calls = Workload.of(ModelInputs.read(images()))
    views, plain = time_models([Views(conv()), nn.Sequential(conv())], calls, clock, 1.0)
    assert {name: t.median for name, t in views.items()} == {"as given": 1.0}
    assert {name: t.median for name, t in plain.items()} == {"as given": 2.0, "channels_last": 3.0}


@pytest.mark.parametrize("asked", [{"tolerance": 1e-3}, {"model_tolerance": 1e-3}])
def test_a_model_that_views_its_features_is_planned(asked):
    model = Views(conv(8, 8, 9)).eval()
    x = images(channels=8, size=32)
    fast, _ = convfactor.optimize(model, x, **asked)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)


def test_shapes_are_timed_one_by_one_and_weighted():
    shapes = [(InputShape((1, 4, n, n), False), count) for n, count in ((8, 1), (16, 2.5))]
    kernel = ConvGeometry(4, 4, (7, 7), padding=(3, 3, 3, 3))

    def clock(calls, device, seconds, rounds):
        pixels = [call().numel() / 4 for call in calls]
        # Structures are twice as fast.
        return timings(*(p if i < 4 else p / 2 for i, p in enumerate(pixels)))

    watch = Stopwatch(kernel, shapes, torch.float32, torch.device("cpu"), {}, clock)
    price = watch.careful(next(iter(separable_pair(kernel))).structure((2,)))
    assert price.cost.before.median == 8**2 + 2.5 * 16**2
    assert price.relative == 0.5


class Repeated(nn.Module):
    """Makes a functional call several times."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(conv().weight.detach().clone())

    def forward(self, x, times=1):
        for _ in range(times):
            x = F.conv2d(x, self.kernel, padding=2)
        return x


def test_a_functional_layer_is_reached_in_every_call():
    model = Repeated()
    calls = [Inputs(images()).times(0.5), Inputs(images(1), times=3)]
    (site,) = find(model, read_workload(calls))
    assert isinstance(site, Site)
    assert dict(site.subject.shapes) == {InputShape((1, 2, 12, 12), False): 3.5}
    assert site.subject.calls == (1, 3)
    fast, plan = convfactor.optimize(model, calls, 1e-3, **MACS)
    assert plan.replaced == [0]
    torch.testing.assert_close(fast(images(5), 2), model(images(5), 2), rtol=1e-4, atol=1e-4)
