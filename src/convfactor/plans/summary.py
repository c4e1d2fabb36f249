"""A plan's outcome for other programs: plain values, of which JSON has all."""

from __future__ import annotations

import math
from typing import Any

from convfactor.latency import Timing
from convfactor.plans import outcome
from convfactor.plans.decisions import Decisions, Entry


def summary(plan: Decisions) -> dict[str, Any]:
    """Sum a plan up: what was asked, the whole model before and after, and every layer.

    Args:
        plan: The plan.

    Returns:
        Texts, numbers, lists and mappings; times are medians in seconds, errors relative, and
        what is unknown is None.
    """
    spending = plan.spending
    return {
        "asked": outcome.budget(plan.settings),
        "objective": plan.settings.objective,
        "calibration": str(plan.calibration),
        **plan.environment.to_dict(),
        "found": len(plan.entries),
        "replaced": len(plan.replaced),
        "loss": None if spending is None else _finite(spending.loss),
        "limit": None if spending is None else _finite(spending.limit),
        "model": _model(plan),
        "layers": [_layer(entry) for entry in plan.entries],
    }


def _model(plan: Decisions) -> dict[str, Any] | None:
    """The whole model before and after."""
    whole = plan.whole
    if whole is None:
        return None
    return {
        "errors": [_finite(error) for error in whole.errors],
        "memory_format": whole.memory_format,
        **_times(whole.before, whole.after),
    }


def _layer(entry: Entry) -> dict[str, Any]:
    """One decision."""
    decision = entry.decision
    cost, structure = decision.cost, decision.structure
    return {
        "name": entry.name,
        "kernel_size": list(entry.subject.kernel_size),
        "decision": decision.label,
        "structure": None if structure is None else str(structure),
        "widths": None if structure is None else list(structure.widths),
        "error": _finite(decision.error),
        **_times(None if cost is None else cost.before, None if cost is None else cost.after),
        "multiplies_before": None if cost is None else cost.macs_before,
        "multiplies_after": None if cost is None else cost.macs_after,
        "reason": decision.why,
    }


def _times(before: Timing | None, after: Timing | None) -> dict[str, float | None]:
    """Seconds of one and the other."""
    return {
        "before_s": None if before is None else before.median,
        "after_s": None if after is None else after.median,
        "speedup": None if before is None or after is None else before.median / after.median,
    }


def _finite(value: float | None) -> float | None:
    """A number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
