"""Wall-clock times of callables, interleaved."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

FEWEST_ROUNDS = 5
MOST_ROUNDS = 60
SHORTEST_SAMPLE = 1e-3
LONG = 2e-2


@dataclass(frozen=True)
class Timing:
    """Seconds that a call took.

    Attributes:
        median: The figure to quote.
        low: Lower quartile.
        high: Upper quartile.
        rounds: How often it was measured.
    """

    median: float
    low: float
    high: float
    rounds: int = 1

    @property
    def spread(self) -> float:
        """Distance of the quartiles relative to the median."""
        return (self.high - self.low) / self.median

    @property
    def doubt(self) -> float:
        """Standard error of the median relative to it, as of a normal distribution."""
        return 0.93 * self.spread / math.sqrt(self.rounds)


def weighted(timings: Sequence[Timing], weights: Sequence[float]) -> Timing:
    """Seconds of several calls in all, as if they were all slow, or all fast, at once.

    Args:
        timings: Of each call.
        weights: How often each is made.
    """
    pairs = list(zip(timings, weights, strict=True))
    return Timing(
        sum(weight * t.median for t, weight in pairs),
        sum(weight * t.low for t, weight in pairs),
        sum(weight * t.high for t, weight in pairs),
        min(t.rounds for t in timings),
    )


# Times several calls on a device, for some seconds and for a least number of rounds.
Clock = Callable[[Sequence[Callable[[], object]], torch.device, float, int], list[Timing]]


def compare(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    seconds: float = 0.3,
    rounds: int = FEWEST_ROUNDS,
) -> list[Timing]:
    """Time several callables in turn, A B A B ..., so that a drift of the machine hits all alike.

    Args:
        calls: What to time; gradients are off.
        device: Where they run; it is synchronised around every call.
        seconds: About how long to measure in all, warm-up not counted.
        rounds: Samples of each to take at least, 2 or more, however long that lasts.
    """
    samples: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        warm_up = [_timed(call, device, 1) for call in calls]
        # Short calls are repeated, so that the clock and the synchronisation do not count.
        repeats = [
            1 if first > LONG else math.ceil(SHORTEST_SAMPLE / _timed(call, device, 1))
            for call, first in zip(calls, warm_up, strict=True)
        ]
        end = time.perf_counter() + seconds
        for round_ in range(MOST_ROUNDS):
            if round_ >= rounds and time.perf_counter() > end:
                break
            for call, count, taken in zip(calls, repeats, samples, strict=True):
                taken.append(_timed(call, device, count))
    return [_summary(taken) for taken in samples]


def _timed(call: Callable[[], object], device: torch.device, count: int) -> float:
    """Seconds of one call, the mean of some in a row."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / count


def _synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(samples: Sequence[float]) -> Timing:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(samples, n=4)
    return Timing(median, low, high, len(samples))
