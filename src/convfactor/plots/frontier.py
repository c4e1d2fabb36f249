"""The picture of what a smaller error costs."""

from __future__ import annotations

import re
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
POINT, CHOSEN = 8, 13  # typographic points that a point takes, and the mark on the chosen one
FAR = 10  # typographic points from which a line leads from a point to its label
PLACES = [(6, 7), (-6, -7), (8, 0), (-8, 0), (6, -7), (-6, 7)]  # of labels beside their points
PLACES += [(9 * side, up * 8 * step) for step in range(2, 25) for up in (1, -1) for side in (1, -1)]

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
            channels between them where these are mixed, and by figures alone where the words are
            those of the one before.
        chosen: Index of the one to mark.
        tolerance: Relative error to draw a line at, above 0 and below 1.
        original: Cost of the original kernel to draw a line at: multiplies per output pixel, or
            seconds where ``times`` are given.
        times: Seconds of each; None for multiplies per output pixel.
        title: Of the figure.

    Raises:
        TypeError: ``factorizations`` is something else, such as a single one.
        ValueError: There is none, the times do not match, or an argument is out of range.

    Example:
        >>> import torch
        >>> from convfactor import factorize, plots
        >>> kernel = torch.outer(torch.hann_window(9)[1:8], torch.hann_window(9)[1:8])
        >>> found = [factorize(kernel, stages=count) for count in (2, 3)]
        >>> figure = plots.plot_frontier(found, original=49)
        >>> figure.axes[0].get_ylabel()
        'relative error'
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
    _write_labels(figure, points, _short([_label(f.structure) for f in factorizations]), chosen)
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
            *points[chosen], "D", markersize=CHOSEN, markerfacecolor="none",
            markeredgecolor=VERMILION, markeredgewidth=1.8, label="chosen",
        )  # fmt: skip


def _frontier(points: Sequence[Point]) -> list[Point]:
    """The points, by rising cost, whose error nothing cheaper matches."""
    best: list[Point] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _write_labels(
    figure: Figure, points: Sequence[Point], labels: Sequence[str], chosen: int | None
) -> None:
    """Label the points where a label hides no other one, no point, and if possible no line.

    Right above and left below a point the frontier, which falls, is never near; the further away
    a label has to go, the later that is tried, and a thin line leads back.
    """
    figure.draw_without_rendering()  # pixels are known once the layout is
    (axis,) = figure.axes
    room, dot = axis.bbox, figure.dpi / 72
    pixels = axis.transData.transform(points)
    sizes = [dot * (CHOSEN if i == chosen else POINT) for i in range(len(points))]
    taken = [
        Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
        for (x, y), size in zip(pixels, sizes, strict=True)
    ]
    lines = [line.get_transform().transform_path(line.get_path()) for line in axis.lines]
    for point, label in zip(points, labels, strict=True):
        text = axis.annotate(
            label, point, (0, 0), textcoords="offset points", fontsize=8, va="center",
            in_layout=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip
        best = None
        for across, up in PLACES:
            text.set_horizontalalignment("left" if across > 0 else "right")
            text.xyann = (across, up)
            box = text.get_window_extent()
            inside = room.x0 <= box.x0 and box.x1 <= room.x1
            inside = inside and room.y0 <= box.y0 and box.y1 <= room.y1
            hidden = box.count_overlaps(taken)
            crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
            fault = (not inside, hidden, crossed if abs(up) < FAR else 0)
            if best is None or fault < best[0]:
                best = fault, (across, up), box
            if not any(fault):
                break
        assert best is not None
        _, (across, up), box = best
        text.set_horizontalalignment("left" if across > 0 else "right")
        text.xyann = (across, up)
        taken.append(box)
        if abs(up) >= FAR:
            axis.annotate(
                "", point, (across, up), textcoords="offset points", in_layout=False,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4},
            )  # fmt: skip


def _short(labels: Sequence[str]) -> list[str]:
    """Labels without the words that the one before has as well: ``2 stages``, ``3``, ``4``."""
    short, last = [], ""
    for label in labels:
        found = re.fullmatch(r"(?P<count>\d+) stages|widths? (?P<widths>.+)", label)
        kind = "" if found is None else str(found.lastgroup)
        short.append(found[kind] if found is not None and kind == last else label)
        last = kind
    return short


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
