"""Decide for one wavelet transform: its faster equal, or none, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from convfactor.latency import FEWEST_ROUNDS, Clock
from convfactor.model import transforms
from convfactor.model.agreement import output_errors
from convfactor.model.reasons import Reason
from convfactor.model.sites import TransformSite
from convfactor.plans.decisions import Backend, Cost, Decision, Kept, Swapped, Tried
from convfactor.plans.settings import Settings

SECONDS = 1.0


def decide(site: TransformSite, settings: Settings, device: torch.device, clock: Clock) -> Decision:
    """Take the faster equal of a transform where it is the same and faster.

    Args:
        site: The transform.
        settings: What was asked for.
        device: Where it runs.
        clock: Times calls.
    """
    if settings.objective == "macs":
        text = "a transform is judged by its time, and nothing was timed"
        return Kept(Reason("untimed", "nothing was timed", text))
    try:
        fast = transforms.replacement(site.module)
        error, cost = measure(site, fast, device, clock)
    except (ValueError, TypeError, ImportError) as failure:
        return Kept(Reason("unsupported", "no faster equal", f"no faster equal: {failure}"))
    tried = Tried(None, cost, error)
    if error > settings.layer_tolerance:
        text = f"its equal has an error of {error:.2%}"
        return Kept(Reason("tolerance", "tolerance", text), tried)
    if cost.relative > 1 / settings.min_speedup:
        return Kept(Reason("speed", f"{cost}", f"convfactor's own is {cost}"), tried)
    return Swapped(cost, error, backend(site, fast))


def measure(
    site: TransformSite, fast: nn.Module, device: torch.device, clock: Clock
) -> tuple[float, Cost]:
    """Compare a transform with its equal on the recorded calls, interleaved.

    Returns:
        The largest relative error of an output, and what both cost.
    """
    pairs = ((call.run(site.module), call.run(fast)) for call in site.calls)
    error = max(output_errors(pairs), default=0.0)

    def run(module: nn.Module) -> Callable[[], object]:
        return lambda: [call.run(module) for call in site.calls]

    before, after = clock([run(site.module), run(fast)], device, SECONDS, FEWEST_ROUNDS)
    return error, Cost(before, after)


def backend(site: TransformSite, fast: nn.Module) -> Backend:
    """Tell what computes the equal of a transform, by running it on the recorded calls."""
    from convfactor.wavelets import kernels  # only models that use wavelets load it

    before = kernels.levels_taken()
    for call in site.calls:
        call.run(fast)
    return "cpp" if kernels.levels_taken() > before else "torch"
