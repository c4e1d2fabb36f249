"""The picture of a plan, layer by layer."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from convfactor.latency import Timing
from convfactor.plans.decisions import Decision, Kept
from convfactor.plans.plan import Plan
from convfactor.plots.style import BLUE, styled

DARK = "#5A5A5A"
TRIED = "tried, not taken"
BARS: dict[str, dict[str, Any]] = {
    "before": {"facecolor": "#C8C8C8", "edgecolor": DARK, "hatch": "////"},
    "after": {"facecolor": BLUE, "edgecolor": BLUE},
    TRIED: {"facecolor": "white", "edgecolor": BLUE, "linestyle": "--"},
}


@styled
def plot_plan(plan: Plan) -> Figure:
    """Show every layer of a plan before and after, with its error, or why it was kept.

    Bars are milliseconds with whiskers from the lower to the upper quartile; multiplies per output
    pixel where the plan was made without a clock. For a layer that was kept, an empty bar shows
    the candidate that was not taken.

    Args:
        plan: What ``convfactor.plan`` or ``convfactor.optimize`` returned; it may be empty.

    Raises:
        TypeError: ``plan`` is something else.

    Example:
        >>> import torch
        >>> import convfactor
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7))
        >>> _ = torch.nn.init.ones_(model[0].weight)
        >>> image = torch.rand(1, 1, 16, 16)
        >>> plan = convfactor.plan(model, image, objective="macs", progress=False)
        >>> convfactor.plots.plot_plan(plan).axes[0].get_xlabel()
        'multiplies per output pixel'
    """
    if not isinstance(plan, Plan):
        raise TypeError(
            f"plan must be a convfactor.Plan, got {type(plan).__name__}; "
            "convfactor.plan returns one, convfactor.optimize the pair (model, plan)"
        )
    count = len(plan.entries)
    if not count:
        figure = Figure(figsize=(6.0, 1.2), layout="constrained")
        figure.text(0.5, 0.5, str(plan), ha="center", va="center", wrap=True)
        return figure
    figure = Figure(figsize=(9.0, 0.55 * count + 1.4), layout="constrained")
    axis = figure.subplots()
    counted = plan.settings.objective == "macs"
    kinds = ["before", "after"]
    for row, entry in enumerate(plan.entries):
        cost, kind = entry.decision.cost, "after" if entry.replaced else TRIED
        if cost is not None:
            _draw_bar(axis, row - 0.2, cost.macs_before if counted else cost.before, "before")
            _draw_bar(axis, row + 0.2, cost.macs_after if counted else cost.after, kind)
            kinds += [kind] if kind not in kinds else []
        axis.text(
            1.01, row, _outcome(entry.decision), transform=axis.get_yaxis_transform(), va="center",
            color="black" if entry.replaced else DARK,
        )  # fmt: skip
    axis.set_yticks(range(count), [_tail(entry.name, 48) for entry in plan.entries])
    axis.set_ylim(count - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.set_axisbelow(True)
    axis.set_xlabel("multiplies per output pixel" if counted else "time (ms)")
    axis.set_title(_headline(plan), loc="left")
    legend = [Patch(label=kind, **BARS[kind]) for kind in kinds]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    return figure


def _draw_bar(axis: Axes, row: float, cost: Timing | int | None, kind: str) -> None:
    """A bar of multiplies, or of milliseconds with whiskers; none of what is unknown."""
    if cost is None:
        return
    if isinstance(cost, int):
        axis.barh(row, cost, 0.36, linewidth=0.8, **BARS[kind])
        return
    low, median, high = (1e3 * t for t in (cost.low, cost.median, cost.high))
    axis.barh(row, median, 0.36, linewidth=0.8, **BARS[kind])
    axis.errorbar(
        median, row, xerr=[[median - low], [high - median]], color="black", capsize=2, linewidth=0.9
    )


def _outcome(decision: Decision) -> str:
    """What became of a layer, short enough to stand beside its bars."""
    error = "" if decision.error is None else f"error {100 * decision.error:.3g}%"
    if isinstance(decision, Kept):
        lines = [f"kept: {decision.reason.short}", error]
    else:
        lines = [error, "" if decision.structure is None else str(decision.structure)]
    return "\n".join(filter(None, lines))


def _headline(plan: Plan) -> str:
    """How many layers were replaced, and what that did to the whole model."""
    count = len(plan.entries)
    text = f"{len(plan.replaced)} of {count} {'layer' if count == 1 else 'layers'} replaced"
    whole = plan.whole
    if whole is None or whole.before is None or whole.after is None:
        return text
    before, after = whole.before.median, whole.after.median
    return (
        f"{text}; whole model {1e3 * before:.3g} ms -> {1e3 * after:.3g} ms ({before / after:.2f}x)"
    )


def _tail(name: str, length: int) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= length else "..." + name[3 - length :]
