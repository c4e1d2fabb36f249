from __future__ import annotations

import copy
import math
import re
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Functional, Untraceable, batches, conv, images
from torch import nn

import convfactor
from convfactor import CascadeConv2d, ToleranceError
from convfactor.factorization import factorizer
from convfactor.factorization.budget import Budget
from convfactor.latency import Timing
from convfactor.model.agreement import output_errors
from convfactor.planning import job, layers, resume
from convfactor.planning.job import Job
from convfactor.plans.decisions import Cost
from convfactor.plans.settings import Settings

MACS = {"objective": "macs"}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def rough(seed: int = 0) -> nn.Conv2d:
    """A layer whose kernel no cheaper cascade comes near."""
    torch.manual_seed(seed)
    return nn.Conv2d(2, 2, 5, padding=2)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()), None),
        (nn.Flatten(), None),
        (rough(), "tolerance"),
        (nn.Sequential(nn.ConvTranspose2d(2, 2, 5, padding=5)), "transposed"),
        (nn.Sequential(nn.LazyConv2d(2, 5)), "lazy"),
    ],
)
def test_what_can_not_be_improved_comes_back_unchanged(model, reason):
    lazy = isinstance(model, nn.Sequential) and isinstance(model[0], nn.LazyConv2d)
    fast, plan = convfactor.optimize(model, images(), 1e-6, **MACS)
    assert fast is not model
    assert type(fast) is type(model)
    assert not plan.replaced
    if reason is None:
        assert "no convolution with a kernel of 5 or more" in str(plan)
    else:
        assert reason in plan.entries[0].reason
        assert plan.entries[0].decision.label == "kept"
    if not lazy:
        assert torch.equal(fast(images()), model(images()))


@pytest.mark.parametrize(
    "options", [MACS, {**MACS, "structures": "auto"}, {"objective": "latency"}]
)
def test_a_patch_embedding_is_neither_timed_nor_solved(options, monkeypatch):
    monkeypatch.setattr(layers.Stopwatch, "_price", None)
    monkeypatch.setattr(factorizer, "solve", None)
    model = nn.Sequential(nn.Conv2d(3, 24, 16, 16), nn.GELU())
    x = images(channels=3, size=48)
    fast, plan = convfactor.optimize(model, x, 0.1, **options)
    assert [e.decision.label for e in plan.entries] == ["kept"]
    assert plan.entries[0].reason == (
        "its kernel is not larger than its stride, so that no cascade gains"
    )
    assert torch.equal(fast(x), model(x))


def test_a_layer_that_is_too_large_to_solve_says_so(monkeypatch):
    monkeypatch.setattr(factorizer, "MOST_MEMORY", 1 << 10)
    _, plan = convfactor.optimize(nn.Sequential(rough()), images(), 0.1, **MACS)
    assert "too large to be solved: takes some" in plan.entries[0].reason


def test_a_layers_time_ends_its_search(monkeypatch):
    budget = Budget(1e-9)
    monkeypatch.setattr(layers, "Budget", lambda seconds: budget)
    monkeypatch.setattr(factorizer.Factorizer, "too_large", lambda *_: "")
    _, plan = convfactor.optimize(nn.Sequential(rough()), images(), 1e-6, **MACS)
    assert "120 s cut the search short" in plan.entries[0].reason


def test_a_calibrated_result_keeps_its_tolerance_on_new_data():
    model = nn.Sequential(rough(1), nn.ReLU(), rough(2), nn.ReLU(), conv())
    smooth = nn.AvgPool2d(5, 1)

    def data(seed):
        return smooth(images(seed, count=4, size=24))

    fast, plan = convfactor.optimize(
        model, data(0), 0.05, calibration=[data(seed) for seed in range(1, 9)], **MACS
    )
    assert plan.replaced
    fresh = [data(seed) for seed in range(100, 104)]
    with torch.no_grad():
        for old, new in zip(model, fast, strict=True):
            true = torch.cat([old(x) for x in fresh])
            got = torch.cat([new(x) for x in fresh])
            variance = true.var((0, 2, 3), correction=0).mean()
            error = float(((got - true).square().mean() / variance).sqrt())
            assert error <= 0.05 * 1.2
            fresh = [old(x) for x in fresh]
    for entry in plan.entries:
        if entry.replaced:
            assert entry.error <= 0.05
            assert entry.decision.errors.pooled == entry.error
    assert plan.whole.errors[0] < 0.2
    assert "calibration batches" in str(plan)


