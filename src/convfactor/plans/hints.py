"""What a person may do about a plan, read off what it records."""

from __future__ import annotations

import math
from collections.abc import Iterable

from convfactor.latency import FEWEST_ROUNDS, Timing
from convfactor.plans.decisions import Cost, Decisions, Entry, Kept, Tried
from convfactor.plans.words import counted, percent

# Distance of the quartiles of a quiet machine's timings: a few per cent.
UNSTEADY = 0.2
# What misses the tolerance, or the least speed-up, by no more than these factors just misses it.
NEARLY_EXACT, NEARLY_FAST = 1.5, 1.1
# A gain of less is not worth a hint.
GAIN = 1.01
# So many layers are named.
NAMED = 3


def hints(plan: Decisions) -> list[str]:
    """What to do next, a line each; none where there is nothing to say."""
    return [*_uncalibrated(plan), *_just_missed(plan), *_too_slow(plan), *_unsteady(plan)]


def _uncalibrated(plan: Decisions) -> list[str]:
    """What calibration would do."""
    errors = ("tolerance", "budget", "time")
    kept = [
        e
        for e in plan.entries
        if isinstance(e.decision, Kept)
        and e.decision.reason.code in errors
        and e.subject.kind != "transform"
    ]
    if plan.calibrated or not kept:
        return []
    layers = counted(len(kept), "layer is", "layers are")
    return [
        "errors are those of white noise: give calibration, batches of real inputs; for images "
        f"errors are often several times lower, and {layers} kept for them"
    ]


def _just_missed(plan: Decisions) -> list[str]:
    """At which tolerance layers would be replaced that miss theirs by little."""
    tolerance, bar = plan.settings.tolerance, 1 / plan.settings.min_speedup
    if tolerance is None:
        return []
    found = [
        f"{_up(tried.error):g} for {entry.name} (error {percent(tried.error)}, {tried.cost})"
        for entry, tried in _kept(plan, "tolerance")
        if tried.error is not None
        and tolerance < tried.error <= NEARLY_EXACT * tolerance
        and tried.cost.relative <= bar
    ]
    return [f"just missed, a larger tolerance would do: {_named(found)}"] if found else []


def _too_slow(plan: Decisions) -> list[str]:
    """At which least speed-up layers would count that are clearly faster, but by too little."""
    asked = plan.settings.min_speedup
    found = []
    for entry, tried in _kept(plan, "speed"):
        speedup = 1 / tried.cost.relative if tried.cost.relative > 0 else math.inf
        least = math.floor(100 * speedup) / 100
        near = least >= GAIN and asked / NEARLY_FAST <= speedup < asked
        if near and tried.cost.decides(1.0):
            error = "not solved yet" if tried.error is None else f"error {percent(tried.error)}"
            found.append(f"{least:g} for {entry.name} ({tried.cost}, {error})")
    return (
        [f"just missed, to be tried with a smaller min_speedup: {_named(found)}"] if found else []
    )


def _unsteady(plan: Decisions) -> list[str]:
    """That times may be off, where other work ran beside this or they vary widely."""
    environment, whole = plan.environment, plan.whole
    if plan.settings.objective == "macs":
        return []
    signs = []
    if environment.busy:
        signs.append(environment.crowd)
    spread = 0.0 if whole is None else _spread(whole.before, whole.after)
    if spread > UNSTEADY:
        signs.append(f"half of the times of the whole model lie {spread:.0%} apart")
    spreads = {e.name: _spread(*_timings(e.decision.cost)) for e in plan.entries}
    wide = [name for name, spread in spreads.items() if spread > UNSTEADY]
    if wide:
        widest = max(wide, key=lambda name: spreads[name])
        others = (
            f", and those of {counted(len(wide) - 1, 'other layer')} widely" if wide[1:] else ""
        )
        signs.append(f"half of the times of {widest} lie {spreads[widest]:.0%} apart{others}")
    if not signs:
        return []
    return [f"times may be off ({'; '.join(signs)}): plan again when the machine is quiet"]


def _kept(plan: Decisions, code: str) -> Iterable[tuple[Entry, Tried]]:
    """The layers that are kept for a reason, with what was tried for them."""
    for entry in plan.entries:
        decision = entry.decision
        if isinstance(decision, Kept) and decision.reason.code == code and decision.tried:
            yield entry, decision.tried


def _named(found: list[str]) -> str:
    """The first of several, and how many more there are."""
    more = len(found) - NAMED
    return ", ".join(found[:NAMED]) + (f" and {counted(more, 'other layer')}" if more > 0 else "")


def _timings(cost: Cost | None) -> tuple[Timing | None, ...]:
    """Both sides of a cost."""
    return () if cost is None else (cost.before, cost.after)


def _spread(*timings: Timing | None) -> float:
    """The largest distance of quartiles; of few rounds they say little."""
    known = [t.spread for t in timings if t is not None and t.rounds >= FEWEST_ROUNDS]
    return max(known, default=0.0)


def _up(value: float) -> float:
    """The next larger number of two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")
