from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batches, conv, images
from torch import nn

import convfactor
from convfactor import Plan
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.plans import hints
from convfactor.plans.decisions import Cost, Entry, Kept, Tried, WholeModel

OPTIONS = {"objective": "macs", "structures": "cascade"}
WHITE = "errors are those of white noise: give calibration"


def rough() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(2, 2, 5, padding=2)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return convfactor.plan(conv(), images(), 1e-3, **OPTIONS)


def kept(plan: Plan, code: str, tried: Tried | None, name: str = "conv2") -> Entry:
    (entry,) = plan.entries
    subject = replace(entry.subject, name=name)
    return replace(entry, subject=subject, decision=Kept(Reason.brief(code, "why"), tried))


def told(plan: Plan, *entries: Entry, **changes: object) -> list[str]:
    """Hints of a plan by time, with other entries and settings."""
    settings = replace(plan.settings, objective="latency", **changes)
    return hints.hints(replace(plan, entries=entries, settings=settings))


def timing(spread: float = 0.0, median: float = 0.01, rounds: int = 20) -> Timing:
    return Timing(median, median * (1 - spread / 2), median * (1 + spread / 2), rounds)


def faster(times: float, spread: float = 0.0) -> Cost:
    return Cost(timing(spread), timing(spread, 0.01 / times), 100, 36)


def test_the_tolerance_that_is_named_is_one_with_which_the_layer_is_replaced():
    model, x = rough(), images()
    (missed,) = convfactor.plan(model, x, 1e-3, **OPTIONS).entries
    close = missed.error / 1.2
    plan = convfactor.plan(model, x, close, **OPTIONS)
    assert not plan.replaced
    _, hint = hints.hints(plan)
    found = re.fullmatch(
        r"just missed, a larger tolerance would do: (\S+) for Conv2d \(error .*%, .*\)", hint
    )
    assert close < plan.entries[0].error <= float(found[1]) < 1.2 * plan.entries[0].error
    assert convfactor.plan(model, x, float(found[1]), **OPTIONS).replaced == [0]
    assert len(hints.hints(convfactor.plan(model, x, missed.error / 2, **OPTIONS))) == 1


def test_the_speedup_that_is_named_is_one_with_which_the_layer_is_replaced():
    plan = convfactor.plan(conv(), images(), 1e-3, min_speedup=2.9, **OPTIONS)
    assert not plan.replaced
    assert hints.hints(plan) == [
        "just missed, to be tried with a smaller min_speedup: 2.77 for Conv2d (2.78x fewer "
        "multiplies, not solved yet)"
    ]
    assert convfactor.plan(conv(), images(), 1e-3, min_speedup=2.77, **OPTIONS).replaced == [0]
    far = convfactor.plan(conv(), images(), 1e-3, min_speedup=3.2, **OPTIONS)
    assert hints.hints(far) == []


def test_without_calibration_what_it_would_do_is_told(plan, tmp_path):
    assert not any("hint" in line for line in str(plan).splitlines())
    missed = replace(plan, entries=(kept(plan, "tolerance", None), kept(plan, "budget", None)))
    lines = str(missed).splitlines()
    assert lines[-2].startswith(f"hint: {WHITE}, batches of real inputs; for images errors are ")
    assert " ".join("".join(lines[-2:]).split()).endswith(
        "several times lower, and 2 layers are kept for them"
    )
    assert f"Hint: {WHITE}" in missed.to_html()
    assert f"hint: {WHITE}" in missed.to_markdown()
    missed.save(tmp_path)
    assert str(Plan.load(tmp_path)) == str(missed)


def test_calibrated_plans_and_other_reasons_need_no_calibration(plan):
    missed = kept(plan, "tolerance", None)
    assert WHITE in hints.hints(replace(plan, entries=(missed,)))[0]
    transform = replace(missed, subject=replace(missed.subject, kind="transform"))
    for entry in (transform, kept(plan, "speed", None), kept(plan, "unselected", None)):
        assert hints.hints(replace(plan, entries=(entry,))) == []
    calibrated = convfactor.plan(rough(), images(), 1e-4, calibration=batches(), **OPTIONS)
    assert calibrated.entries[0].missed
    assert hints.hints(calibrated) == []


