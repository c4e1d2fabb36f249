"""Factorize one kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convfactor.cascade import Structure
from convfactor.errors import ToleranceError
from convfactor.factorizer import Factorization, Factorizer
from convfactor.geometry import ConvGeometry, Pair
from convfactor.moments import Moments
from convfactor.progress import reporting
from convfactor.search import Ladder
from convfactor.solvers import alternating
from convfactor.structures import Family, families, full

TAPERS = (1.0, 0.5, 0.0)


def factorize(
    weight: Tensor | NDArray[Any],
    tolerance: float | None = None,
    *,
    stages: int | None = None,
    widths: Sequence[int] | None = None,
    structure: Structure | None = None,
    moments: Moments | None = None,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    groups: int = 1,
    preserve_dc: bool = False,
    ridge: float = 0.0,
    solver: Literal["auto", "alternating"] = "auto",
    seed: int = 0,
    strict: bool = False,
    progress: bool | None = None,
) -> Factorization:
    """Factorize a convolution kernel into a cascade of 3x3 stages.

    Give ``tolerance`` for the cheapest cascade that meets it; or say what the cascade is, by one of
    three: ``stages`` for the best one with that many stages at no more multiplies than the
    original, ``widths`` for the best one with those hidden channel counts (one stage more than
    widths), or ``structure`` for stages of any size and dilation, such as the separable pair Kx1,
    1xK. A tolerance beside one of these is only checked: ``met`` of the result says whether the
    error is within it.

    Separable kernels split exactly. Single channels and depthwise kernels are solved by batched
    Levenberg-Marquardt, others by a second-order method over all stages from a lifted SVD. The
    error is that of the composed kernel after rounding to the dtype of ``weight``.

    Args:
        weight: Floating point, (kH, kW) or (C_out, C_in/groups, kH, kW) as torch stores it.
        tolerance: Largest relative error allowed, a fraction above 0 and below 1.
        stages: Number of stages.
        widths: Hidden channel counts, totals over the groups.
        structure: Stages and where they lie, in taps of the kernel.
        moments: Moments of the layer's input patches; None counts the error for white noise.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        preserve_dc: Keep the sum of every kernel exactly (a zero-sum wavelet stays admissible).
        ridge: White noise added to the input patches, relative to their mean power; it keeps the
            composed kernel near the original where the moments do not say.
        solver: "auto", or "alternating" for the original gradient descent with restarts.
        seed: Seed of the random starts.
        strict: Raise where the tolerance is not met.
        progress: Show progress on stderr; None does so on a terminal.

    Raises:
        TypeError: ``weight`` is not floating point, or an argument is of another type.
        ValueError: An argument is out of range, or they do not fit together.
        ToleranceError: ``strict``, and nothing cheaper than the original meets the tolerance.

    Example:
        >>> import torch
        >>> f = factorize(torch.outer(torch.hann_window(9)[1:8], torch.hann_window(9)[1:8]), 1e-6)
        >>> [tuple(kernel.shape) for kernel in f.kernels], f.error < 1e-6
        ([(1, 1, 3, 3), (1, 1, 3, 3), (1, 1, 3, 3)], True)
    """
    array = _read_weight(weight)
    kernel = _read_kernel(array, groups, stride, dilation)
    _check(tolerance, stages, widths, structure, moments, kernel, ridge, solver)
    with reporting(progress) as display:
        task = display.add_task("solving", total=100, detail="")

        def report(structure: Structure, share: float, error: float) -> None:
            detail = f"{structure}: error {error:.2%}"
            display.update(task, completed=round(100 * share), detail=detail)

        factorizer = Factorizer(array, kernel, moments, preserve_dc, ridge, seed, report)
        result = _solve(factorizer, tolerance, stages, widths, structure, solver)
        display.update(task, completed=100)
    if strict and result.met is False:
        raise ToleranceError(result.message)
    return replace(result, cascade=result.cascade.dilated(kernel.dilation))


def _solve(
    factorizer: Factorizer,
    tolerance: float | None,
    stages: int | None,
    widths: Sequence[int] | None,
    structure: Structure | None,
    solver: str,
) -> Factorization:
    """Answer one of the four questions."""
    kernel = factorizer.kernel
    if structure is not None:
        result = factorizer.solve(structure)
    elif max(kernel.kernel_size) <= 3 and stages is None and widths is None:
        result = factorizer.measure(_single(kernel).cascade([factorizer.weight]))
    elif solver == "alternating":
        result = _alternating(factorizer, stages, widths)
    elif widths is not None:
        result = _with_widths(factorizer, tuple(widths))
    elif stages is not None:
        result = _with_stages(factorizer, stages)
    else:
        assert tolerance is not None
        result = _cheapest(factorizer, tolerance)
    if tolerance is None:
        return result
    met = result.error <= tolerance
    return replace(result, met=met, message="" if met else _needed(factorizer, tolerance, result))


def _single(kernel: ConvGeometry) -> Structure:
    """The kernel as a cascade of itself."""
    family = Family(kernel, (kernel.kernel_size,), (kernel.stride,), ((1, 1),))
    return family.structure(())


def _cheapest(factorizer: Factorizer, tolerance: float) -> Factorization:
    """The cascade of fewest multiplies that meets the tolerance, or the best cheaper one."""
    budget = factorizer.kernel.macs
    best: Ladder[Factorization] | None = None
    ladders = []
    for family in families(factorizer.kernel):
        rungs = [s for s in family.ladder(budget) if factorizer.fits(s)]
        ladder = Ladder(rungs, factorizer.solve, tolerance)
        found = ladder.cheapest()
        if found is not None:
            best, budget = ladder, found.macs - 1
        elif ladder.nearest is not None and ladder.nearest.exact and best is None:
            return ladder.nearest
        ladders.append(ladder)
    if best is not None:
        return best.finished()
    widest = [w for w in (ladder.widest() for ladder in ladders) if w is not None]
    if not widest:
        return factorizer.measure(_single(factorizer.kernel).cascade([factorizer.weight]))
    return min(widest, key=lambda f: f.error)


def _alternating(
    factorizer: Factorizer, stages: int | None, widths: Sequence[int] | None
) -> Factorization:
    """The original method, for the structure that the arguments name."""
    kernel = factorizer.kernel
    if kernel.in_channels != kernel.groups:
        raise ValueError(
            "solver='alternating' takes kernels with one input channel per group, got "
            f"{kernel.in_channels // kernel.groups}; use solver='auto'"
        )
    count = stages if widths is None else len(widths) + 1
    family = next(iter(full(kernel, count)))
    structure = family.structure(family.widths(1) if widths is None else widths)
    problem = factorizer.problem(structure)
    restarts = alternating.solve(problem, structure, seed=factorizer.seed)
    return factorizer.measure(restarts.cascade, problem)


def _with_stages(factorizer: Factorizer, stages: int) -> Factorization:
    """The best cascade with a number of stages within the original's multiplies."""
    kernel = factorizer.kernel
    structures: dict[Structure, None] = {}
    for family, taper in itertools.product(full(kernel, stages), TAPERS):
        rungs = [s for s in family.ladder(kernel.macs, taper=taper) if factorizer.fits(s)]
        if rungs and kernel.is_depthwise:
            chain = factorizer.solve(rungs[0])
            if len(rungs) == 1 or chain.exact:
                return chain  # more chains in parallel would only cost more
        structures |= dict.fromkeys(rungs[-1:])
    if not structures:
        raise ValueError(
            f"stages={stages} costs more multiplies than the {_size(kernel)} kernel even with one "
            f"hidden channel per group; use fewer stages"
        )
    drafts = [factorizer.solve(s, "draft") for s in structures] if len(structures) > 1 else []
    best = min(drafts, key=lambda f: f.error, default=None)
    starts = () if best is None else (best.cascade,)
    return factorizer.solve(
        next(iter(structures)) if best is None else best.structure, "full", starts
    )


