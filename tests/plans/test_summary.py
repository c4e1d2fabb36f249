"""A plan summed up for other programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tiny import batches, conv, images

import convfactor
from convfactor import Plan
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.plans.decisions import Cost, Entry, Kept, Swapped, WholeModel
from convfactor.plans.spending import Offer, Spending
from convfactor.plans.summary import summary

BEFORE, AFTER = Timing(0.04, 0.03, 0.05), Timing(0.01, 0.01, 0.02)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan with every kind of decision, timed, with a budget for the model."""
    plan = convfactor.plan(conv(), images(), 1e-3, calibration=batches(), objective="macs")
    (entry,) = plan.entries
    cost = Cost(BEFORE, AFTER, 100, 36)
    subject = replace(entry.subject, kind="transform", kernel_size=(), geometry=None)
    entries = (
        replace(entry, decision=replace(entry.decision, cost=cost)),
        Entry(subject, Swapped(replace(cost, macs_before=None, macs_after=None), 2e-7, "cpp")),
        Entry(entry.subject, Kept(Reason("speed", "slow", "no structure is faster"))),
    )
    spending = Spending(
        limit=0.5, before=30.0, solved=0.4, refined=0.1, samples=2, shares=(),
        chosen=Offer(0.5, 0.1, True), offers=(), seconds=3.0,
    )  # fmt: skip
    whole = WholeModel((0.04, math.inf), BEFORE, AFTER, "channels_last")
    return replace(plan, entries=entries, spending=spending, whole=whole)


def test_it_is_what_the_plan_holds(plan):
    found = summary(plan)
    assert (found["found"], found["replaced"]) == (3, 2)
    assert (found["loss"], found["limit"]) == (0.1, 0.5)
    assert found["model"] == {
        "errors": [0.04, None], "memory_format": "channels_last",
        "before_s": 0.04, "after_s": 0.01, "speedup": 4.0,
    }  # fmt: skip
    first, swapped, kept = found["layers"]
    decision = plan.entries[0].decision
    assert (first["structure"], first["widths"]) == (str(decision.structure), [1])
    assert (first["error"], first["speedup"]) == (decision.error, 4.0)
    assert (first["multiplies_before"], first["multiplies_after"]) == (100, 36)
    assert (swapped["decision"], swapped["structure"], swapped["error"]) == ("replaced", None, 2e-7)
    assert (kept["decision"], kept["error"], kept["before_s"]) == ("kept", None, None)
    assert kept["reason"] == "no structure is faster"


def test_json_takes_it_as_it_is(plan):
    found = summary(plan)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    bare = replace(plan, entries=(), whole=None, spending=None)
    assert summary(bare)["model"] is None
    assert summary(bare)["layers"] == []
