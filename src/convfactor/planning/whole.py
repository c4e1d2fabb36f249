"""What whole models take, in the memory formats in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from convfactor.conv.formats import FORMATS, MemoryFormat
from convfactor.latency import FEWEST_ROUNDS, Clock, Timing, weighted
from convfactor.model.formats import in_format
from convfactor.model.inputs import Workload


def time_models(
    models: Sequence[nn.Module], inputs: Workload, clock: Clock, seconds: float
) -> list[dict[MemoryFormat, Timing]]:
    """Time all calls of a workload, each by itself, and sum them up by their weights.

    Args:
        models: The models; they are left as they were.
        inputs: The calls.
        clock: Times calls.
        seconds: About how long to measure in all.

    Returns:
        The times of each model, as given and in every other format in which it runs at all:
        ``x.view(len(x), -1)`` does not in channels_last.
    """
    calls: list[Callable[[], object]] = []
    timed: list[tuple[int, MemoryFormat]] = []
    for name in FORMATS:
        twins, given = in_format(models, inputs, name)
        for i, twin in enumerate(twins):
            runs = given.runs(twin)
            if name == "as given" or _run(runs):
                calls += runs
                timed.append((i, name))
    device = next((t.device for t in inputs.tensors), torch.device("cpu"))
    timings = clock(calls, device, seconds, FEWEST_ROUNDS)
    size = len(inputs.calls)
    found: list[dict[MemoryFormat, Timing]] = [{} for _ in models]
    for start, (i, name) in enumerate(timed):
        own = timings[start * size : (start + 1) * size]
        found[i][name] = weighted(own, inputs.weights)
    return found


def _run(calls: Sequence[Callable[[], object]]) -> bool:
    """Whether all calls of a model can be made."""
    try:
        for call in calls:
            call()
    except Exception:  # whatever a user's forward raises
        return False
    return True
