"""Which structures are tried for a layer, family by family, from narrow to wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convfactor.conv.forms import Form
from convfactor.conv.geometry import ConvGeometry
from convfactor.factorization.families import (
    Family,
    families,
    low_rank,
    one_row,
    separable_pair,
    whole,
)
from convfactor.planning.bench import Candidate
from convfactor.planning.pricing import Price
from convfactor.plans.settings import Settings

WIDTH_MULTIPLE = 8


def tried(kernel: ConvGeometry, settings: Settings, form: Form) -> list[Family]:
    """What to try, in turn; a later one has to be clearly faster than the best before it.

    Args:
        kernel: The plain convolution that the layer is.
        settings: What was asked for.
        form: How the layer is a plain convolution.
    """
    cascades = families(kernel)
    if form.transposed is not None and max(kernel.kernel_size) > 3:
        cascades.append(whole(kernel))
    if settings.structures == "cascade":
        return cascades
    # The best pair of a width is known at once, and bounds what the others may cost.
    pair = [*separable_pair(kernel), *one_row(kernel)]
    if kernel.is_depthwise:
        return [*pair, *cascades]
    others = sorted([*cascades, *low_rank(kernel)], key=lambda family: len(family.apart))
    return [*pair, *others]


def rungs(family: Family, kernel: ConvGeometry, settings: Settings) -> list[Candidate]:
    """Structures of a family, from narrow to wide, as far as multiplies are saved.

    Args:
        family: The family.
        kernel: The plain convolution that the layer is.
        settings: What was asked for.
    """
    multiple = WIDTH_MULTIPLE if settings.objective == "latency" else 1
    return [Candidate.of(s, kernel) for s in family.ladder(kernel.macs, multiple)]


def wider(than: Candidate, kernel: ConvGeometry, settings: Settings, form: Form) -> list[Candidate]:
    """Wider structures of the same family, whatever they cost; the arguments are those above."""
    ladders = (rungs(family, kernel, settings) for family in tried(kernel, settings, form))
    own = next((ladder for ladder in ladders if than in ladder), [than])
    return own[own.index(than) + 1 :]


def affordable(
    rungs: Sequence[Candidate],
    limit: float,
    price: Callable[[Candidate], Price],
    first: int | None = None,
) -> list[Candidate]:
    """The rungs up to the widest whose price is within a limit.

    Where the price would reach the limit, if it grew with the multiplies, is tried next. One
    chain per channel is often too slow already.

    Args:
        rungs: Of one family, the cheapest first.
        limit: Largest relative cost.
        price: Says what one costs.
        first: Which to price first; None for the widest, or the narrowest of chains.
    """
    low, high = 0, len(rungs)
    rung = 0 if rungs and rungs[0].is_chain else high - 1
    rung = rung if first is None else first
    steps = 0
    while low < high:
        candidate = rungs[rung]
        relative = price(candidate).relative
        if relative <= limit:
            low = rung + 1
        else:
            high = rung
        wanted = candidate.macs * limit / relative
        rung = max((i for i in range(low, high) if rungs[i].macs <= wanted), default=low)
        steps += 1
        if steps > 3:
            rung = (low + high) // 2
    return list(rungs[:low])
