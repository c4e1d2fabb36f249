"""A plan as one HTML page, with pictures of the kernels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.plans import hints, outcome, report, words
from convfactor.plans.decisions import Decisions, Entry, Replaced
from convfactor.plans.pictures import LEVELS, Channels, Picture, strongest
from convfactor.plans.spending import Spending

# Blue for negative and orange for positive values, which colour-blind people tell apart; zero
# takes the colour of the page, and both ends differ from it in lightness.
LIGHT = ((8, 64, 129), (107, 167, 209), (244, 244, 241), (241, 155, 84), (146, 52, 3))
DARK = ((176, 219, 255), (47, 122, 184), (38, 43, 50), (190, 98, 22), (255, 208, 150))


@dataclass(frozen=True)
class Layer:
    """One entry of a plan, ready for the page.

    Attributes:
        number: From 1, in the order of the plan.
        entry: The entry.
        row: Its cells in the text report.
        bars: Times before and after, in per cent of the longest of the page; None where untimed.
        channels: Its strongest kernels.
        bias_shift: Largest change of the bias; None where nothing is replaced by a cascade.
    """

    number: int
    entry: Entry
    row: report.Row
    bars: tuple[float, float] | None
    channels: list[Channels]
    bias_shift: float | None


@dataclass(frozen=True)
class Dot:
    """An offer on the picture of the frontier, 360 wide and 180 high."""

    x: float
    y: float
    kind: str
    label: str


@dataclass(frozen=True)
class Frontier:
    """Time of the model against how much worse it is.

    Attributes:
        limit: Height of the largest loss allowed.
        dots: From the slowest offer to the fastest.
    """

    limit: float
    dots: list[Dot]

    @classmethod
    def of(cls, spending: Spending) -> Frontier:
        """Lay the offers out; a loss of more than three times the limit is at the upper end."""
        scale = 180 / (3 * spending.limit or max((o.loss for o in spending.offers), default=1) or 1)
        dots = []
        for offer in spending.offers:
            kind = "measured" if offer.measured else "expected"
            if (offer.cost, offer.loss) == (spending.chosen.cost, spending.chosen.loss):
                kind = "chosen"
            height = min(180.0, max(0.0, scale * offer.loss))
            label = f"{offer.cost:.0%} of the time, loss {offer.loss:.3g}"
            dots.append(Dot(round(360 * offer.cost, 1), round(180 - height, 1), kind, label))
        return cls(round(180 - scale * spending.limit, 1), dots)


def to_html(plan: Decisions, originals: Mapping[int, Tensor]) -> str:
    """Fill in the page.

    Args:
        plan: What to show.
        originals: Original kernels, (C_out, C_in/groups, kH, kW), by index of the entry; may be
            empty.
    """
    import jinja2  # slow to load, and only pages need it
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convfactor.plans"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(
        re.split(r"(?<=[._/])(?=.)", name)
    )
    environment.filters["spread"] = words.spread
    environment.filters["size"] = lambda sizes: "x".join(map(str, sizes))
    template = environment.get_template("report.html")
    ramp = torch.linspace(-1, 1, 2 * LEVELS + 1)
    return template.render(
        plan=plan,
        layers=_layers(plan, originals),
        replaced=report.replaced(plan),
        subjects=report.subjects(plan),
        nothing=report.nothing(plan),
        output_error=None if plan.whole is None else outcome.output_error(plan.whole),
        budget=outcome.budget(plan.settings),
        spent=outcome.spent(plan),
        hints=hints.hints(plan),
        frontier=None if plan.spending is None else Frontier.of(plan.spending),
        isfinite=math.isfinite,
        with_originals=bool(originals),
        light=_colours(LIGHT),
        dark=_colours(DARK),
        ramp=Picture.draw("", "", ramp[None], 1.0, 8),
    )


def _layers(plan: Decisions, originals: Mapping[int, Tensor]) -> list[Layer]:
    """Prepare all entries."""
    costs = [e.decision.cost for e in plan.entries if e.decision.cost is not None]
    times = [t.median for cost in costs for t in (cost.before, cost.after) if t is not None]
    layers = []
    for i, entry in enumerate(plan.entries):
        decision, geometry = entry.decision, entry.subject.geometry
        bars, cost = None, decision.cost
        if cost is not None and cost.before is not None and cost.after is not None:
            scale = 100 / (max(times) or 1)
            bars = scale * cost.before.median, scale * cost.after.median
        channels: list[Channels] = []
        shift = None
        if isinstance(decision, Replaced) and geometry is not None:
            channels = strongest(decision.cascade, geometry, originals.get(i))
            shift = float(decision.bias_shift.abs().max())
        layers.append(Layer(i + 1, entry, report.row(entry), bars, channels, shift))
    return layers


def _colours(anchors: Sequence[tuple[int, int, int]]) -> dict[str, str]:
    """Colours of the levels, between anchors at equal distances."""
    stops = torch.tensor(anchors, dtype=torch.float64).T[None]
    size = 2 * LEVELS + 1
    ramp = F.interpolate(stops, size=size, mode="linear", align_corners=True)[0].T.round().int()
    names = [f"{'p' if n > 0 else 'n'}{abs(n)}" for n in range(-LEVELS, LEVELS + 1)]
    names[LEVELS] = "zero"
    return {
        name: "#" + bytes(colour).hex() for name, colour in zip(names, ramp.tolist(), strict=True)
    }
