"""Plan a model: layer by layer, or with one budget for the whole."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from pathlib import Path

from rich.progress import Progress
from torch import nn

from convfactor.latency import Clock, compare
from convfactor.model.inputs import Workload
from convfactor.model.selection import Patterns, Predicate
from convfactor.model.sites import TransformSite
from convfactor.planning import transforms
from convfactor.planning.batches import Split
from convfactor.planning.memo import Memo
from convfactor.planning.prepared import Prepared
from convfactor.planning.quality import Quality
from convfactor.planning.resume import Keeper
from convfactor.planning.spending import Spender
from convfactor.plans.decisions import Entry
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings
from convfactor.progress import steps

logger = logging.getLogger(__name__)


def make_plan(
    model: nn.Module,
    inputs: Workload,
    batches: Split | None,
    settings: Settings,
    select: Patterns | Predicate | None,
    progress: Progress,
    checkpoint: Path | None,
    clock: Clock = compare,
    quality: Quality | None = None,
    executor: Executor | None = None,
) -> Plan:
    """Plan a model that is in evaluation mode.

    Sites are priced first, since latency does not depend on the weights; only those for which
    some structure is cheap enough are calibrated and solved.

    Args:
        model: The model; it is left as it was.
        inputs: Calls that stand for its use.
        batches: Calibration data, or None for white noise.
        settings: What was asked for.
        select: Which sites may be replaced; a function says so of (name, module).
        progress: Display for the progress.
        checkpoint: Folder that takes what was found, for an interrupted run to go on with.
        clock: Times calls.
        quality: What the budget of the whole model is spent on; None where each layer has a
            tolerance.
        executor: Where to solve; None does so in this process.

    Raises:
        ValueError: A layer's weights hold Inf or NaN, or a pattern of ``select`` matches none.
    """
    prepared = Prepared.of(model, inputs, batches, settings, select, progress, checkpoint, clock)
    if quality is None:
        return _decide_each(prepared, checkpoint, clock, progress)
    memo = Memo(checkpoint)
    spender = Spender(prepared, model, inputs, batches, quality, clock, progress, memo)
    return spender.spend(executor)


def _decide_each(
    prepared: Prepared, checkpoint: Path | None, clock: Clock, progress: Progress
) -> Plan:
    """Decide for every site by itself, and keep what is decided, also when that is interrupted."""
    plan, keeper = prepared.plan, Keeper(checkpoint)
    names = [one.subject.name for one in prepared.found]
    try:
        for one, report in zip(prepared.found, steps(progress, "solving", names), strict=True):
            if one in prepared.known:
                decision = prepared.known[one]
            elif isinstance(one, TransformSite):
                decision = transforms.decide(one, plan.settings, prepared.device, clock)
            else:
                layer = prepared.layers[one]
                decision = layer.decide(prepared.data.pop(layer.site, None), report)
            plan = plan.extended(Entry(one.subject, decision))
            logger.debug("%s: %s, %s", one.subject.name, decision.label, decision.why)
            keeper.keep(plan)
    finally:
        if plan.entries:
            keeper.keep(plan, last=True)
    return plan