def test_what_just_misses_is_named_and_the_rest_is_counted(plan):
    entries = [
        kept(plan, "tolerance", Tried(None, faster(2), error), name)
        for name, error in zip("abcdef", (0.00123, 0.00105, 0.0015, 0.00151, 1e-4, 0.0011),
                               strict=True)
    ]  # fmt: skip
    _, hint = told(plan, *entries)
    assert hint == (
        "just missed, a larger tolerance would do: 0.0013 for a (error 0.12%, 2.00x faster), "
        "0.0011 for b (error 0.10%, 2.00x faster), 0.0015 for c (error 0.15%, 2.00x faster) "
        "and 1 other layer"
    )
    slow = kept(plan, "tolerance", Tried(None, faster(1.02), 0.0012))
    unknown = [Tried(None, faster(2), error) for error in (math.nan, math.inf, None)]
    for entry in (slow, *(kept(plan, "tolerance", tried) for tried in unknown)):
        assert len(told(plan, entry)) == 1
    assert len(told(plan, *entries, tolerance=None, model_tolerance=1e-3)) == 1


@pytest.mark.parametrize(
    ("speedup", "least", "hint"),
    [
        (1.049, 1.05, "1.04 for conv2 (1.05x faster, error 0.50%)"),
        (1.018, 1.05, "1.01 for conv2 (1.02x faster, error 0.50%)"),
        (1.009, 1.05, None),
        (0.98, 1.05, None),
        (1.904, 2.0, "1.9 for conv2 (1.90x faster, error 0.50%)"),
        (1.7, 2.0, None),
        (2.5, 2.0, None),
    ],
)
def test_what_is_a_little_too_slow(plan, speedup, least, hint):
    entry = kept(plan, "speed", Tried(None, faster(speedup), 0.005))
    found = told(plan, entry, min_speedup=least)
    assert found == (
        [] if hint is None else [f"just missed, to be tried with a smaller min_speedup: {hint}"]
    )


def test_a_gain_in_the_noise_is_none(plan):
    for spread, count in ((0.01, 1), (0.15, 0)):
        entry = kept(plan, "speed", Tried(None, faster(1.03, spread), 0.005))
        assert len(told(plan, entry)) == count


def test_wide_times_and_a_busy_machine_are_told(plan):
    quiet, wide = (kept(plan, "speed", Tried(None, faster(0.5, s)), f"by {s}") for s in (0.1, 0.5))
    wider = kept(plan, "speed", Tried(None, faster(0.5, 0.9)), "head")
    end = "): plan again when the machine is quiet"
    assert told(plan, quiet) == []
    assert told(plan, quiet, wide) == [
        f"times may be off (half of the times of by 0.5 lie 50% apart{end}"
    ]
    assert told(plan, wide, wider) == [
        "times may be off (half of the times of head lie 90% apart, and those of 1 other layer "
        f"widely{end}"
    ]
    few = Cost(timing(0.9, rounds=3), timing(0.9, 0.02, rounds=3), 100, 36)
    assert told(plan, kept(plan, "speed", Tried(None, few))) == []
    busy = replace(
        plan,
        environment=replace(plan.environment, threads=1, load=7.25),
        whole=WholeModel((0.01,), timing(0.3), timing(0.1), "as given"),
    )
    assert told(busy, quiet) == [
        "times may be off (a load of 7.2 with 1 thread in use; half of the times of the whole "
        f"model lie 30% apart{end}"
    ]
    assert hints.hints(busy) == []  # nothing was timed


@given(st.floats(1e-12, 1e3))
def test_a_tolerance_is_rounded_up_to_two_digits(value):
    rounded = hints._up(value)
    assert value * (1 - 1e-12) <= rounded <= value * 1.1 * (1 + 1e-12)
    assert float(f"{rounded:.1e}") == rounded
