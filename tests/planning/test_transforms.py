import warnings

import pytest
import torch
from torch import nn

import convfactor
from convfactor import PlanMismatchError, wavelets
from convfactor.latency import Timing, compare
from convfactor.model import transforms
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.planning.job import Job
from convfactor.planning.transforms import measure
from convfactor.plans.settings import Settings
from convfactor.wavelets import kernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    reference = pytest.importorskip("pytorch_wavelets")


class Shrink(nn.Module):
    def __init__(self, biort="near_sym_a"):
        super().__init__()
        self.analysis = reference.DTCWTForward(biort=biort, J=2)
        self.synthesis = reference.DTCWTInverse(biort=biort)

    def forward(self, x):
        low, highs = self.analysis(x)
        return self.synthesis((low, [0.5 * bands for bands in highs]))


@pytest.fixture
def image():
    return torch.rand(1, 2, 128, 128, generator=torch.Generator().manual_seed(0))


def twice_as_fast(calls, device, seconds, rounds):
    """Every replacement is twice as fast, so that no clock decides a test."""
    return [Timing(t, t, t) for t in (2.0, 1.0)] * (len(calls) // 2)


def job(model, image, select=None, **settings):
    return Job.read(model, image, None, Settings(**settings), select, None, twice_as_fast)


def plan_of(model, image, **options):
    return job(model, image, **options).plan(False, None)


def optimized(model, image):
    return job(model, image).optimize(False, None)


def test_transforms_are_swapped_and_their_own_convolutions_are_no_sites(image):
    model = Shrink()
    fast, plan = optimized(model, image)
    assert [(e.name, e.subject.kind, e.decision.label) for e in plan.entries] == [
        ("analysis", "transform", "replaced"),
        ("synthesis", "transform", "replaced"),
    ]
    assert isinstance(fast.synthesis, wavelets.DTCWTInverse)
    assert isinstance(fast.analysis, wavelets.DTCWTForward)
    assert type(model.synthesis) is reference.DTCWTInverse
    torch.testing.assert_close(fast(image), model(image), atol=1e-5, rtol=0)


def test_a_saved_plan_swaps_them_again_and_refuses_other_filters(image, tmp_path):
    fast, plan = optimized(Shrink(), image)
    plan.save(tmp_path)
    loaded = convfactor.Plan.load(tmp_path)
    assert torch.equal(loaded.apply(Shrink())(image), fast(image))
    with pytest.raises(PlanMismatchError, match="analysis"):
        loaded.apply(Shrink(biort="near_sym_b"))


class Scattering(nn.Module):
    def __init__(self, magbias=1e-2):
        super().__init__()
        self.first = reference.ScatLayer(mode="zero", magbias=magbias)
        self.second = reference.ScatLayerj2(magbias=magbias)

    def forward(self, x):
        return self.second(self.first(x))


def test_scattering_layers_are_swapped_saved_and_traced(image, tmp_path):
    model = Scattering()
    fast, plan = optimized(model, image)
    assert [(e.name, e.subject.dtype, e.decision.label) for e in plan.entries] == [
        ("first", "float32", "replaced"),
        ("second", "float32", "replaced"),
    ]
    assert isinstance(fast.first, wavelets.ScatLayer)
    assert isinstance(fast.second, wavelets.ScatLayerj2)
    torch.testing.assert_close(fast(image), model(image), atol=1e-5, rtol=0)
    plan.save(tmp_path)
    loaded = convfactor.Plan.load(tmp_path)
    assert torch.equal(loaded.apply(Scattering())(image), fast(image))
    with pytest.raises(PlanMismatchError, match="first"):
        loaded.apply(Scattering(magbias=2e-2))
    result = convfactor.fx.FactorizeConvs(plan)(convfactor.fx.trace(model))
    assert torch.equal(result.graph_module(image), fast(image))


def test_kernels_are_what_the_planner_times_and_swaps_in_after_build(image, monkeypatch):
    try:
        kernels.load()
    except RuntimeError as error:
        pytest.skip(f"no compiled kernels: {error}")
    monkeypatch.setattr(kernels, "_chosen", False)  # undone after the test, as `build` is not
    kernels.build()
    ran = []

    def clock(calls, device, seconds, rounds):
        for call in calls:
            with torch.profiler.profile() as profile:
                call()
            names = {event.key for event in profile.key_averages()}
            ran.append(any(name.startswith("convfactor::") for name in names))
        return twice_as_fast(calls, device, seconds, rounds)

    job = Job.read(Shrink(), image, None, Settings(), None, None, clock)
    fast, plan = job.optimize(False, None)
    assert [entry.decision.backend for entry in plan.entries] == ["cpp", "cpp"]
    assert ran[:4] == [False, True, False, True]
    with torch.profiler.profile() as profile:
        fast(image)
    names = {event.key for event in profile.key_averages()}
    assert {"convfactor::split", "convfactor::merge"} <= names


def test_the_pass_swaps_leaves(image):
    model = Shrink()
    plan = plan_of(model, image)
    result = convfactor.fx.FactorizeConvs(plan)(convfactor.fx.trace(model))
    assert result.modified
    kinds = {type(module) for module in result.graph_module.modules()}
    assert wavelets.DTCWTInverse in kinds
    assert reference.DTCWTInverse not in kinds
    torch.testing.assert_close(result.graph_module(image), model(image), atol=1e-5, rtol=0)


def test_they_are_kept_where_nothing_is_timed_or_they_are_not_selected(image):
    for options in ({"objective": "macs"}, {"select": lambda name, module: False}):
        plan = plan_of(Shrink(), image, **options)
        assert [e.decision.label for e in plan.entries] == ["kept", "kept"]
        assert all(e.reason for e in plan.entries)


def test_a_real_comparison(image):
    model = Shrink()
    sites = find(model, ModelInputs.read(image))
    assert [len(site.calls) for site in sites] == [1, 1]
    for site in sites:
        fast = transforms.replacement(site.module)
        error, cost = measure(site, fast, torch.device("cpu"), compare)
        assert error < 1e-6
        assert min(cost.before.median, cost.after.median) > 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_hooked_transform_is_kept(image):
    model = Shrink()
    model.synthesis.register_forward_hook(lambda module, args, output: None)
    plan = plan_of(model, image)
    assert [e.decision.label for e in plan.entries] == ["replaced", "kept"]
    assert "hooks" in plan.entries[1].reason


def test_fingerprints_tell_levels_and_trainable_filters_apart():
    made = [
        reference.DTCWTForward(J=2, skip_hps=[True, False]),
        reference.DTCWTForward(J=2, skip_hps=[False, True]),
        reference.DTCWTForward(J=2, include_scale=[False, True]),
        reference.DTCWTForward(J=2),
    ]
    made[3].h0o = nn.Parameter(2 * made[3].h0o)
    made.append(reference.DTCWTForward(J=2))
    assert len({transforms.fingerprint(module) for module in made}) == 5
    again = reference.DTCWTForward(J=2, skip_hps=[True, False])
    assert transforms.fingerprint(again) == transforms.fingerprint(made[0])


def test_a_filter_made_trainable_is_swapped_with_its_values(image):
    model = Shrink()
    model.synthesis.g0o = nn.Parameter(1.25 * model.synthesis.g0o)
    fast, plan = optimized(model, image)
    assert [e.decision.label for e in plan.entries] == ["replaced", "replaced"]
    assert [name for name, _ in fast.named_parameters()] == ["synthesis.g0o"]
    torch.testing.assert_close(fast(image), model(image), atol=1e-5, rtol=0)


def test_a_call_that_has_no_equal_keeps_the_original():
    """The original takes seven orientations at level 1 and reads six of them."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.synthesis = reference.DTCWTInverse()

        def forward(self, x):
            bands = x.new_ones(1, 1, 7, x.shape[2] // 2, x.shape[3] // 2, 2)
            return self.synthesis((x, [bands]))

    plan = plan_of(Odd(), torch.rand(1, 1, 64, 64))
    assert [e.decision.label for e in plan.entries] == ["kept"]
    assert "no faster equal: yh[0]: bands of level 1 must have 6" in plan.entries[0].reason
