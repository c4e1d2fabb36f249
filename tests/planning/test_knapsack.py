from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfactor.planning.knapsack import STEPS, Option, choose

options = st.builds(
    Option,
    gain=st.floats(-1, 10, allow_nan=False),
    # Whole steps of the budget of 1, which are not rounded.
    price=st.integers(0, 2 * STEPS).map(lambda steps: steps / STEPS),
)
layers = st.lists(st.lists(options, max_size=3), max_size=4)


def totals(chosen, picks):
    taken = [own[i] for own, i in zip(chosen, picks, strict=True) if i is not None]
    return sum(o.gain for o in taken), sum(o.price for o in taken)


@given(layers)
def test_no_other_choice_within_the_budget_gains_more(own):
    gain, price = totals(own, choose(own, 1.0))
    assert price <= 1 + 1e-9
    every = itertools.product(*[[None, *range(len(one))] for one in own])
    best = max(g for g, p in (totals(own, picks) for picks in every) if p <= 1 - len(own) / STEPS)
    assert gain >= best - 1e-9


def test_what_costs_nothing_is_taken_without_a_budget():
    assert choose([[Option(1.0, 0.0)], [Option(1.0, 0.1)]], 0.0) == [0, None]


@pytest.mark.parametrize("price", [float("inf"), 1.1])
def test_what_is_beyond_any_budget_is_left(price):
    assert choose([[Option(5.0, price), Option(1.0, 0.5)]], 1.0) == [1]


def test_five_hundred_layers_are_chosen_for():
    own = [[Option(1.0 + i % 7, 0.001 * (1 + i % 5)), Option(9.0, 0.02)] for i in range(500)]
    gain, price = totals(own, choose(own, 1.0))
    assert price <= 1 + 1e-9
    assert gain > 1000
