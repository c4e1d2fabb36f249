"""Which structures are tried for a layer, and in which order."""

from __future__ import annotations

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
from convfactor.plans.settings import Settings


def tried(kernel: ConvGeometry, settings: Settings, form: Form) -> list[Family]:
    """What to try, in turn; a later one has to be clearly faster than the best before it."""
    cascades = families(kernel)
    if form.transposed is not None and max(kernel.kernel_size) > 3:
        cascades.append(whole(kernel))
    if settings.structures == "cascade":
        return cascades
    pair = [*separable_pair(kernel), *one_row(kernel)]
    # For single channels the pair is solved at once, and few cascades are faster.
    if kernel.is_depthwise:
        return [*pair, *cascades]
    return sorted([*cascades, *pair, *low_rank(kernel)], key=lambda family: len(family.apart))
