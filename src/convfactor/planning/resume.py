"""Go on where an interrupted run stopped."""

from __future__ import annotations

import os
from pathlib import Path

from convfactor.model.sites import Subject
from convfactor.plans.decisions import Decision
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE


def decided(checkpoint: Path | None, plan: Plan) -> dict[Subject, Decision]:
    """The decisions of an interrupted run that asked the same of the same data.

    Args:
        checkpoint: Folder that an interrupted run may have left; None for none.
        plan: The plan to go on with, without entries.

    Raises:
        ValueError: The folder holds the plan of another run, which must not be lost.
    """
    if checkpoint is None or not os.path.exists(checkpoint / PLAN_FILE):
        return {}
    earlier = Plan.load(checkpoint)
    others = {
        "settings": earlier.settings != plan.settings,
        "calibration data": earlier.calibration != plan.calibration,
        "machine": earlier.environment != plan.environment,
    }
    changed = [name for name, differs in others.items() if differs]
    if changed:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} holds the decisions of a run with other "
            f"{' and '.join(changed)}; give another folder, or remove this one"
        )
    # What was never priced had an obstacle, such as not being selected, that is gone now.
    return {e.subject: e.decision for e in earlier.entries if e.decision.cost is not None}
