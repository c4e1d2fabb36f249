from __future__ import annotations

import pytest
import torch
from patches import every_patch
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor.factorization import factorizer
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.planning import calibration
from convfactor.planning.batches import Split, split
from convfactor.planning.calibration import collect

EXAMPLE = ModelInputs.read(images())


def test_moments_and_inputs_are_those_of_each_site():
    model = nn.Sequential(conv(padding_mode="reflect"), nn.ReLU(), Functional(), conv(stride=2))
    sites = find(model, EXAMPLE)
    parts = split(batches(4), EXAMPLE)
    steps: list[int] = []
    data = collect(model, sites, [(0, 0), (1, 1), (0, 1)], parts, step=steps.append)
    assert steps == [1, 2, 3]

    with torch.no_grad():
        hidden = [b.args[0] for b in parts.fit], [b.args[0] for b in parts.held_out]
        for index, (site, margin) in enumerate(zip(sites, [(0, 0), (1, 1), (0, 1)], strict=True)):
            layer = conv() if index == 1 else model[0 if index == 0 else 3]
            x = torch.cat(hidden[0])
            patches = every_patch(layer, x, margin)
            torch.testing.assert_close(data[site].moments.mean, patches.mean(1))
            for kept, wanted in zip(data[site].held_out, hidden[1], strict=True):
                torch.testing.assert_close(kept, [wanted])
            after = [model[:2], model[2], nn.Identity()][index]
            hidden = tuple([after(x) for x in part] for part in hidden)


def test_several_passes_give_the_same(monkeypatch):
    model = nn.Sequential(conv(), conv(seed=1))
    sites, parts = find(model, EXAMPLE), split(batches(3), EXAMPLE)
    once = collect(model, sites, [(0, 0)] * 2, parts)
    monkeypatch.setattr(calibration, "MOMENTS_BYTES", 1)
    steps: list[int] = []
    twice = collect(model, sites, [(0, 0)] * 2, parts, step=steps.append)
    assert len(steps) == 2 * len(parts.fit)
    for site in sites:
        assert torch.equal(once[site].moments.covariance, twice[site].moments.covariance)


def test_held_out_inputs_are_bounded(monkeypatch):
    model = nn.Sequential(conv())
    sites, parts = find(model, EXAMPLE), split(batches(12), EXAMPLE)
    monkeypatch.setattr(calibration, "HELD_OUT_BYTES", 1)
    assert len(collect(model, sites, [(0, 0)], parts)[sites[0]].held_out) == 1


def test_held_out_inputs_are_spread_over_the_batches(monkeypatch):
    model = nn.Sequential(conv(), conv(seed=1))
    sites, parts = find(model, EXAMPLE), split(batches(24), EXAMPLE)
    held = [batch.args[0] for batch in parts.held_out]
    size = 4 * held[0].numel()
    monkeypatch.setattr(calibration, "HELD_OUT_BYTES", 2 * 3 * size)
    data = collect(model, sites, [(0, 0)] * 2, parts)
    for wanted, (kept,) in zip((held[0], held[2], held[4]), data[sites[0]].held_out, strict=True):
        assert torch.equal(kept, wanted)
    assert len(data[sites[1]].held_out) == 3


def test_a_plan_tells_on_how_many_batches_its_layers_were_measured(monkeypatch, tmp_path):
    model = nn.Sequential(conv())
    asked = {"tolerance": 1e-3, "calibration": batches(12), "objective": "macs"}
    monkeypatch.setattr(calibration, "HELD_OUT_BYTES", 2 * 4 * images(count=2).numel())
    plan = convfactor.plan(model, images(), checkpoint=tmp_path, **asked)
    assert "9 calibration batches, errors on 2 of 3 others" in str(plan)
    monkeypatch.undo()
    again = convfactor.plan(model, images(), checkpoint=tmp_path, **asked)
    assert again.replaced
    assert str(again.calibration) == str(plan.calibration)
    assert "errors on 3 others" in str(convfactor.plan(model, images(), **asked))


def test_what_is_too_large_to_be_solved_is_not_calibrated(monkeypatch):
    model = nn.Sequential(conv(), conv(size=13, seed=1))
    asked = {"tolerance": 1e-3, "calibration": batches(4), "objective": "macs"}
    collected = []

    def collecting(model, sites, *rest):
        collected.extend(site.subject.name for site in sites)
        return collect(model, sites, *rest)

    monkeypatch.setattr(calibration, "collect", collecting)
    monkeypatch.setattr(factorizer, "MOST_MEMORY", 1 << 20)
    plan = convfactor.plan(model, images(), **asked)
    assert collected == ["0"]
    assert plan.replaced == [0]
    assert plan.entries[1].reason.startswith("too large to be solved: takes some")


def test_inputs_that_are_changed_in_place_are_kept_as_they_were():
    class Overwrite(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            y = self.conv(x)
            x.zero_()
            return y

    model = Overwrite()
    sites, parts = find(model, EXAMPLE), split(batches(2), EXAMPLE)
    data = collect(model, sites, [(0, 0)], parts)
    assert torch.equal(data[sites[0]].held_out[0][0], parts.held_out[0].args[0])
    assert parts.held_out[0].args[0].any()


@pytest.mark.parametrize("reached", ["fit", "held_out"])
def test_a_site_that_the_data_does_not_reach_is_left_out(reached):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            return self.conv(x) if x.mean() > 0 else x

    model = Sometimes()
    sites = find(model, EXAMPLE)
    signs = {"fit": (1, -1), "held_out": (-1, 1)}[reached]
    parts = Split(*(tuple(ModelInputs((sign * images(),), {}) for _ in "ab") for sign in signs))
    assert collect(model, sites, [(0, 0)], parts) == {}


class Mapped(Functional):
    def forward(self, x):
        return torch.func.vmap(super().forward)(x)


def test_values_under_vmap_can_not_be_read():
    _, plan = convfactor.optimize(Mapped(), images(), calibration=batches(), objective="macs")
    assert "not called with calibration data" in plan.entries[0].reason
