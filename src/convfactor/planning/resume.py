"""Keep what a run decides, and go on where an interrupted one stopped."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from convfactor.model.sites import Subject
from convfactor.plans.circumstances import HeldOut
from convfactor.plans.decisions import Decision
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE

# A plan is written as a whole: not again before so many times what the last write took is over.
PAUSE = 10.0


class Keeper:
    """Writes a plan while it grows, in about a tenth of the time whatever its size."""

    def __init__(self, checkpoint: Path | None) -> None:
        """Start with nothing written; without a folder nothing ever is."""
        self._folder = checkpoint
        self._kept: Plan | None = None
        self._due = 0.0

    def keep(self, plan: Plan, last: bool = False) -> None:
        """Write a plan where it is time to, or where it is the last one of a run."""
        if self._folder is None or plan is self._kept:
            return
        start = time.monotonic()
        if last or start >= self._due:
            plan.save(self._folder)
            end = time.monotonic()
            self._kept, self._due = plan, end + PAUSE * (end - start)


def resumed(checkpoint: Path | None, plan: Plan) -> tuple[Plan, dict[Subject, Decision]]:
    """The decisions of an interrupted run that asked the same of the same data.

    Args:
        checkpoint: Folder that an interrupted run may have left; None for none.
        plan: The plan of this run, without entries.

    Returns:
        The plan to go on with, and the decisions.

    Raises:
        ValueError: The folder holds the plan of another run, which must not be lost.
    """
    if checkpoint is None or not os.path.exists(checkpoint / PLAN_FILE):
        return plan, {}
    earlier = Plan.load(checkpoint)
    others = {
        "settings": earlier.settings != plan.settings,
        "calibration data": earlier.calibration != plan.calibration,
        "model weights": _other_model(earlier, plan),
        "machine": earlier.environment != plan.environment,
    }
    changed = [name for name, differs in others.items() if differs]
    if changed:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} holds the decisions of a run with other "
            f"{' and '.join(changed)}; give another folder, or remove this one"
        )
    # What was never priced had an obstacle, such as not being selected, that is gone now.
    known = {e.subject: e.decision for e in earlier.entries if e.decision.cost is not None}
    return replace(plan, calibration=earlier.calibration), known


def _other_model(earlier: Plan, plan: Plan) -> bool:
    """Whether the same calibration data went through another model, so that layers read others."""
    before, now = earlier.calibration, plan.calibration
    if not (isinstance(before, HeldOut) and isinstance(now, HeldOut)):
        return False
    return before == now and before.model != now.model
