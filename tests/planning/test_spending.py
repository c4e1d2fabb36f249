from __future__ import annotations

import copy
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from tiny import Functional, conv, images
from torch import nn

import convfactor
from convfactor import ToleranceError
from convfactor.latency import Timing
from convfactor.model.agreement import output_errors
from convfactor.planning import frontier, job, judge, refinement, spending
from convfactor.planning.accounts import Try
from convfactor.planning.choices import LEAST_RETURN
from convfactor.planning.effects import Allowance
from convfactor.plans.decisions import Kept, Replaced
from convfactor.plans.settings import Settings

MACS = {"objective": "macs", "structures": "cascade"}
DATA = [images(seed, count=2, channels=4, size=16) for seed in range(6)]
FRESH = [images(seed, count=2, channels=4, size=16) for seed in range(20, 24)]


def nearly(seed: int, noise: float) -> nn.Conv2d:
    """A layer whose kernel is a narrow cascade and something beside it."""
    layer = conv(4, 4, 5, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        rest = torch.randn(layer.weight.shape, generator=generator)
        layer.weight += noise * layer.weight.norm() / rest.norm() * rest
    return layer


def net(noise: float = 0.3) -> nn.Module:
    return nn.Sequential(nearly(0, noise), nn.ReLU(), nearly(1, noise), nn.ReLU(), nearly(2, noise))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", 40)


def spent(model, **options):
    return convfactor.optimize(model, DATA[0], calibration=DATA, **MACS, **options)


def error(model, fast, data=FRESH):
    with torch.no_grad():
        return max(output_errors((model(x), fast(x)) for x in data))


def cost(plan):
    pairs = [(e.decision.cost.macs_before, e.decision.cost.macs_after) if e.replaced
             else (e.subject.geometry.macs,) * 2 for e in plan.entries]  # fmt: skip
    return sum(after for _, after in pairs) / sum(before for before, _ in pairs)


@pytest.fixture(scope="module")
def frontier_of_net():
    """The same model with smaller and larger budgets."""
    model = net()
    return model, {
        limit: spent(model, model_tolerance=limit, refine=False) for limit in (0.02, 0.1, 0.3)
    }


def test_the_output_is_within_the_budget_and_a_larger_one_saves_more(frontier_of_net):
    model, results = frontier_of_net
    costs = []
    for limit, (fast, plan) in results.items():
        assert plan.spending.loss <= limit
        assert plan.spending.loss == pytest.approx(plan.whole.errors[0], rel=0.05)
        assert error(model, fast) <= 1.3 * limit
        assert plan.spending.limit == limit
        costs.append(cost(plan))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6


def test_every_layer_tells_its_share_and_why_it_is_kept(frontier_of_net):
    _, results = frontier_of_net
    for _, plan in results.values():
        shares = {share.name: share.part for share in plan.spending.shares}
        assert set(shares) == {plan.entries[i].name for i in plan.replaced}
        for entry in plan.entries:
            if isinstance(entry.decision, Kept):
                assert entry.decision.reason.code in ("budget", "speed")
            else:
                assert shares[entry.name] > 0
        saved = sum(share.saved for share in plan.spending.shares)
        assert plan.spending.chosen.cost == pytest.approx(1 - saved) == pytest.approx(cost(plan))
    _, plan = results[0.1]
    assert f"model tolerance 0.1 (relative output error; {plan.calibration})" in str(plan)
    assert "of 10.00% allowed (2 batches that no fit has seen)" in str(plan)
    assert "shares of it: " in str(plan)


def test_the_frontier_of_the_model_falls(frontier_of_net):
    _, results = frontier_of_net
    spending = results[0.1][1].spending
    guessed = [offer for offer in spending.offers if not offer.measured]
    assert len(guessed) > 3
    assert [o.loss for o in guessed] == sorted(o.loss for o in guessed)
    assert spending.next.cost < spending.chosen.cost
    assert spending.next.loss > spending.limit
    assert any(o.measured and o.cost == spending.chosen.cost for o in spending.offers)


def test_a_plan_with_a_budget_is_kept_whole(frontier_of_net, tmp_path):
    model, results = frontier_of_net
    fast, plan = results[0.1]
    plan.save(tmp_path)
    loaded = convfactor.Plan.load(tmp_path)
    assert loaded.spending == plan.spending
    assert loaded.settings == plan.settings
    assert torch.equal(loaded.apply(model)(FRESH[0]), fast(FRESH[0]))
    assert str(loaded) == str(plan)


def test_refinement_gains_and_the_plan_tells_it(monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", 150)
    model = net()
    before = copy.deepcopy(model.state_dict())
    fast, plan = spent(model, model_tolerance=0.1)
    spending = plan.spending
    assert plan.settings.refine
    assert spending.refined < spending.solved
    assert spending.refined <= 0.1
    assert error(model, fast) <= 0.13
    assert "% unrefined; 2 batches that no fit has seen)" in str(plan)
    assert cost(plan) <= cost(spent(model, model_tolerance=0.1, refine=False)[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for entry in plan.entries:
        if isinstance(entry.decision, Replaced):
            assert entry.decision.errors.pooled == entry.error


def test_a_quality_is_kept_to():
    model = net()
    x = torch.cat(FRESH)
    with torch.no_grad():
        wanted = model(x) + 0.5 * torch.randn(64, 4, 16, 16)[: len(x)]

    def closeness(seen):
        with torch.no_grad():
            return -10 * math.log10(float((seen(x) - wanted).square().mean()))

    fast, plan = spent(model, evaluate=closeness, max_drop=0.2)
    assert closeness(model) - closeness(fast) <= 0.2 + 1e-6
    assert plan.spending.before == pytest.approx(closeness(model))
    assert plan.spending.loss == pytest.approx(closeness(model) - closeness(fast), abs=1e-6)
    assert "at most 0.2 worse in closeness" in str(plan)
    assert len(plan.replaced) >= 2

    def distance(seen):
        return -closeness(seen)

    other = spent(model, evaluate=distance, max_drop=0.2, higher_is_better=False)[1]
    assert cost(other) == cost(plan)


def test_what_saves_next_to_nothing_is_not_worth_an_error():
    wide = conv(4, 32, 5, 5)
    model = nn.Sequential(nearly(0, 0.3), nn.ReLU(), wide, nn.ReLU(), nn.Conv2d(32, 4, 1))
    _, plan = spent(model, model_tolerance=0.05, refine=False)
    assert plan.entries[1].replaced
    whole = sum(e.subject.geometry.macs for e in plan.entries)
    for entry in plan.entries:
        if entry.replaced:
            (share,) = (s.part for s in plan.spending.shares if s.name == entry.name)
            saved = (1 - entry.decision.cost.relative) * entry.subject.geometry.macs / whole
            assert saved > LEAST_RETURN * share / 2


def test_exact_layers_cost_nothing():
    model = nn.Sequential(conv(), nn.ReLU(), Functional(seed=2))
    data = [images(seed, count=2) for seed in range(4)]
    fast, plan = convfactor.optimize(
        model, data[0], model_tolerance=0.001, calibration=data, **MACS
    )
    assert len(plan.replaced) == 2
    assert error(model, fast, data) < 1e-4


def test_it_works_without_calibration():
    model = net(0.02)
    fast, plan = convfactor.optimize(model, DATA[0], model_tolerance=0.1, **MACS)
    assert not plan.settings.refine
    assert plan.spending.samples == 1
    assert error(model, fast, DATA[:1]) <= 0.1
    assert plan.replaced


def test_where_nothing_fits_the_model_stays_and_strict_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2))
    fast, plan = spent(model, model_tolerance=1e-5)
    assert not plan.replaced
    assert plan.spending.solved is None
    assert torch.equal(fast(DATA[0]), model(DATA[0]))
    with pytest.raises(ToleranceError, match="model_tolerance of 1e-05 is missed: 0 "):
        spent(model, model_tolerance=1e-5, strict=True)


def test_the_answers_do_not_depend_on_where_they_are_found(frontier_of_net):
    model, results = frontier_of_net
    plain = results[0.1][1]
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        other = spent(model, model_tolerance=0.1, refine=False, executor=executor)[1]
    for mine, its in zip(plain.entries, other.entries, strict=True):
        assert mine.decision.structure == its.decision.structure
        if isinstance(mine.decision, Replaced):
            for a, b in zip(mine.decision.cascade.stages, its.decision.cascade.stages, strict=True):
                assert torch.equal(a.weight, b.weight)


def test_dask_solves_as_well(frontier_of_net):
    distributed = pytest.importorskip("distributed")
    model, results = frontier_of_net
    plain = results[0.1][1]
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        other = spent(model, model_tolerance=0.1, refine=False, executor=executor)[1]
    assert [e.decision.structure for e in plain.entries] == [
        e.decision.structure for e in other.entries
    ]


def test_an_interrupted_run_goes_on(frontier_of_net, tmp_path, monkeypatch):
    model, results = frontier_of_net
    looks = []
    look, look_at = frontier.look, spending.look_at
    frontiers = []

    def seen(layers, *rest):
        frontiers[:] = layers
        look_at(layers, *rest)

    def counted(task):
        looks.append(task)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return look(task)

    monkeypatch.setattr(frontier, "look", counted)
    monkeypatch.setattr(spending, "look_at", seen)
    with pytest.raises(KeyboardInterrupt):
        spent(model, model_tolerance=0.1, refine=False, checkpoint=tmp_path)
    first = len(looks)
    _, plan = spent(model, model_tolerance=0.1, refine=False, checkpoint=tmp_path)
    every = sum(len(f.tasks()) for f in frontiers)
    assert len(looks) - first == every - 2  # not what the interrupted run had finished
    assert [e.decision.structure for e in plan.entries] == [
        e.decision.structure for e in results[0.1][1].entries
    ]


def test_a_layer_that_is_kept_after_all_is_not_accounted_for(monkeypatch):
    model = net()
    sound = judge.Judge.sound

    def strict(self, chosen):
        return sound(self, chosen).keeping(chosen.replaced[0], "not this one")

    monkeypatch.setattr(judge.Judge, "sound", strict)
    _, plan = spent(model, model_tolerance=0.1, refine=False)
    spending = plan.spending
    assert {s.name for s in spending.shares} == {plan.entries[i].name for i in plan.replaced}
    assert spending.loss == pytest.approx(plan.whole.errors[0], rel=0.05)
    assert spending.chosen.cost == pytest.approx(cost(plan))
    nothing = spending.only((), 0.0)
    assert (nothing.solved, nothing.refined, nothing.shares) == (None, None, ())
    assert nothing.chosen.cost == 1


class Difference(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = conv(4, 4, 5, 0), conv(4, 4, 5, 1)

    def forward(self, x):
        return self.first(x) - self.second(x)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_left_after_undoing_is_within_the_budget(monkeypatch, strict):
    """Both layers together keep to the budget, but one alone does not, as after refinement."""
    seconds, compared = {0: 1.0, 1: 0.8, 2: 1.1}, []

    def cascades(model):
        return sum(isinstance(module, convfactor.CascadeConv2d) for module in model.modules())

    def times(models, inputs, clock, duration):
        compared.append(models)
        timings = [Timing(t, t, t) for t in (seconds[cascades(model)] for model in models)]
        return [{"as given": timing, "channels_last": timing} for timing in timings]

    def quality(model):
        return 0.5 if compared and cascades(model) == 1 else 1.0

    monkeypatch.setattr(job, "time_models", times)
    model = Difference()
    settings = Settings(max_drop=0.1, evaluate="quality", **MACS)
    request = replace(job.Job.read(model, DATA[0], None, settings, None, None), evaluate=quality)
    made = request.plan(False, None)
    assert len(made.replaced) == 2
    monkeypatch.setattr(job, "make_plan", lambda *rest: made)
    timed = replace(request, settings=replace(settings, objective="latency"))
    if strict:
        with pytest.raises(ToleranceError, match="budget: undone, as with other layers undone"):
            timed.optimize(True, None)
        return
    fast, plan = timed.optimize(False, None)
    assert not plan.replaced
    assert {entry.decision.reason.code for entry in plan.entries} == {"speed", "budget"}
    assert (plan.spending.solved, plan.spending.loss, plan.whole) == (None, 0.0, None)
    assert torch.equal(fast(DATA[0]), model(DATA[0]))


def test_an_empty_choice_ends_the_search():
    """However the allowance falls, and whatever it was known by."""
    choices = SimpleNamespace(confirmed=lambda allowance: {}, cost=lambda choice: 1.0)
    quality = SimpleNamespace(part=lambda loss: loss)
    spender = SimpleNamespace(_choices=choices, quality=quality)
    allowance = Allowance.first(True)
    allowance.learn(1.0, 3.0)
    before = allowance.value
    tried = Try({0: None}, {}, None, 3.0)
    assert spending.Spender._untried(spender, allowance, [tried]) == {}
    assert allowance.value == before


def test_a_time_limit_ends_with_what_there_is():
    _, plan = spent(net(), model_tolerance=0.1, time_limit=1e-3)
    assert {entry.decision.reason.code for entry in plan.entries} == {"time"}
    assert all("allow more time" in entry.reason for entry in plan.entries)
    assert plan.spending.chosen.cost == 1


BAD = [
    ({"tolerance": 0.1, "model_tolerance": 0.1}, ValueError, "give one of tolerance .* got toler"),
    ({"model_tolerance": 2}, ValueError, "model_tolerance must be a positive number, .* got 2$"),
    ({"evaluate": len}, ValueError, "evaluate and max_drop belong together.* got only evaluate"),
    ({"max_drop": 0.1}, ValueError, "evaluate and max_drop belong together.* got only max_drop"),
    ({"evaluate": len, "max_drop": -1}, ValueError, "max_drop must be a number >= 0, got -1"),
    ({"evaluate": 3, "max_drop": 1}, TypeError, "evaluate must be a function .* got int"),
    ({"tolerance": 0.1, "refine": True}, ValueError, "refine needs a budget for the model"),
    ({"model_tolerance": 0.1, "refine": True}, ValueError, "refine needs calibration"),
    ({"model_tolerance": 0.1, "time_limit": 0}, ValueError, "time_limit must be a positive"),
    ({"model_tolerance": 0.1, "executor": 4}, TypeError, "executor must be .* got int"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD)
def test_wrong_budgets_are_refused_before_any_work(bad, kind, message):
    with pytest.raises(kind, match=message):
        convfactor.optimize(net(), DATA[0], **bad)
