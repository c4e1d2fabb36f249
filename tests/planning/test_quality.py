from __future__ import annotations

import math

import pytest
import torch
from tiny import batches, conv, images
from torch import nn

from convfactor.model.agreement import output_errors
from convfactor.model.inputs import ModelInputs
from convfactor.planning.quality import Drop, OutputError

INPUTS = [ModelInputs.read(batch) for batch in batches(2)]


def shifted(model: nn.Conv2d, by: float) -> nn.Conv2d:
    other = nn.Conv2d(2, 2, 5, padding=2)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.weight += by
    return other


def test_the_error_of_the_output_is_that_of_numpy():
    model = conv()
    other = shifted(model, 0.01)
    quality = OutputError(model, INPUTS, 0.5, 0)
    with torch.no_grad():
        true = torch.cat([model(x) for x in batches(2)]).transpose(0, 1).flatten(1).double().numpy()
        got = torch.cat([other(x) for x in batches(2)]).transpose(0, 1).flatten(1).double().numpy()
    expected = math.sqrt(((got - true) ** 2).mean() / true.var(axis=1).mean())
    assert quality.loss(other) == pytest.approx(expected, rel=1e-4)
    assert quality.loss(model) == 0.0
    assert quality.part(0.25) == 0.25
    assert quality.of_part(0.25) == 0.25
    with torch.no_grad():
        pairs = [(model(x), other(x)) for x in batches(2)]
    assert quality.loss(other) == pytest.approx(max(output_errors(pairs)))


@pytest.mark.parametrize("broken", [nn.Conv2d(3, 2, 5, padding=2), nn.Conv2d(2, 3, 5, padding=2)])
def test_a_model_that_fails_is_infinitely_worse(broken):
    assert OutputError(conv(), INPUTS, 0.5, 0).loss(broken) == math.inf
    drop = Drop.of(conv(), lambda model: float(model(images()).detach().sum()), 0.5, True, 0)
    assert drop.loss(nn.Conv2d(3, 2, 5)) == math.inf


@pytest.mark.parametrize("higher", [True, False])
def test_a_drop_has_the_sign_of_what_is_worse(higher):
    model = conv()
    quality = Drop.of(model, lambda m: m.weight.detach().sum(), 2.0, higher, 0)
    less = shifted(model, -0.01)  # the sum of 100 weights falls by 1
    assert quality.loss(less) == pytest.approx(1.0 if higher else -1.0, rel=1e-4)
    assert quality.part(quality.loss(less)) == pytest.approx(0.5 if higher else 0.0, rel=1e-4)
    assert quality.of_part(0.5) == 1.0


def test_an_evaluation_sees_a_copy_and_the_same_random_numbers():
    model = conv()

    def evaluate(seen):
        with torch.no_grad():
            seen.weight.zero_()
        return float(torch.rand(()))

    quality = Drop.of(model, evaluate, 0.1, True, 3)
    assert quality.loss(model) == 0.0
    assert bool(model.weight.any())


def test_without_anything_to_lose_nothing_may_be_lost():
    quality = Drop.of(conv(), lambda model: 1.0, 0.0, True, 0)
    assert quality.part(0.0) == 0.0
    assert quality.part(1e-9) == math.inf


def raising(model):
    raise RuntimeError("no such folder")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda model: math.nan, "evaluate must give a finite number for the model, got nan"),
        (lambda model: None, "evaluate must be a function .* raised TypeError"),
        (raising, "raised RuntimeError: no such folder"),
    ],
)
def test_an_evaluation_that_fails_on_the_original_is_refused(evaluate, message):
    with pytest.raises(ValueError, match=message):
        Drop.of(conv(), evaluate, 0.1, True, 0)


class Rooted(nn.Module):
    """Gives its convolution, and the root of it: no number where it is negative."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.conv = conv()
        with torch.no_grad():
            self.conv.weight.abs_()
            self.conv.bias.fill_(bias)

    def forward(self, x):
        y = self.conv(x)
        return y, y.sqrt()


def test_a_model_that_gives_no_numbers_is_infinitely_worse():
    fine, broken = Rooted(0.0), Rooted(-1e3)
    assert OutputError(fine, INPUTS, 0.5, 0).loss(broken) == math.inf
    assert OutputError(broken, INPUTS, 0.5, 0).loss(broken) == 0.0
