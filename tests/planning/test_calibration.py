from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from patches import every_patch
from tiny import Functional, batches, conv, images
from torch import nn

from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.planning import calibration
from convfactor.planning.calibration import Split, collect, split

EXAMPLE = ModelInputs.read(images())


@pytest.mark.parametrize(("count", "held"), [(2, 1), (4, 1), (5, 1), (8, 2), (20, 5)])
def test_a_quarter_is_held_out_and_spread(count, held):
    given = batches(count)
    parts = split(iter(given), EXAMPLE)
    seen = [x.args[0] for x in (*parts.fit, *parts.held_out)]
    assert len(parts.held_out) == held
    assert {id(x) for x in seen} == {id(x) for x in given}
    places = [next(i for i, g in enumerate(given) if g is x.args[0]) for x in parts.held_out]
    assert all(b - a == count // held for a, b in itertools.pairwise(places))
    assert places[-1] < count - 1 or count == 2


def test_a_single_batch_is_split_by_samples():
    x = images(count=5)
    parts = split(
        [{"x": x, "scale": 2.0, "size": torch.tensor(3)}],
        ModelInputs((), {"x": x, "s": torch.tensor(1)}),
    )
    assert len(parts.fit) + len(parts.held_out) == 5
    for part in (*parts.fit, *parts.held_out):
        assert part.kwargs["x"].shape == (1, 2, 12, 12)
        assert (part.kwargs["scale"], int(part.kwargs["size"])) == (2.0, 3)


def test_the_digest_tells_data_apart():
    texts = {
        split(data, EXAMPLE).identity
        for data in (batches(4), batches(4), batches(5), [images(9)] * 4)
    }
    assert len(texts) == 3
    nested = [
        split([((x, x),) for x in data], ModelInputs(((x := images(), x),), {})).identity
        for data in (batches(4), batches(5)[1:])
    ]
    assert nested[0] != nested[1]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        (images(count=4), TypeError, "put a single batch in a list"),
        (3, TypeError, "iterable of batches, .* got int"),
        ([images(count=1)], ValueError, "at least two samples"),
        ([images(), images(channels=3)], ValueError, r"batch 1 .* got shapes \[\(1, 3, 12, 12\)\]"),
        ([images(), images()[0]], ValueError, "batch 1 must look like the example inputs"),
        ([images(), images().double()], ValueError, "float64"),
        ([images(), (images(), images())], ValueError, "batch 1 must look like"),
        (["photo.png"], TypeError, r"batch 0 must hold a tensor, such as .*, got str$"),
        ("photos.npz", TypeError, "got str; load the file and give a list of batches"),
        (Path("photos"), TypeError, "got .*Path; load the file and give a list of batches"),
        (batches, TypeError, "got function; call it and give what it returns"),
        ({"x": images(count=4)}, TypeError, "got dict of Tensor; put a single batch in a list"),
        (images(count=4).numpy(), TypeError, "ndarray; use torch.from_numpy and put .* in a list"),
        ([images().numpy()], TypeError, "batch 0 must .* got ndarray; use torch.from_numpy"),
        ([images(), {"x": images().numpy()}], TypeError, "batch 1 .* dict of ndarray; use torch"),
        ([(images(), torch.tensor([3]))], ValueError, "only what the model takes and drop the lab"),
        ([images().half()], ValueError, "float16'.; convert it to the dtype of the example inputs"),
        ([images(), images() / 0], ValueError, "batch 1 must be finite, .*; leave it out"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        split(data, EXAMPLE)


def test_what_does_not_fit_is_refused_before_the_rest_is_read():
    def data():
        yield images(channels=3)
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="batch 0 must look like"):
        split(data(), EXAMPLE)


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
