"""What may take a kernel's place, and which widths of it are worth their price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

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

WIDTH_MULTIPLE = 8  # hardware works in blocks


def candidates(
    kernel: ConvGeometry, structures: Literal["auto", "cascade"], form: Form
) -> list[Family]:
    """What to try, in turn; a later one has to be clearly faster than the best before it."""
    cascades = families(kernel)
    if form.transposed is not None and max(kernel.kernel_size) > 3:
        cascades.append(whole(kernel))
    if structures == "cascade":
        return cascades
    pair = [*separable_pair(kernel), *one_row(kernel)]
    # For single channels the pair is solved at once, and few cascades are faster.
    if kernel.is_depthwise:
        return [*pair, *cascades]
    return sorted([*cascades, *pair, *low_rank(kernel)], key=lambda family: len(family.apart))


def affordable(
    rungs: Sequence[Candidate], limit: float, price: Callable[[Candidate], Price]
) -> list[Candidate]:
    """The rungs up to the widest whose price is within a limit.

    Where the price would reach the limit, if it grew with the multiplies, is tried next. One
    chain per channel is often too slow already.

    Args:
        rungs: Of one family, the cheapest first.
        limit: Largest relative cost.
        price: Says what one costs.
    """
    low, high = 0, len(rungs)
    rung = 0 if rungs and rungs[0].is_chain else high - 1
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