def test_two_runs_agree():
    def run():
        return convfactor.optimize(
            nn.Sequential(rough(), conv()), images(), 0.3, calibration=batches(4), **MACS
        )

    (_, first), (_, second) = run(), run()
    assert str(first) == str(second)
    assert first.to_json() == second.to_json()  # with a digest of the tensors


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) + torch.rand(1)


def test_global_state_is_left_alone():
    model = nn.Sequential(Noisy(), nn.Dropout()).train()
    before = snapshot(model)
    x, data = images(), batches(2)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        fast, plan = convfactor.optimize(model, x, 1e-3, calibration=data, **MACS)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert plan.replaced
    assert plan.whole.errors[0] < 1e-3, "what a model draws at random is no error"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert all(m.training for m in (*model.modules(), *fast.modules()))
    assert all(torch.equal(snapshot(model)[name], value) for name, value in before.items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_under_a_grad_mode(mode):
    with mode():
        fast, plan = convfactor.optimize(conv(), images(), 1e-3, **MACS)
        assert not torch.is_grad_enabled()
    assert plan.replaced
    assert isinstance(fast, CascadeConv2d)


def test_inputs_that_the_model_overwrites_are_not_spoilt():
    model = nn.Sequential(nn.ReLU(inplace=True), conv())
    x, data = images() - 0.5, [b - 0.5 for b in batches(3)]
    kept = [t.clone() for t in (x, *data)]
    _, plan = convfactor.optimize(model, x, 1e-3, calibration=data, **MACS)
    assert all(torch.equal(a, b) for a, b in zip((x, *data), kept, strict=True))
    assert plan.whole.errors[0] < 1e-3


def test_outputs_of_any_kind_and_keyword_inputs():
    class Rich(Untraceable):
        def forward(self, image, *, scale):
            y = super().forward(image) * scale
            return {"image": y, "parts": (y[:, :1], y.argmax(1)), "name": "rich"}

    fast, plan = convfactor.optimize(Rich(), {"image": images(), "scale": 2.0}, 1e-3, **MACS)
    assert len(plan.whole.errors) == 2
    assert type(fast) is Rich


def test_select_sees_the_users_own_modules():
    model = nn.Sequential(conv(), conv(seed=1))
    chosen = convfactor.plan(
        model, images(), 1e-3, select=lambda name, module: module is model[1], **MACS
    )
    assert [entry.reason for entry in chosen.entries[:1]] == ["not selected"]
    assert chosen.replaced == [1]


def test_a_replacement_with_which_the_model_does_not_run_is_undone():
    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(), conv(seed=1)

        def forward(self, x):
            return self.second(self.first(x) + self.first.output_padding[0])

    model = Peeks()
    fast, plan = convfactor.optimize(model, images(), 1e-3, **MACS)
    reasons = {entry.name: entry.reason for entry in plan.entries}
    assert "undone: with it the model raises AttributeError" in reasons["first"]
    assert plan.replaced == [1]
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-3, atol=1e-4)
    with pytest.raises(ToleranceError, match=r"first \(undone"):
        convfactor.optimize(model, images(), 1e-3, strict=True, **MACS)


def test_strict_names_what_is_missed():
    model = nn.Sequential(conv(), rough())
    with pytest.raises(ToleranceError, match=r"0.0001 is missed: 1 \(tolerance"):
        convfactor.optimize(model, images(), 1e-4, strict=True, **MACS)
    convfactor.optimize(model, images(), 1e-3, strict=True, select=lambda n, m: n == "0", **MACS)


def test_what_makes_the_whole_slower_is_undone(monkeypatch):
    """With a clock that finds the whole model slower while it holds more than one cascade."""
    model = nn.Sequential(conv(), conv(seed=1))
    made = convfactor.plan(model, images(), 1e-3, **MACS)
    seconds = [Timing(t, t, t) for t in (1.0, 2.0, 3.0)]
    entries = tuple(
        replace(entry, decision=replace(entry.decision, cost=Cost(seconds[i + 1], seconds[0])))
        for i, entry in enumerate(made.entries)
    )
    monkeypatch.setattr(job, "make_plan", lambda *args: replace(made, entries=entries))

    def clock(calls, device, duration, rounds):
        with torch.no_grad():
            outputs = [call() for call in calls]
        assert len(outputs) == 4
        fast = calls[1].args[0]
        slower = sum(isinstance(m, CascadeConv2d) for m in fast) > 1
        return [seconds[1], seconds[2 if slower else 0], seconds[2], seconds[2]]

    request = Job.read(model, images(), None, Settings(1e-3), None, None, clock)
    fast, plan = request.optimize(False, None)
    assert plan.replaced == [1]
    assert "undone: the whole model took 3e+03 ms with it, 2e+03 ms without" in str(
        plan.entries[0].reason
    )
    assert isinstance(fast[0], nn.Conv2d)
    assert (plan.whole.before, plan.whole.after) == (seconds[1], seconds[0])


