"""How much is tried for chains of how many channels and taps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convfactor.factorization.solvers.request import Effort

# Most work that an effort is made for, so that it takes about a second per stage.
_THOROUGH_WORK, _STEADY_WORK, _HASTY_WORK = 3e6, 4e7, 5e8
_STEADY_CHANNELS = 128
# More channels than this are many.
MANY = 32


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
        random: Random starts.
        peeled: Random starts of each stage that is peeled off; 0 leaves peeling out.
        rounds: Times that every pair of stages is merged and split again.
        heats: (steps, survivors per channel) of a race between starts.
        steps: Most steps of the last refinement.
    """

    random: int
    peeled: int
    rounds: int
    heats: tuple[tuple[int, int], ...] = ((12, 6), (30, 2), (100, 1))
    steps: int = 300


DRAFT = Plan(random=8, peeled=0, rounds=0, heats=((10, 3), (30, 1)), steps=20)
_GLANCE = Plan(random=4, peeled=0, rounds=0, heats=((6, 2), (15, 1)), steps=15)
_BARE = Plan(random=0, peeled=0, rounds=0, heats=((8, 1),), steps=25)
_HASTY = Plan(random=4, peeled=0, rounds=0, heats=((8, 2), (20, 1)), steps=60)
_BRISK = Plan(random=24, peeled=0, rounds=0, heats=((6, 6), (15, 2), (40, 1)), steps=150)
_STEADY = Plan(random=16, peeled=8, rounds=1)
_THOROUGH = Plan(random=32, peeled=16, rounds=2)
_SAMPLED = replace(_BRISK, peeled=8, rounds=2)


def affordable(channels: int, taps: int, pixels: int, effort: Effort) -> Plan:
    """Try less for many channels and many taps.

    Args:
        channels: Output channels.
        taps: Of all chains of one channel.
        pixels: Taps of the composed kernel.
        effort: "draft" or "full".
    """
    work = channels * taps**2 * pixels
    if effort == "draft":
        if work > _STEADY_WORK:
            return _BARE
        return DRAFT if channels <= MANY else _GLANCE
    if work > _STEADY_WORK:
        return _HASTY if work <= _HASTY_WORK else _BARE
    if channels > _STEADY_CHANNELS:
        return _BRISK
    if channels <= MANY:
        return _THOROUGH if work <= _THOROUGH_WORK else _STEADY
    return _SAMPLED
