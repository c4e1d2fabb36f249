"""What a model has to offer before any decision: sites found, priced and calibrated."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from convfactor.latency import Clock
from convfactor.model.digests import model_digest
from convfactor.model.finding import find
from convfactor.model.inputs import Workload
from convfactor.model.reasons import Reason
from convfactor.model.selection import Patterns, Predicate
from convfactor.model.sites import Found, Site, TransformSite, TurnedAway
from convfactor.planning import calibration
from convfactor.planning.batches import Split
from convfactor.planning.calibration import SiteData
from convfactor.planning.layers import LARGEST_PATCH, Layer
from convfactor.planning.pricing import Price
from convfactor.planning.resume import resumed
from convfactor.plans.circumstances import Calibration, Call, Environment, WhiteNoise
from convfactor.plans.decisions import Decision, Kept
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings
from convfactor.plans.words import counted
from convfactor.progress import step, steps

logger = logging.getLogger(__name__)

UNREACHED = Kept(
    Reason("uncalled", "not called", "not called with calibration data to fit on and to verify on")
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The sites of a model.

    Attributes:
        found: All that was found, in the order of the calls.
        plan: The plan to extend, without entries.
        known: Decisions that need no further work.
        layers: The other convolutions, priced.
        data: What the calibration knows of those that are worth it.
        device: Where the model is.
    """

    found: Sequence[Found]
    plan: Plan
    known: Mapping[Found, Decision]
    layers: Mapping[Found, Layer]
    data: dict[Site, SiteData]
    device: torch.device

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Workload,
        batches: Split | None,
        settings: Settings,
        select: Patterns | Predicate | None,
        progress: Progress,
        checkpoint: Path | None,
        clock: Clock,
    ) -> Prepared:
        """Look at a model; see ``make_plan`` for the arguments and errors."""
        identity: Calibration = WhiteNoise()
        if batches is not None:
            identity = replace(batches.identity, model=model_digest(model))
        with step(progress, "finding layers"):
            found = find(model, inputs, settings.min_kernel_size, select)
        _check_weights(found)
        device = next((s.weight.device for s in found if isinstance(s, Site)), torch.device("cpu"))
        environment = Environment.current(device, settings.objective == "latency")
        if environment.busy:
            threads = counted(environment.threads, "thread")
            logger.warning(
                "the machine is busy, with a load of %.1f for %s: times will be off, plan when it "
                "is quiet", environment.load, threads,
            )  # fmt: skip
        plan, earlier = resumed(
            checkpoint, Plan((), settings, environment, identity, calls=_calls(inputs))
        )
        known: dict[Found, Decision] = {
            one: decision
            for one in found
            if (decision := _forgone(one, batches) or earlier.get(one.subject)) is not None
        }
        unknown = [one for one in found if one not in known]
        layers = _priced(unknown, settings, clock, progress)
        data: dict[Site, SiteData] = {}
        if batches is not None:
            large = {layer.site: layer.too_large() for layer in layers.values()}
            known.update((site, kept) for site, kept in large.items() if kept is not None)
            worth = [one for one in layers.values() if one.ladders and large[one.site] is None]
            data = _calibrated(model, worth, batches, settings.seed, progress)
            known.update((one.site, UNREACHED) for one in worth if one.site not in data)
            plan = replace(plan, calibration=_measured(plan.calibration, data))
        return cls(found, plan, known, layers, data, device)


def _calls(inputs: Workload) -> tuple[Call, ...]:
    """Write down what the model was called with."""
    first_added = len(inputs.calls) - inputs.added
    return tuple(
        Call(tuple(tuple(t.shape) for t in call.tensors), weight, i >= first_added)
        for i, (call, weight) in enumerate(zip(inputs.calls, inputs.weights, strict=True))
    )


def _forgone(one: Found, batches: Split | None) -> Kept | None:
    """What is known to be kept before anything is tried."""
    if isinstance(one, TurnedAway):
        return Kept(one.reason)
    if batches is None or isinstance(one, TransformSite):
        return None
    size = math.prod(one.geometry.weight_shape[1:])
    if size <= LARGEST_PATCH:
        return None
    text = f"its patches hold {size} values, more than the {LARGEST_PATCH} that can be calibrated"
    return Kept(Reason("size", "too large to be calibrated", text))


def _priced(
    found: Sequence[Found], settings: Settings, clock: Clock, progress: Progress
) -> dict[Found, Layer]:
    """Price the structures of every site."""
    known: dict[object, Price] = {}
    names = [one.subject.name for one in found]
    return {
        site: Layer.price(site, settings, known, clock)
        for site, _ in zip(found, steps(progress, "timing", names), strict=True)
        if isinstance(site, Site)
    }


def _calibrated(
    model: nn.Module, layers: Sequence[Layer], batches: Split, seed: int, progress: Progress
) -> dict[Site, SiteData]:
    """Run the calibration data through the model."""
    if not layers:
        return {}
    task = progress.add_task("calibrating", total=len(batches.fit), detail="")
    return calibration.collect(
        model,
        [layer.site for layer in layers],
        [layer.margin for layer in layers],
        batches,
        seed,
        lambda done: progress.update(task, completed=done),
    )


def _measured(identity: Calibration, data: Mapping[Site, SiteData]) -> Calibration:
    """Write down where layers are measured on fewer batches than there are."""
    if isinstance(identity, WhiteNoise):
        return identity
    earlier = identity.held_out if identity.measured is None else identity.measured
    fewest = min([earlier, *(len(one.held_out) for one in data.values())])
    return replace(identity, measured=None if fewest == identity.held_out else fewest)


def _check_weights(found: Sequence[Found]) -> None:
    """Refuse a model whose weights are not numbers."""
    for site in found:
        if isinstance(site, Site) and not bool(site.weight.detach().isfinite().all()):
            raise ValueError(
                f"model must have finite weights, got Inf or NaN in {site.subject.weight_name}; "
                "leave the layer out with select, or load sound weights"
            )
