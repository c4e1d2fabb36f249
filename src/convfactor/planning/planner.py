"""Plan a model: find its large kernels, price, calibrate and solve them in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from convfactor.conv.structure import Structure
from convfactor.factorization.factorizer import Report
from convfactor.latency import Clock, compare
from convfactor.model.finding import Select, find
from convfactor.model.inputs import ModelInputs
from convfactor.model.reasons import Reason
from convfactor.model.sites import Found, Site, TransformSite, TurnedAway
from convfactor.planning import calibration, transforms
from convfactor.planning.calibration import SiteData, Split
from convfactor.planning.layers import LARGEST_PATCH, Layer
from convfactor.planning.pricing import Price
from convfactor.planning.resume import decided
from convfactor.plans.circumstances import Environment, WhiteNoise
from convfactor.plans.decisions import Entry, Kept
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings

UNREACHED = Kept(Reason("uncalled", "not called", "not called with the calibration data"))


def make_plan(
    model: nn.Module,
    inputs: ModelInputs,
    batches: Split | None,
    settings: Settings,
    select: Select | None,
    progress: Progress,
    checkpoint: Path | None,
    clock: Clock = compare,
) -> Plan:
    """Plan a model that is in evaluation mode.

    Sites are priced first, since latency does not depend on the weights; only those for which
    some structure is cheap enough are calibrated and solved.

    Args:
        model: The model; it is left as it was.
        inputs: Example inputs.
        batches: Calibration data, or None for white noise.
        settings: What was asked for.
        select: Keeps a site out where it returns False for (name, module).
        progress: Display for the progress.
        checkpoint: Folder that takes the plan after every layer, and from which the decisions of
            an interrupted run with the same data and settings are taken over.
        clock: Times calls.

    Raises:
        ValueError: A layer's weights hold Inf or NaN.
    """
    found = find(model, inputs, settings.min_kernel_size, select)
    _check_weights(found)
    device = next((s.weight.device for s in found if isinstance(s, Site)), torch.device("cpu"))
    identity = WhiteNoise() if batches is None else batches.identity
    plan = Plan((), settings, Environment.current(device), identity)
    earlier = decided(checkpoint, plan)
    known = {
        one: decision
        for one in found
        if (decision := _forgone(one, batches) or earlier.get(one.subject)) is not None
    }
    layers = _priced([one for one in found if one not in known], settings, clock, progress)
    data = _calibrated(model, layers, batches, settings.seed, progress)
    for one, report in _steps(progress, "solving", found):
        if one in known:
            decision = known[one]
        elif isinstance(one, TransformSite):
            decision = transforms.decide(one, settings, device, clock)
        else:
            layer = layers[one]
            reached = batches is None or not layer.ladders or layer.site in data
            decision = layer.decide(data.pop(layer.site, None), report) if reached else UNREACHED
        plan = plan.extended(Entry(one.subject, decision))
        if checkpoint is not None:
            plan.save(checkpoint)
    return plan


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
    return {
        site: Layer.price(site, settings, known, clock)
        for site, _ in _steps(progress, "timing", found)
        if isinstance(site, Site)
    }


def _calibrated(
    model: nn.Module,
    layers: Mapping[Found, Layer],
    batches: Split | None,
    seed: int,
    progress: Progress,
) -> dict[Site, SiteData]:
    """Run the calibration data through the model for the sites that are worth it."""
    worth = [layer for layer in layers.values() if layer.ladders]
    if batches is None or not worth:
        return {}
    task = progress.add_task("calibrating", total=len(batches.fit), detail="")
    return calibration.collect(
        model,
        [layer.site for layer in worth],
        [layer.margin for layer in worth],
        batches,
        seed,
        lambda done: progress.update(task, completed=done),
    )


def _check_weights(found: Sequence[Found]) -> None:
    """Refuse a model whose weights are not numbers."""
    for site in found:
        if isinstance(site, Site) and not bool(site.weight.detach().isfinite().all()):
            raise ValueError(
                f"model must have finite weights, got Inf or NaN in {site.subject.weight_name}; "
                "leave the layer out with select, or load sound weights"
            )


def _steps(
    progress: Progress, description: str, found: Sequence[Found]
) -> Iterator[tuple[Found, Report]]:
    """Go through the sites, naming each, and what is solved for it, on the display."""
    task = progress.add_task(description, total=len(found), detail="")
    for one in found:
        name = one.subject.name

        def report(structure: Structure, share: float, error: float, name: str = name) -> None:
            detail = f"{name}: {structure}, {share:.0%} done, error {error:.2%}"
            progress.update(task, detail=detail)

        progress.update(task, detail=name)
        yield one, report
        progress.advance(task)
    progress.update(task, detail="")