def _with_widths(factorizer: Factorizer, widths: tuple[int, ...]) -> Factorization:
    """The best cascade with given hidden widths."""
    kernel = factorizer.kernel
    structures = [f.structure(widths) for f in full(kernel, len(widths) + 1)]
    usable = [s for s in structures if factorizer.fits(s)]
    cheaper = [s for s in usable if s.macs <= kernel.macs]
    if not cheaper:
        least = min(s.macs for s in structures)
        raise ValueError(
            f"widths={widths} must cost no more than the {_size(kernel)} kernel's {kernel.macs} "
            f"multiplies per output pixel, but cost {least}; use narrower ones"
        )
    return min((factorizer.solve(s) for s in cheaper), key=lambda f: f.error)


def _needed(factorizer: Factorizer, tolerance: float, best: Factorization) -> str:
    """Say what would meet the tolerance if multiplies did not matter."""
    kernel = factorizer.kernel
    text = (
        f"no cascade cheaper than the {_size(kernel)} kernel ({kernel.macs} multiplies) has a "
        f"relative error of {tolerance:g} or less; the best one has {best.error:.3g}"
    )
    if best.exact:
        dtype = str(factorizer.weight.dtype).removeprefix("torch.")
        return f"{text}, all of it rounding to {dtype}: give the weight in a wider dtype"
    family = next(iter(full(kernel)))
    rungs = [s for s in family.ladder(4 * kernel.macs, multiple=4) if s.macs > kernel.macs]
    found = Ladder(rungs, factorizer.solve, tolerance).cheapest()
    if found is None:
        return f"{text}, and widths costing 4 times as much do not reach it either"
    return f"{text}; widths {found.structure.widths} ({found.macs} multiplies) would be needed"


