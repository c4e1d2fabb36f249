from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfactor.planning.effects import CARE, HOPE, LEAST, Allowance, Effect, proportional

errors = st.floats(1e-6, 0.5)


def test_an_effect_grows_with_the_square_of_the_error():
    effect = Effect.of([(0.1, 0.5)])
    assert effect.part(0.2) == pytest.approx(2.0)
    assert effect.part(0.05) == pytest.approx(0.125)
    assert effect.part(0.0) == 0.0


def test_two_measurements_are_both_met():
    effect = Effect.of([(0.1, 2.0), (0.02, 0.02)])
    assert effect.part(0.02) == pytest.approx(0.02)
    assert effect.part(0.1) == pytest.approx(2.0)
    assert 0.02 < effect.part(0.05) < 2.0


@given(errors, errors)
def test_what_is_lost_in_noise_still_counts(error, other):
    effect = Effect.of([(0.1, -3.0)])
    assert effect.part(0.1) == pytest.approx(LEAST)
    small, large = sorted((error, other))
    assert effect.part(small) <= effect.part(large)


def test_what_breaks_the_model_is_never_within_a_budget():
    effect = Effect.of([(0.02, 0.1), (0.1, math.inf)])
    assert effect.part(0.02) == pytest.approx(0.1)
    assert effect.part(0.05) == math.inf


def test_an_allowance_aims_at_the_limit_and_stays_between_what_holds_and_what_fails():
    allowance = Allowance.first(refine=True)
    assert allowance.value == HOPE
    allowance.learn(expected=2.0, part=4.0)
    assert allowance.value == pytest.approx(2.0 * CARE / 4)
    allowance.learn(expected=0.4, part=0.1)
    assert 0.4 < allowance.value < 2.0
    for _ in range(20):
        before = allowance.value
        allowance.learn(expected=before, part=2 * before)
    assert allowance.value == pytest.approx(0.5, rel=0.1)


@given(st.lists(st.tuples(st.floats(1e-3, 10), st.floats(0, 100)), min_size=1, max_size=8))
def test_an_allowance_is_always_a_positive_number(outcomes):
    allowance = Allowance.first(refine=False)
    for expected, part in outcomes:
        allowance.learn(expected, part)
        assert 0 < allowance.value < math.inf


def test_parts_follow_the_errors_of_the_output():
    assert proportional([3.0, -0.5, 0.5], [1.0, 3.0, 2.0]) == pytest.approx([0.5, 1.5, 1.0])
    assert proportional([1.0, math.inf], [1.0, 1.0]) == [1.0, math.inf]


@pytest.mark.parametrize("square", [math.inf, 0.0])
def test_where_the_outputs_say_nothing_the_parts_stay(square):
    assert proportional([0.25, 0.5], [square, 0.0]) == [0.25, 0.5]
