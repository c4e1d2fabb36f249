from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, conv, images
from torch import nn

import convfactor
from convfactor.model.inputs import ModelInputs
from convfactor.planning import refinement
from convfactor.planning.quality import OutputError
from convfactor.planning.refinement import refine
from convfactor.plans.decisions import Entry, Replaced

SEEN = [images(seed, count=2, size=24) for seed in range(4)]
UNSEEN = [ModelInputs.read(images(seed, count=2, size=24)) for seed in (8, 9)]


class Net(nn.Module):
    """Two large layers, the first one behind an activation."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.act = conv(), nn.ReLU(inplace)
        self.last = Functional(seed=1)

    def forward(self, x):
        return self.last(self.act(self.first(x)))


class Unreachable(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Whole(Net):
    """Takes one size only."""

    def forward(self, x):
        assert x.shape[-1] == 24
        return super().forward(x)


def spoilt(model: nn.Module) -> convfactor.Plan:
    """A plan whose cascades are a little off."""
    plan = convfactor.plan(model, SEEN[0], 0.01, calibration=SEEN, objective="macs")
    assert len(plan.replaced) == 2
    generator = torch.Generator().manual_seed(0)
    entries = []
    for entry in plan.entries:
        decision = entry.decision
        assert isinstance(decision, Replaced)
        weights = [
            s.weight * (1 + 0.05 * torch.randn(s.weight.shape, generator=generator))
            for s in decision.cascade.stages
        ]
        cascade = convfactor.Cascade.of(decision.structure, weights)
        entries.append(Entry(entry.subject, replace(decision, cascade=cascade)))
    return replace(plan, entries=tuple(entries))


def refined(model, plan, quality, end=math.inf, seed=0):
    inputs = [ModelInputs.read(x) for x in SEEN]
    told = []
    better = refine(model, plan, inputs, quality.loss, seed, end, False, told.append)
    entries = [
        Entry(
            entry.subject,
            replace(entry.decision, cascade=better[i].cascade, bias_shift=better[i].bias_shift),
        )
        if i in better
        else entry
        for i, entry in enumerate(plan.entries)
    ]
    return replace(plan, entries=tuple(entries)), better, told


@pytest.mark.parametrize("crop", [16, 96], ids=["crops", "whole"])
@pytest.mark.parametrize("make", [Net, lambda: Net(inplace=True), Whole])
def test_the_model_comes_nearer_to_the_original(make, crop, monkeypatch):
    monkeypatch.setattr(refinement, "CROP", crop)
    monkeypatch.setattr(refinement, "STEPS", 120)
    torch.manual_seed(0)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quality = OutputError(model, UNSEEN, 0.1, 0)
    plan = spoilt(model)
    better, layers, told = refined(model, plan, quality)
    assert sorted(layers) == [0, 1]
    was, now = (quality.loss(p.apply(model)) for p in (plan, better))
    assert now < 0.5 * was
    assert len(told) == refinement.WINDOWS
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_never_worse_on_unseen_data(monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", 8)
    monkeypatch.setattr(refinement, "RATE", 1e4)  # spoils what it touches
    monkeypatch.setattr(refinement, "SLOWER", 1.0)
    model = Net()
    _, layers, told = refined(model, spoilt(model), OutputError(model, UNSEEN, 0.1, 0))
    assert len(told) == 8
    assert layers == {}


def test_an_evaluation_sees_a_frozen_model_as_the_plan_would_give_it(monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", 40)
    model = Net().requires_grad_(False)
    x = images(8, size=24)
    true = model(x)
    seen = []

    def loss(student):
        seen.append(float(abs(student(x).numpy() - true.numpy()).mean()))  # fails for a gradient
        return seen[-1]

    inputs = [ModelInputs.read(batch) for batch in SEEN]
    better = refine(model, spoilt(model), inputs, loss, 0, math.inf, False, lambda text: None)
    assert sorted(better) == [0, 1]
    assert min(seen) < seen[0]


def test_where_no_gradient_arrives_nothing_is_trained():
    model = Unreachable()
    _, layers, told = refined(model, spoilt(model), OutputError(model, UNSEEN, 0.1, 0))
    assert layers == {}
    assert told == []


def test_two_runs_agree_and_other_crops_differ(monkeypatch):
    monkeypatch.setattr(refinement, "CROP", 16)
    monkeypatch.setattr(refinement, "STEPS", 20)
    model = Net()
    plan, quality = spoilt(model), OutputError(model, UNSEEN, 0.1, 0)
    runs = [refined(model, plan, quality, seed=seed)[1] for seed in (0, 0, 1)]
    first, same, other = ([s.weight for s in run[0].cascade.stages] for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_it_ends_in_time():
    model = Net()
    _, _, told = refined(model, spoilt(model), OutputError(model, UNSEEN, 0.1, 0), end=0.0)
    assert len(told) == 1
    assert told[0].startswith("step 1 of")


def test_the_activation_behind_a_layer_is_found():
    from convfactor.planning.pupil import Pupil

    class Shaped(Net):
        def forward(self, x):
            return self.last(F.leaky_relu(self.first(x), 0.3))

    model = Shaped()
    pupil = Pupil.of(model, spoilt(model))
    inputs = ModelInputs.read(SEEN[0])
    pupil.calibrate([inputs])
    hidden = F.leaky_relu(model.first(SEEN[0]), 0.3).detach().double()
    assert pupil.variances[0] == pytest.approx(float(hidden.var(correction=0)), rel=1e-4)
    (path,) = (key for key in pupil.variances if isinstance(key, str))
    whole = model(SEEN[0]).detach().double()
    assert pupil.variances[path] == pytest.approx(float(whole.var(correction=0)), rel=1e-4)
