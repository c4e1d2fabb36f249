"""Plan a model: find its large kernels, price, calibrate and solve them in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from convfactor.conv.structure import Structure
from convfactor.factorization.factorizer import Report
from convfactor.model import digests, transforms
from convfactor.model.finding import Select, find
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.model.transforms import TransformSite
from convfactor.planning import calibration
from convfactor.planning.calibration import SiteData, Split
from convfactor.planning.cases import LARGEST_PATCH, Case, entry_for
from convfactor.planning.pricing import Price
from convfactor.plans.plan import PLAN_FILE, Entry, Environment, Plan, Replacement, Settings


def make_plan(
    model: nn.Module,
    inputs: ModelInputs,
    batches: Split | None,
    settings: Settings,
    select: Select | None,
    progress: Progress,
    checkpoint: Path | None,
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

    Raises:
        ValueError: A layer's weights hold Inf or NaN.
    """
    sites = find(model, inputs, settings.min_kernel_size, select)
    _check_weights(sites)
    device = next((site.weight.device for site in sites), torch.device("cpu"))
    plan = Plan(
        (),
        settings,
        Environment.current(device),
        "white noise" if batches is None else str(batches),
    )
    earlier = _earlier(checkpoint, plan)
    decided = {site: e for site in sites if (e := _recall(earlier, site)) is not None}

    cases: dict[Site, Case] = {}
    known: dict[object, Price] = {}
    for site, _ in _steps(progress, "timing", sites):
        if site.obstacle is None and batches is not None:
            site.obstacle = _too_large(site)
        if site.obstacle is None and site not in decided:
            cases[site] = Case.price(site, settings, known)
    worth = {site: case for site, case in cases.items() if case.ladders}
    data: dict[Site, SiteData] = {}
    if batches is not None and worth:
        task = progress.add_task("calibrating", total=len(batches.fit), detail="")
        data = calibration.collect(
            model,
            list(worth),
            [case.margin for case in worth.values()],
            batches,
            settings.seed,
            lambda done: progress.update(task, completed=done),
        )
    for site, report in _steps(progress, "solving", sites):
        if site in decided:
            entry, replacement = decided[site]
        elif site.obstacle is not None:
            entry, replacement = entry_for(site, "kept", site.obstacle), None
        else:
            entry, replacement = cases[site].decide(data.pop(site, None), settings, report)
        plan = plan.extended(entry, replacement)
        if checkpoint is not None:
            plan.save(checkpoint)
    for transform in transforms.find(model, inputs, select):
        plan = plan.extended(_decide_transform(transform, settings, device), None)
    return plan


def _too_large(site: Site) -> str | None:
    """Why the covariance of a site's patches can't be held."""
    assert site.geometry is not None
    size = math.prod(site.geometry.weight_shape[1:])
    if size <= LARGEST_PATCH:
        return None
    return f"its patches hold {size} values, more than the {LARGEST_PATCH} that can be calibrated"


def _decide_transform(site: TransformSite, settings: Settings, device: torch.device) -> Entry:
    """Take the faster equal of a transform where it is the same and faster."""
    dtype = next((str(b.dtype).removeprefix("torch.") for b in site.module.buffers()), "")
    entry = Entry(
        name=site.names[0],
        kind="transform",
        owners=site.names,
        weight_name="",
        dtype=dtype,
        kernel_size=(),
        geometry=None,
        shapes=(),
        decision="kept",
        reason=site.obstacle or "",
        fingerprint=transforms.fingerprint(site.module),
    )
    if site.obstacle is not None:
        return entry
    if settings.objective == "macs":
        return replace(entry, reason="a transform is judged by its time, and nothing was timed")
    try:
        fast = transforms.replacement(site.module)
        found = transforms.measure(site, fast, device)
    except (ValueError, TypeError, ImportError) as error:
        return replace(entry, reason=f"no faster equal: {error}")
    ratio = found.before.median / found.after.median
    faster = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    timed = replace(entry, error=found.error, before=found.before, after=found.after)
    if found.error > settings.tolerance:
        return replace(timed, reason=f"its equal has an error of {found.error:.2%}", missed=True)
    if ratio < settings.min_speedup:
        return replace(timed, reason=f"convfactor's own is {faster}")
    reason = f"{faster}, by convfactor.wavelets"
    return replace(timed, decision="replaced", reason=reason)


def _check_weights(sites: Sequence[Site]) -> None:
    """Refuse a model whose weights are not numbers."""
    for site in sites:
        if site.obstacle is None and not bool(site.weight.detach().isfinite().all()):
            raise ValueError(
                f"model must have finite weights, got Inf or NaN in {site.weight_name}; "
                "leave the layer out with select, or load sound weights"
            )


def _earlier(checkpoint: Path | None, plan: Plan) -> Plan | None:
    """The plan of an interrupted run that asked the same of the same data.

    Raises:
        ValueError: The folder holds the plan of another run, which must not be lost.
    """
    if checkpoint is None or not os.path.exists(checkpoint / PLAN_FILE):
        return None
    earlier = Plan.load(checkpoint)
    others = {
        "settings": earlier.settings != plan.settings,
        "calibration data": earlier.metric != plan.metric,
        "machine": earlier.environment != plan.environment,
    }
    changed = [name for name, differs in others.items() if differs]
    if changed:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} holds the decisions of a run with other "
            f"{' and '.join(changed)}; give another folder, or remove this one"
        )
    return earlier


def _recall(earlier: Plan | None, site: Site) -> tuple[Entry, Replacement | None] | None:
    """The decision of an interrupted run on a site."""
    if earlier is None or site.obstacle is not None:
        return None
    wanted = (
        site.owners,
        site.geometry,
        tuple(site.shapes.items()),
        site.weight_name,
        digests.fingerprint(site.weight),
    )
    for i, entry in enumerate(earlier.entries):
        mine = (entry.owners, entry.geometry, entry.shapes, entry.weight_name, entry.fingerprint)
        # What was never priced had an obstacle, such as not being selected, that is gone now.
        if mine == wanted and entry.macs_before is not None:
            return entry, earlier.replacements.get(i)
    return None


def _steps(
    progress: Progress, description: str, sites: Sequence[Site]
) -> Iterator[tuple[Site, Report]]:
    """Go through the sites, naming each, and what is solved for it, on the display."""
    task = progress.add_task(description, total=len(sites), detail="")
    for site in sites:

        def report(structure: Structure, share: float, error: float, name: str = site.name) -> None:
            detail = f"{name}: {structure}, {share:.0%} done, error {error:.2%}"
            progress.update(task, detail=detail)

        progress.update(task, detail=site.name)
        yield site, report
        progress.advance(task)
    progress.update(task, detail="")
