"""The picture of what a smaller error costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from convfactor.conv.structure import Structure
from convfactor.factorization.factorization import Factorization
from convfactor.plots.style import BLUE, GREY, VERMILION, styled
from convfactor.scalars import check_fraction

FLOOR = 1e-17  # where an error of exactly 0 is drawn, on the logarithmic axis
STEPS = range(1, 25)  # of labels above and below their points, each 8 typographic points

Point: TypeAlias = tuple[float, float]  # cost and error


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
        tolerance: Relative error to draw a line at, above 0 and below 1.
        original: Cost of the original kernel to draw a line at: multiplies per output pixel, or
            seconds where ``times`` are given.
        times: Seconds of each; None for multiplies per output pixel.
        title: Of the figure.

    Raises:
        TypeError: ``factorizations`` is something else, such as a single one.
        ValueError: There is none, the times do not match, or an argument is out of range.
    """
    _check(factorizations, chosen, tolerance, times)
    unit = 1.0 if times is None else 1e3
    costs = [f.macs for f in factorizations] if times is None else [unit * t for t in times]
    points = [(cost, max(f.error, FLOOR)) for cost, f in zip(costs, factorizations, strict=True)]
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.set_yscale("log")
    axis.grid(True, axis="y")
    axis.set_axisbelow(True)
    _draw_points(axis, points, chosen)
    if tolerance is not None:
        axis.axhline(tolerance, color=VERMILION, linestyle="--", label=f"tolerance {tolerance:g}")
    if original is not None:
        axis.axvline(unit * original, color="black", linestyle=":", label="original kernel")
    errors = {error for _, error in points}
    if len(errors) == 1 and tolerance in (None, *errors):
        (error,) = errors  # one height alone has no scale
        axis.set_ylim(error / 2, error * 2)
    axis.margins(0.12)
    axis.set_xlabel("multiplies per output pixel" if times is None else "time (ms)")
    axis.set_ylabel("relative error")
    figure.legend(loc="outside lower center", ncols=3)
    if title is not None:
        axis.set_title(title)
    _write_labels(figure, points, [_label(f.structure) for f in factorizations])
    return figure


def _check(
    factorizations: Sequence[Factorization],
    chosen: int | None,
    tolerance: float | None,
    times: Sequence[float] | None,
) -> None:
    """Refuse what can't be drawn."""
    if not isinstance(factorizations, Sequence):
        raise TypeError(
            "factorizations must be a sequence of convfactor.Factorization, got "
            f"{type(factorizations).__name__}; put one into a list, as in [f]"
        )
    if strange := [type(f).__name__ for f in factorizations if not isinstance(f, Factorization)]:
        raise TypeError(
            f"factorizations must hold convfactor.Factorization only, got {strange[0]}; "
            "convfactor.factorize returns them"
        )
    if not factorizations:
        raise ValueError(
            "factorizations must hold at least one, got none; convfactor.factorize returns them"
        )
    if times is not None and len(times) != len(factorizations):
        raise ValueError(
            f"times must be one per factorization, got {len(times)} for {len(factorizations)}"
        )
    if chosen is not None and chosen not in range(len(factorizations)):
        raise ValueError(
            f"chosen must be an index into the {len(factorizations)} factorizations, got {chosen}"
        )
    if tolerance is not None:
        check_fraction("tolerance", tolerance)


def _draw_points(axis: Axes, points: Sequence[Point], chosen: int | None) -> None:
    """The points on the frontier, joined, those beside it, and a mark on the chosen one."""
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


def _frontier(points: Sequence[Point]) -> list[Point]:
    """The points, by rising cost, whose error nothing cheaper matches."""
    best: list[Point] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _write_labels(figure: Figure, points: Sequence[Point], labels: Sequence[str]) -> None:
    """Label the points towards the middle, higher or lower where a label or a point is near."""
    figure.draw_without_rendering()  # pixels are known once the layout is
    (axis,) = figure.axes
    low, high = axis.bbox.y0, axis.bbox.y1
    dot = figure.dpi / 72
    pixels = axis.transData.transform(points)
    taken = [Bbox.from_bounds(x - 4 * dot, y - 4 * dot, 8 * dot, 8 * dot) for x, y in pixels]
    for (x, _), point, label in zip(pixels, points, labels, strict=True):
        sign = 1 if 2 * x < axis.bbox.x0 + axis.bbox.x1 else -1
        text = axis.annotate(
            label, point, (9 * sign, 0), textcoords="offset points", fontsize=8,
            ha="left" if sign > 0 else "right", va="center", in_layout=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
        rises = [8 * sign * (-step if down else step) for step in STEPS for down in (0, 1)]
        boxes = {rise: _raised(text.get_window_extent(), rise * dot) for rise in rises}
        within = [rise for rise, box in boxes.items() if low <= box.y0 and box.y1 <= high]
        free = (rise for rise in within if not boxes[rise].count_overlaps(taken))
        rise = next(free, rises[0])
        text.xyann = (9 * sign, rise)
        taken.append(boxes[rise])
        if abs(rise) > 8:
            axis.annotate(
                "", point, (9 * sign, rise), textcoords="offset points", in_layout=False,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4},
            )  # fmt: skip


def _raised(box: Bbox, by: float) -> Bbox:
    """A box moved up by some pixels."""
    return Bbox.from_extents(box.x0, box.y0 + by, box.x1, box.y1 + by)


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
