"""How large a solve is, known before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convfactor.conv.geometry import Pair
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.lifted import is_matrix
from convfactor.factorization.solvers.spectral import PART

_DOUBLE = 8
# Measured on one core: multiplies of matrices, and values that are copied and rearranged.
_MULTIPLIES_PER_SECOND = 1e10
_SECONDS_PER_VALUE = 2.5e-8
# In multiplies, for the roots of a separable term, per square of the number of stages.
_SPLIT = 4e5


@dataclass(frozen=True)
class Size:
    """Rough cost of the first look at a structure; every further step takes no more.

    Attributes:
        memory: Bytes.
        seconds: On one core.
    """

    memory: float
    seconds: float

    @classmethod
    def of(
        cls, structure: Structure, window: Pair, dense_metric: bool = False, starts: int = 1
    ) -> Size:
        """Estimate.

        Args:
            structure: What is to be solved for.
            window: Taps (vertical, horizontal) that the target and the structure lie on.
            dense_metric: Whether the metric is written out as a matrix over all taps.
            starts: Starts whose composed kernels are all held at once, after every stage.
        """
        groups, stages = structure.groups, structure.stages
        inputs, outputs = stages[0].in_channels // groups, stages[-1].out_channels // groups
        pixels = math.prod(window)
        values = 4.0 * groups * outputs * inputs * pixels
        if starts > 1:
            values *= starts * len(stages)
        work = 0.0
        if dense_metric:
            values += 3.0 * groups * (inputs * pixels) ** 2
            work += 4.0 * groups * (inputs * pixels) ** 3
        if inputs == 1 and all(stage.groups == stage.in_channels for stage in stages[1:-1]):
            own = _chains(structure, pixels)
        elif not dense_metric and is_matrix(Layout.of(structure)):
            own = _matrix(structure)
        else:
            own = _stages(structure, window, dense_metric)
        held, moved, multiplied = own
        seconds = (work + multiplied) / _MULTIPLIES_PER_SECOND
        seconds += (values + moved) * _SECONDS_PER_VALUE
        return cls((values + held) * _DOUBLE, seconds)


def _chains(structure: Structure, pixels: int) -> tuple[float, float, float]:
    """Values held at once, values moved, and multiplies of one step of all chains."""
    stages = structure.stages
    outputs = stages[-1].out_channels
    branches = max(1, stages[0].out_channels // outputs)
    taps = branches * sum(math.prod(stage.kernel_size) for stage in stages)
    steps = 1.0 * outputs * taps * pixels
    split = _SPLIT * outputs * branches * len(stages) ** 2
    return 3.0 * taps * pixels, steps, steps * taps + split


def _matrix(structure: Structure) -> tuple[float, float, float]:
    """The same for two stages that are one matrix, which is decomposed."""
    groups = structure.groups
    first, last = structure.stages
    inputs = first.in_channels // groups * math.prod(first.kernel_size)
    outputs = last.out_channels // groups * math.prod(last.kernel_size)
    values = 5.0 * groups * inputs * outputs
    return values, values, 20.0 * groups * inputs * outputs * min(inputs, outputs)


def _stages(structure: Structure, window: Pair, dense_metric: bool) -> tuple[float, float, float]:
    """The same for the lifted start and the preconditioner of stages that mix channels."""
    groups, (height, width) = structure.groups, window
    first = structure.stages[0].in_channels // groups
    last = structure.stages[-1].out_channels // groups
    frequencies = 1.0 * (2 * height - 1) * width
    kept = passing = parts = moved = work = 0.0
    spacings = structure.grid.spacings
    for index, (stage, (y, x)) in enumerate(zip(structure.stages, spacings, strict=True)):
        inputs, outputs = stage.in_channels // groups, stage.out_channels // groups
        rows, cols = stage.kernel_size
        apart = stage.groups // groups
        shares = index > 0 and stage.groups == stage.in_channels == stage.out_channels
        height -= (rows - 1) * y
        width -= (cols - 1) * x
        if apart == 1:
            lifted = 1.0 * last * height * width * inputs * rows * cols
            work += 4 * lifted * outputs
        else:
            lifted = 4.0 * outputs * first * math.prod(window)
        ends = index == len(spacings) - 1
        alike = (rows, cols) == (1, 1) and (ends or (index == 0 and not dense_metric))
        spectra = 1.0 * outputs if shares else 1.0 * inputs * outputs + outputs**2
        spectra *= 1 if alike else frequencies
        parts = max(parts, groups * frequencies * max(outputs**2, inputs * rows * cols))
        if index == 0 and not dense_metric:
            inputs = 1  # all channels of white noise are alike
        inputs = max(1, inputs // apart)
        read = inputs * rows * cols
        strengths = 1.0 * frequencies * read
        inverses = 0.0 if ends else 1.0 * read * outputs**2 / apart
        kept += 2 * spectra + strengths + inverses + apart * read**2
        passing = max(passing, 4 * (lifted + spectra) + 3 * apart * read**2)
        moved += 4 * (lifted + spectra + strengths * inputs) + 3 * inverses
        work += (4.0 * read**3 + 0.4 * read * (outputs / apart) ** 3) * apart
    held = groups * (kept + passing) + 8 * min(parts, PART)
    return held, groups * moved, groups * work
