"""What whole models take, in both memory formats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convfactor.conv.formats import FORMATS
from convfactor.latency import FEWEST_ROUNDS, Clock, Timing, weighted
from convfactor.model.formats import in_format
from convfactor.model.inputs import Workload


def time_models(
    models: Sequence[nn.Module], inputs: Workload, clock: Clock, seconds: float
) -> list[tuple[Timing, ...]]:
    """Time all calls of a workload, each by itself, and sum them up by their weights.

    Args:
        models: The models; they are left as they were.
        inputs: The calls.
        clock: Times calls.
        seconds: About how long to measure in all.

    Returns:
        The times of each model, in the order of ``FORMATS``.
    """
    pairs = [in_format(models, inputs, name) for name in FORMATS]
    calls = [call for twins, given in pairs for model in twins for call in given.runs(model)]
    device = next((t.device for t in inputs.tensors), torch.device("cpu"))
    timings = clock(calls, device, seconds, FEWEST_ROUNDS)
    size = len(inputs.calls)
    starts = range(0, len(timings), size)
    sums = [weighted(timings[i : i + size], inputs.weights) for i in starts]
    return [tuple(sums[i :: len(models)]) for i in range(len(models))]
