from __future__ import annotations

import collections
import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convfactor.model.inputs import ModelInputs
from convfactor.model.outputs import difference, structural_difference
from convfactor.model.trees import leaves, mapped


class Two(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class Record:
    x: Any
    y: int = 0


@dataclasses.dataclass(slots=True)
class Slots:
    x: Any


class Plain:
    def __init__(self, x):
        self.x = x


T = torch.arange(3.0)
NESTED = [
    [T, (T, {"a": T})],
    Two(T, [T]),
    Record(T, 3),
    Slots(T),
    SimpleNamespace(x=T),
    Plain(T),
    collections.OrderedDict(a=T),
    collections.defaultdict(list, a=[T]),
    collections.UserDict(a=T),
    collections.deque([T, T]),
]


@pytest.mark.parametrize("value", NESTED, ids=lambda value: type(value).__name__)
def test_everything_inside_is_found_and_copied(value):
    found = [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]
    assert found
    assert all(leaf is T for leaf in found)
    twin = mapped(lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf, value)
    assert type(twin) is type(value)
    changed = [leaf for _, leaf in leaves(twin) if isinstance(leaf, Tensor)]
    assert len(changed) == len(found)
    assert all(torch.equal(leaf, T + 1) for leaf in changed)
    assert all(leaf is T for _, leaf in leaves(value) if isinstance(leaf, Tensor))


def test_what_holds_itself_comes_to_an_end():
    value: list[Any] = [T]
    value.append(value)
    assert [leaf for _, leaf in leaves(value)] == [T]
    plain = Plain(T)
    plain.me = plain
    twin = mapped(lambda leaf: leaf, plain)
    assert twin.me is twin


def test_an_image_stays_whole_and_empty_containers_are_leaves():
    assert [leaf for _, leaf in leaves(([], {}, None, T.shape))] == [[], {}, None, T.shape]


@pytest.mark.parametrize(
    ("true", "got"),
    [
        (T, T[:2]),
        (T, T.double()),
        (T, (T,)),
        ((T, T), (T,)),
        ({"a": T}, {"b": T}),
        (None, T),
        (1, 1.0),
        ({"a": []}, {"a": [T]}),
        (Record(T), Record(None)),
    ],
)
def test_another_form_is_told(true, got):
    assert structural_difference(true, true) is None
    assert "output" in structural_difference(true, got)


class Returns(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.values = list(values)

    def forward(self, x):
        return self.values[0] if len(self.values) == 1 else self.values.pop(0)


@pytest.mark.parametrize(
    ("true", "got", "same"),
    [
        (T, T * (1 + 1e-6), True),
        (T, T * 1.01, False),
        (T.to(torch.complex64) * 1j, T.to(torch.complex64) * 1.1j, False),
        (T.int(), T.int(), True),
        (T.int(), T.int() + 1, False),
        (3, 4, False),
        ("a", "b", False),
        (1.0, 1.01, False),
        (np.ones(2), np.ones(2) * 2, False),
        (T.to_sparse(), (T + 1).to_sparse(), False),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
        (torch.tensor([torch.nan]), torch.tensor([1.0]), False),
        (object(), object(), True),
    ],
)
def test_values_are_compared_but_for_rounding(true, got, same):
    calls = [ModelInputs((T,), {})]
    assert (difference(Returns(true), Returns(got), calls) is None) == same


def test_the_second_run_in_a_row_counts():
    calls = [ModelInputs((T,), {})]
    assert "differs" in difference(Returns(T, T, T), Returns(T, T + 1, T), calls)
