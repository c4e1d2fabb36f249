"""The picture of what a smaller error costs."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from convfactor.cascade import Structure
from convfactor.factorizer import Factorization
from convfactor.plots.style import BLUE, GREY, VERMILION, styled

FLOOR = 1e-17  # where an error of exactly 0 is drawn, on the logarithmic axis


@styled
def plot_frontier(
    factorizations: Sequence[Factorization],
    *,
    chosen: int | None = None,
    tolerance: float | None = None,
    original: float | None = None,
    times: Sequence[float] | None = None,
    title: str | None = None,
) -> Figure:
    """Show the error of several factorizations of one kernel against what they cost.

    Those for which no other is both cheaper and more exact are joined by a line.

    Args:
        factorizations: At least one; each is labelled with its number of stages, or with the
            channels between them where these are mixed.
        chosen: Index of the one to mark.
        tolerance: Relative error to draw a line at, > 0.
        original: Cost of the original kernel to draw a line at: multiplies per output pixel, or
            seconds where ``times`` are given.
        times: Seconds of each; None for multiplies per output pixel.
        title: Of the figure.

    Raises:
        ValueError: There is none, the times do not match, or an argument is out of range.
    """
    if not factorizations:
        raise ValueError("factorizations must hold at least one, got none")
    if times is not None and len(times) != len(factorizations):
        raise ValueError(
            f"times must be one per factorization, got {len(times)} for {len(factorizations)}"
        )
    if chosen is not None and not 0 <= chosen < len(factorizations):
        raise ValueError(
            f"chosen must be an index into the {len(factorizations)} factorizations, got {chosen}"
        )
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
    unit = 1.0 if times is None else 1e3
    costs = [f.macs for f in factorizations] if times is None else [unit * t for t in times]
    points = [(cost, max(f.error, FLOOR)) for cost, f in zip(costs, factorizations, strict=True)]
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.set_yscale("log")
    axis.grid(True, axis="y")
    axis.set_axisbelow(True)
    best = _frontier(points)
    axis.plot(*zip(*best, strict=True), "o-", color=BLUE, label="best for cost")
    if others := [point for point in points if point not in best]:
        axis.plot(
            *zip(*others, strict=True), "s", color=GREY, markerfacecolor="white", label="others"
        )
    if chosen is not None:
        axis.plot(
            *points[chosen], "D", markersize=13, markerfacecolor="none",
            markeredgecolor=VERMILION, markeredgewidth=1.8, label="chosen",
        )  # fmt: skip
    if tolerance is not None:
        axis.axhline(tolerance, color=VERMILION, linestyle="--", label=f"tolerance {tolerance:g}")
    if original is not None:
        axis.axvline(unit * original, color="black", linestyle=":", label="original kernel")
    for factorization, point in zip(factorizations, points, strict=True):
        axis.annotate(
            _label(factorization.structure), point, (7, 5), textcoords="offset points", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
    axis.margins(0.12)
    axis.set_xlabel("multiplies per output pixel" if times is None else "time (ms)")
    axis.set_ylabel("relative error")
    axis.legend()
    if title is not None:
        axis.set_title(title)
    return figure


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, by rising cost, whose error nothing cheaper matches."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _label(structure: Structure) -> str:
    """What tells a structure apart: its stages, and the widths between them unless it is a chain.

    For instance ``9 stages``, ``width 24``, ``widths 8, 12`` or ``6 stages of width 5``.
    """
    widths = structure.widths
    if not widths:
        return str(structure)
    if structure.is_chain:
        return f"{len(widths) + 1} stages"
    if len(widths) > 3 and len(set(widths)) == 1:
        return f"{len(widths) + 1} stages of width {widths[0]}"
    return f"width{'s' if len(widths) > 1 else ''} {', '.join(map(str, widths))}"