def _check_structure(structure: Structure, kernel: ConvGeometry, solver: str) -> None:
    """Refuse a structure that can't stand in for a kernel."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"structure must be a convfactor.Structure, got {_type(structure)}; make one of "
            "stages, as in Structure((StageShape(1, 1, (5, 1)), StageShape(1, 1, (1, 5))))"
        )
    first, last = structure.stages[0], structure.stages[-1]
    wanted = (kernel.in_channels, kernel.out_channels, kernel.groups, kernel.stride)
    found = (first.in_channels, last.out_channels, structure.groups, structure.stride)
    if found != wanted:
        raise ValueError(
            "structure must have the kernel's (in_channels, out_channels, groups, stride) = "
            f"{wanted}, got {found}"
        )
    if solver != "auto":
        raise ValueError("structure is for solver='auto' only; drop one of them")


def _size(kernel: ConvGeometry) -> str:
    """Name a kernel's size."""
    return "x".join(map(str, kernel.kernel_size))


def _read_weight(weight: Tensor | NDArray[Any]) -> Tensor:
    """Bring a weight to four dimensions."""
    try:
        # torch reads no reversed views of NumPy's
        given = np.ascontiguousarray(weight) if isinstance(weight, np.ndarray) else weight
        array = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"{weight.dtype} array" if isinstance(weight, np.ndarray) else _type(weight)
        raise TypeError(
            f"weight must be a tensor or an array, got {found}; give conv.weight"
        ) from error
    if not array.is_floating_point():
        raise TypeError(
            f"weight must be floating point, got {array.dtype}; convert it, for instance to float32"
        )
    if array.dim() == 2:
        array = array[None, None]
    if array.dim() != 4 or array.numel() == 0:
        raise ValueError(
            "weight must have shape (kH, kW) or (C_out, C_in/groups, kH, kW), "
            f"got {tuple(array.shape)}"
        )
    if not array.isfinite().all():
        raise ValueError("weight must be finite, got Inf or NaN in it")
    return array


def _read_kernel(
    weight: Tensor, groups: int, stride: int | Pair, dilation: int | Pair
) -> ConvGeometry:
    """Read the integers of the kernel."""
    if not _is_count(groups) or len(weight) % groups:
        raise ValueError(
            f"groups must divide the {len(weight)} output channels, got {groups!r}; "
            "give the groups of the convolution"
        )
    return ConvGeometry.from_weight(weight, stride=stride, dilation=dilation, groups=groups)


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that is not a number above 0 and below 1.

    Raises:
        ValueError: It is not.
    """
    if not (isinstance(tolerance, Real) and not isinstance(tolerance, bool) and 0 < tolerance < 1):
        raise ValueError(
            "tolerance must be a positive number, a fraction below 1 (0.05 is 5 %), "
            f"got {tolerance!r}"
        )


def _is_count(value: object) -> bool:
    """Whether a value is an int of at least 1, Python's or NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _type(value: object) -> str:
    """Name a value's type."""
    return type(value).__name__


def _check(
    tolerance: float | None,
    stages: int | None,
    widths: Sequence[int] | None,
    structure: Structure | None,
    moments: Moments | None,
    kernel: ConvGeometry,
    ridge: float,
    solver: str,
) -> None:
    """Refuse arguments that are out of range or do not fit together."""
    if tolerance is not None:
        check_tolerance(tolerance)
    shapes = {"stages": stages, "widths": widths, "structure": structure}
    given = [name for name, value in shapes.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)}, not both: each says what the cascade is")
    if tolerance is None and not given:
        raise ValueError("give a tolerance, the number of stages, the widths, or a structure")
    if structure is not None:
        _check_structure(structure, kernel, solver)
    if stages is not None and not _is_count(stages):
        raise ValueError(f"stages must be an int of at least 1, got {stages!r}")
    if widths is not None and not (
        isinstance(widths, Sequence)
        and all(_is_count(w) and w % kernel.groups == 0 for w in widths)
    ):
        raise ValueError(
            "widths must be a sequence of ints such as (4, 8), all positive multiples of the "
            f"{kernel.groups} groups, got {widths!r}"
        )
    if not (isinstance(ridge, Real) and ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a number >= 0, got {ridge!r}")
    if solver not in ("auto", "alternating"):
        raise ValueError(f"solver must be 'auto' or 'alternating', got {solver!r}")
    if moments is not None:
        if not isinstance(moments, Moments):
            raise TypeError(
                f"moments must be a convfactor.Moments, got {_type(moments)}; measure them with "
                "Moments.from_inputs(conv, inputs)"
            )
        in_per_group = kernel.in_channels // kernel.groups
        size = in_per_group * math.prod(moments.window)
        if moments.kernel_size != kernel.kernel_size or moments.mean.shape != (kernel.groups, size):
            raise ValueError(
                f"moments must be of the layer's own patches ({kernel.groups} groups of "
                f"{in_per_group} channels, {_size(kernel)} taps), got {moments.mean.shape[0]} "
                f"groups of {moments.mean.shape[1]} values for "
                f"{moments.kernel_size[0]}x{moments.kernel_size[1]} taps"
            )