@pytest.fixture
def solved(monkeypatch):
    """Kernels that are solved."""
    calls: list[float] = []
    solve = factorizer.Factorizer.solve

    def counting(self, *args, **kwargs):
        calls.append(float(self.weight.sum()))
        return solve(self, *args, **kwargs)

    monkeypatch.setattr(factorizer.Factorizer, "solve", counting)
    return calls


@pytest.mark.parametrize("calibration", [None, batches(3)], ids=["white", "data"])
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, solved, calibration):
    model = nn.Sequential(conv(), conv(seed=1), rough()).requires_grad_(False)
    arguments = {"calibration": calibration, "checkpoint": tmp_path, **MACS}
    decide, decided = layers.Layer.decide, []

    def interrupted(self, *args):
        if len(decided) == 2:
            raise KeyboardInterrupt
        decided.append(self)
        return decide(self, *args)

    monkeypatch.setattr(layers.Layer, "decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convfactor.plan(model, images(), 1e-3, **arguments)
    monkeypatch.setattr(layers.Layer, "decide", decide)
    solved.clear()
    resumed = convfactor.plan(model, images(), 1e-3, **arguments)
    assert set(solved) == {float(model[2].weight.sum())}
    whole = convfactor.plan(model, images(), 1e-3, **{**arguments, "checkpoint": None})
    assert resumed.to_json() == whole.to_json()

    solved.clear()
    convfactor.plan(model, images(), 1e-3, **arguments)
    assert not solved, "a finished run is taken over as a whole"


@pytest.mark.parametrize(
    "change",
    [
        lambda model, arguments: model[0].weight.data.mul_(2),
        lambda model, arguments: arguments.update(select=lambda name, module: True),
    ],
)
def test_a_checkpoint_of_something_else_is_not_taken_over(tmp_path, solved, change):
    model = nn.Sequential(conv())
    arguments = {"tolerance": 1e-3, "checkpoint": tmp_path, **MACS}
    convfactor.plan(model, images(), **arguments, select=lambda name, module: "calibr" in name)
    convfactor.plan(model, images(), **arguments)
    solved.clear()
    convfactor.plan(model, images(), **arguments)
    assert not solved
    before = copy.deepcopy(arguments)
    change(model, arguments)
    plan = convfactor.plan(model, images(), **arguments)
    assert solved or before.keys() < arguments.keys()
    assert plan.replaced


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tolerance": 2e-3}, "settings"),
        ({"seed": 1}, "settings"),
        ({"calibration": batches(4)}, "calibration"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_overwritten(tmp_path, change, what):
    model = nn.Sequential(conv())
    arguments = {"tolerance": 1e-3, "checkpoint": tmp_path, **MACS}
    plan = convfactor.plan(model, images(), **arguments)
    with pytest.raises(ValueError, match=rf"checkpoint .* other {what}.* another folder"):
        convfactor.plan(model, images(), **{**arguments, **change})
    assert str(convfactor.Plan.load(tmp_path)) == str(plan)


def test_with_data_a_checkpoint_of_another_model_is_not_taken_over(tmp_path, solved):
    """What a layer reads, and so its error, depends on all in front of it."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), conv())
    arguments = {"tolerance": 1e-3, "calibration": batches(3), "checkpoint": tmp_path, **MACS}
    plan = convfactor.plan(model, images(), **arguments)
    before = snapshot(model)
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(ValueError, match=r"checkpoint .* other model weights; give another folder"):
        convfactor.plan(model, images(), **arguments)
    assert str(convfactor.Plan.load(tmp_path)) == str(plan)
    model.load_state_dict(before)
    assert str(convfactor.plan(model, images(), **arguments)) == str(plan)
    other = nn.Sequential(nn.Sequential(*model[:1]), model[1])
    with pytest.raises(ValueError, match="other model weights"):
        convfactor.plan(other, images(), **arguments)


def test_a_layer_left_out_before_is_solved_when_selected(tmp_path, solved):
    model = nn.Sequential(conv())
    arguments = {"checkpoint": tmp_path, **MACS}
    convfactor.plan(model, images(), 1e-3, select=lambda name, module: False, **arguments)
    assert not solved
    assert convfactor.plan(model, images(), 1e-3, **arguments).replaced


def broken() -> nn.Module:
    model = nn.Sequential(conv())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    return model


def locked() -> nn.Module:
    model = nn.Sequential(conv())
    model.lock = threading.Lock()
    return model


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still about
        return torch.jit.script(model)


def traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still about
        return torch.jit.trace(model, images())


COMPILED = torch.compile(conv(), backend="eager")
BAD = [
    ({"tolerance": 0}, ValueError, "tolerance must be a positive number, .* got 0$"),
    ({"tolerance": -1.0}, ValueError, "tolerance must be a positive number"),
    ({"tolerance": float("nan")}, ValueError, "tolerance must be a positive number, .* got nan"),
    ({"tolerance": float("inf")}, ValueError, "tolerance must be a positive number"),
    ({"min_speedup": 0.5}, ValueError, "min_speedup must be a number >= 1, got 0.5"),
    ({"min_speedup": "2"}, ValueError, "min_speedup must be a number >= 1, got '2'"),
    ({"min_speedup": True}, ValueError, "min_speedup must be a number >= 1, got True"),
    ({"min_speedup": float("nan")}, ValueError, "min_speedup must be a number >= 1, got nan"),
    ({"seed": "a"}, TypeError, "seed must be an int, got 'a'"),
    ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
    ({"seed": True}, TypeError, "seed must be an int, got True"),
    ({"seed": 2**64}, ValueError, "seed must be an int of 64 bits, got 18446744073709551616"),
    ({"select": 0}, TypeError, r"select must be a pattern .* \(name, module\) -> bool, got int"),
    ({"select": ["0", 3]}, TypeError, r"select must be a pattern .*, got int"),
    ({"select": conv()}, TypeError, r"select must be a pattern .*, got Conv2d"),
    ({"select": re.compile(b"0")}, TypeError, r"select must be a pattern .*, got Pattern"),
    ({"select": []}, ValueError, "select must hold a pattern, got none; leave it out for all"),
    ({"select": "conv"}, ValueError, "select: 'conv' matches none of the layers .* 5 or more"),
    ({"checkpoint": 3}, TypeError, "checkpoint must be the path of a folder, got int"),
    ({"checkpoint": Path(__file__)}, ValueError, "checkpoint must be a folder, got the file '.*"),
    ({"checkpoint": f"{__file__}/in"}, ValueError, "checkpoint must be a folder, got the file '.*"),
    ({"min_kernel_size": "5"}, ValueError, "min_kernel_size must be an int >= 4 .*got '5'"),
    ({"min_kernel_size": 3}, ValueError, "min_kernel_size must be an int >= 4"),
    ({"objective": "size"}, ValueError, r"objective must be one of .*latency.*macs.* 'size'"),
    ({"structures": "pair"}, ValueError, r"structures must be one of .*'pair'"),
    ({"example_inputs": images(channels=3)}, ValueError, r"example_inputs .* \(1, 3, 12, 12\)"),
    ({"example_inputs": images().double()}, ValueError, r"example_inputs .*float64"),
    ({"example_inputs": None}, TypeError, r"example_inputs must hold a tensor, .* got None$"),
    ({"example_inputs": (1, 2, 12, 12)}, TypeError, r"rand\(1, 3, 24, 24\), got tuple of int$"),
    ({"example_inputs": ()}, TypeError, r"example_inputs must hold a tensor, .* got tuple$"),
    ({"example_inputs": images().numpy()}, TypeError, "got ndarray; use torch.from_numpy"),
    ({"example_inputs": {"x": images().numpy()}}, TypeError, "dict of ndarray; use torch.from_num"),
    ({"example_inputs": {"picture": images()}}, ValueError, r"example_inputs .* TypeError"),
    ({"calibration": []}, ValueError, "calibration must hold at least one batch"),
    ({"calibration": iter([])}, ValueError, "calibration must hold at least one batch"),
    ({"calibration": images()}, TypeError, "calibration must be an iterable of batches"),
    ({"calibration": "data.npz"}, TypeError, "got str; load the file and give a list of batches"),
    ({"calibration": [{"y": images()}] * 2}, ValueError, "be what the model takes, but it raised"),
    ({"calibration": [images()]}, ValueError, "calibration must hold at least two samples"),
    ({"calibration": batches(channels=3)}, ValueError, r"calibration batch 0 .*\(2, 3, 12, 12\)"),
    ({"calibration": [images(), images() * torch.nan]}, ValueError, "batch 1 must be finite"),
    ({"example_inputs": images()[:0]}, ValueError, r"must hold values, .*\(0, 2, 12"),
    ({"calibration": [images(), images()[:0]]}, ValueError, "batch 1 must hold values"),
    ({"model": "net"}, TypeError, "model must be a torch.nn.Module or .*ExportedProgram, got str"),
    ({"model": broken()}, ValueError, r"finite weights, got Inf or NaN in 0.weight"),
    ({"model": locked()}, ValueError, r"model must be one that copy.deepcopy can copy.*; take"),
    ({"model": scripted(conv())}, TypeError, "must not be scripted or traced by torch.jit: opt"),
    ({"model": traced(conv())}, TypeError, "must not be scripted or traced"),
    ({"model": nn.Sequential(scripted(conv()))}, TypeError, "must not be scripted or traced"),
    ({"model": conv().to("meta")}, ValueError, "got tensors on the meta device: load the weights"),
    ({"model": COMPILED}, TypeError, "must not be compiled"),
    ({"model": nn.Sequential(COMPILED)}, TypeError, "must not be compiled"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
@pytest.mark.parametrize("call", [convfactor.plan, convfactor.optimize])
def test_bad_input_is_refused_before_any_work(call, bad, error, message, solved, tmp_path):
    model = nn.Sequential(conv())
    arguments = {"model": model, "example_inputs": images(), "tolerance": 1e-3, **MACS, **bad}
    before = snapshot(model)
    with pytest.raises(error, match=message) as raised:
        call(**{"checkpoint": tmp_path / "new", **arguments})
    assert not solved
    assert not (tmp_path / "new").exists()
    assert "\n" not in str(raised.value)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_only_the_first_line_of_the_models_own_error_is_told():
    class Wordy(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such size\nand then\npages of it")

    with pytest.raises(
        ValueError, match=r"\(1, 2, 12, 12\) .*float32: RuntimeError: no such size$"
    ):
        convfactor.plan(Wordy(), images(), **MACS)


def test_parts_that_hide_no_convolution_may_be_scripted_or_traced():
    parts = scripted(nn.ReLU()), torch.fx.symbolic_trace(Functional())
    chosen = convfactor.plan(nn.Sequential(conv(), *parts), images(), 1e-3, **MACS)
    assert len(chosen.replaced) == 2


def whole_errors(true: list[torch.Tensor], got: list[torch.Tensor]) -> tuple[float, ...]:
    """Errors of one output over as many batches."""
    return output_errors(zip(true, got, strict=True))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((2, 3, 8, 9), True),
        ((1, 3, 1, 4), True),
        ((2, 3, 1, 1), False),
        ((4, 3), False),
        ((3, 8, 8), False),
        ((), False),
    ],
)
def test_the_error_of_the_whole_is_that_of_numpy(shape, channels):
    generator = torch.Generator().manual_seed(0)
    true, got = [], []
    for offset in (0, 1, 5):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
        true.append(drawn + 1e4 * torch.arange(3).reshape(3, 1, 1) if channels else drawn)
        got.append(true[-1] + 0.1 * torch.randn(shape, generator=generator))
    exact, other = (np.stack([t.numpy() for t in part]) for part in (true, got))
    variance = exact.var((0, 1, 3, 4)).mean() if channels else exact.var()
    expected = np.sqrt(((other - exact) ** 2).mean() / variance)
    assert whole_errors(true, got) == pytest.approx((expected,), rel=1e-9)


def test_batches_may_differ_in_size_and_channels():
    shapes = [(2, 3, 8, 8), (1, 3, 6, 6), (1, 2, 8, 8), (0, 3, 8, 8)]
    true = [images(seed, count=a, channels=b, size=c) for seed, (a, b, c, _) in enumerate(shapes)]
    three = np.concatenate([t.double().numpy().swapaxes(0, 1).reshape(3, -1) for t in true[:2]], 1)
    two = true[2][0].double().flatten(1).numpy()
    variance = sum(((part - part.mean(1, keepdims=True)) ** 2).sum() for part in (three, two))
    wrong = 0.01**2 * (three.size + two.size)
    errors = whole_errors(true, [t.double() + 0.01 for t in true])
    assert errors == pytest.approx((np.sqrt(wrong / variance),))


def test_an_output_that_never_varies_has_no_scale_of_error():
    flat = torch.tensor([0.1, 0.7]).reshape(1, 2, 1, 1).expand(2, 2, 5, 5)
    assert whole_errors([flat, flat], [flat, flat]) == (0.0,)
    assert whole_errors([flat, flat], [flat, flat + 1e-3]) == (math.inf,)
    assert whole_errors([flat[:0]], [flat[:0]]) == (0.0,)


def test_an_output_of_one_value_is_measured_against_it():
    assert whole_errors([2.0], [2.02]) == pytest.approx((0.01,))
    assert whole_errors([torch.tensor(-2.0)] * 2, [torch.tensor(-2.02)] * 2) == pytest.approx(
        (0.01,), rel=1e-5
    )
    assert whole_errors([torch.tensor(1 + 1j)], [torch.tensor(1 + 1.1j)])[0] > 0.01


def test_what_is_no_number_in_both_is_no_error():
    true = torch.tensor([1.0, 2.0, -torch.inf, torch.nan])
    assert whole_errors([true], [true.clone()]) == (0.0,)
    assert 0.1 < whole_errors([true], [true + torch.tensor([0.1, 0, 0, 0])])[0] < 0.2
    assert not whole_errors([true], [true.nan_to_num()])[0] < 1


@pytest.mark.parametrize("broken", [0, 1])
def test_a_value_that_is_a_number_only_before_is_an_infinite_error(broken):
    true = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, torch.nan, 4.0])]
    got = [one + 0.1 for one in true]
    got[broken][2] = torch.nan
    assert max(output_errors([(true, got)])) == math.inf


def test_rounding_is_no_error():
    true = 1 + 1e-9 * torch.arange(5, dtype=torch.float64).float()
    assert whole_errors([true], [true * (1 + 1e-7)]) == (0.0,)


def test_calibration_that_the_model_does_not_take_is_refused_before_any_work(solved):
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(2 * 12 * 12, 3))
    data = [images(), images(size=16)]
    with pytest.raises(ValueError, match=r"calibration batches must be what the model takes.*16"):
        convfactor.plan(model, images(), 1e-3, calibration=data, **MACS)
    assert not solved


def test_calibration_may_be_a_generator():
    plan = convfactor.plan(conv(), images(), 1e-3, calibration=(b for b in batches(4)), **MACS)
    assert str(plan.calibration) == "3 calibration batches, errors on 1 other"
    assert plan.entries[0].decision.errors is not None


def test_one_latency_run_end_to_end():
    """What is faster here is not for a test to say; that every decision is timed is."""
    model = nn.Sequential(conv(), Functional())
    fast, plan = convfactor.optimize(model, images(), 1e-3)
    assert len(plan.entries) == 2
    for entry in plan.entries:
        assert entry.decision.cost.before.median > 0
        assert entry.decision.cost.after.median > 0
    assert (plan.whole is not None) == bool(plan.replaced)
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_a_plan_is_written_seldom_where_that_takes_long(monkeypatch, tmp_path):
    """With a clock that only the writes move: a plan of many layers is not written after each."""
    now, written = [0.0], []

    def save(self, folder):
        written.append(len(self.entries))
        now[0] += 1.0

    monkeypatch.setattr(convfactor.Plan, "save", save)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    decide = layers.Layer.decide

    def deciding(self, *args):
        now[0] += 1.0
        return decide(self, *args)

    monkeypatch.setattr(layers.Layer, "decide", deciding)
    model = nn.Sequential(*(conv(seed=i) for i in range(14)))
    convfactor.plan(model, images(), 1e-3, checkpoint=tmp_path, structures="cascade", **MACS)
    assert written == [1, 11, 14]


def test_many_replacements_are_not_undone_one_by_one(monkeypatch):
    model = nn.Sequential(*(conv(seed=i) for i in range(24)))
    request = Job.read(
        model, images(), None, Settings(1e-3, objective="macs", structures="cascade"), None, None
    )
    made = request.plan(False, None)
    assert len(made.replaced) == 24
    clocked = []

    def clock(calls, device, duration, rounds):
        clocked.append(calls)
        return [Timing(t, t, t) for t in (1.0, 2.0, 1.0, 2.0)]

    timed = replace(request, settings=replace(request.settings, objective="latency"), clock=clock)
    assert not timed.compare(made).replaced
    assert len(clocked) < 20
