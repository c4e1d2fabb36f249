"""What a notebook shows of a plan: short, and on a page of any colour."""

from __future__ import annotations

from dataclasses import dataclass

from convfactor.pictures.colours import BELOW, hexadecimal
from convfactor.pictures.markup import filled
from convfactor.plans import hints, outcome, report
from convfactor.plans.decisions import Decisions, Entry


@dataclass(frozen=True)
class Line:
    """One entry of a plan.

    Attributes:
        entry: The entry.
        row: Its cells in the text report.
        ratio: How much faster it is, or how many fewer multiplies it has; empty where unknown.
    """

    entry: Entry
    row: report.Row
    ratio: str

    @classmethod
    def of(cls, entry: Entry) -> Line:
        """Read an entry."""
        cost = entry.decision.cost
        ratio = "" if cost is None or not cost.relative else f"{1 / cost.relative:.2f}x"
        return cls(entry, report.row(entry), ratio)


def to_html(plan: Decisions) -> str:
    """Make a piece of a page that holds its own styles: the table and the totals."""
    counted = plan.settings.objective == "macs"
    measured = "of the output" if plan.calibrated else "of the weights, white noise"
    return filled(
        "convfactor.plans",
        "plan.html",
        {},
        headline=report.replaced(plan) if plan.entries else report.nothing(plan),
        budget=f"{outcome.budget(plan.settings)}; errors {measured}" if plan.entries else "",
        layers=[Line.of(entry) for entry in plan.entries],
        column="fewer multiplies" if counted else "faster",
        colour=hexadecimal(BELOW),
        totals=[*outcome.totals(plan), *hints.hints(plan)],
    )
