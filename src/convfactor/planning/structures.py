"""Which structures are tried for a layer, family by family, from narrow to wide."""

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
from convfactor.planning.bench import Candidate
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
