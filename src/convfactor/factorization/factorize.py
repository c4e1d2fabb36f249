"""Factorize one kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.moments import Moments
from convfactor.conv.structure import Structure
from convfactor.errors import ToleranceError
from convfactor.factorization.budget import Budget
from convfactor.factorization.cheapest import advice, cheapest
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.families import full
from convfactor.factorization.question import (
    Question,
    check_moments,
    check_numbers,
    check_question,
    read_kernel,
    read_weight,
    size_name,
)
from convfactor.factorization.solvers import Request, alternating
from convfactor.progress import Show, check_progress, reporting

TAPERS = (1.0, 0.5, 0.0)


def factorize(
    weight: Tensor | NDArray[Any] | Sequence[Any],
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
    progress: Show = None,
    time_limit: float = 10.0,
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
    error is that of the composed kernel after rounding to the dtype of ``weight``. A search that
    the time limit ends gives the best so far, and says so in ``timed_out`` and ``message``; one
    that it does not end is deterministic for a seed.

    Args:
        weight: (kH, kW) or (C_out, C_in/groups, kH, kW) as torch stores it. Integers, booleans and
            lists are taken as float64.
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
        progress: True draws a bar on stderr where that is a terminal, and elsewhere writes a line
            there every ten seconds; "bar" and "lines" choose one of them, False shows nothing.
            None draws a bar on a terminal, and elsewhere gives the lines to ``logging``, to
            "convfactor.progress" at level INFO.
        time_limit: Seconds of processor time of this thread that solving may take; ``math.inf`` for
            no limit.

    Returns:
        The cascade, in the dtype of ``weight`` and in input pixels, with its error, its cost, and
        whether it meets the tolerance.

    Raises:
        TypeError: ``weight`` holds no real numbers, or an argument is of another type.
        ValueError: An argument is out of range, they do not fit together, or what they ask for
            takes too much memory or time.
        ToleranceError: ``strict``, and nothing cheaper than the original meets the tolerance.

    Example:
        >>> import torch
        >>> from convfactor import factorize
        >>> f = factorize(torch.outer(torch.hann_window(9)[1:8], torch.hann_window(9)[1:8]), 1e-6)
        >>> [tuple(kernel.shape) for kernel in f.kernels], f.error < 1e-6
        ([(1, 1, 3, 3), (1, 1, 3, 3), (1, 1, 3, 3)], True)
    """
    check_numbers(ridge, seed, time_limit)
    check_progress(progress)
    array = read_weight(weight)
    kernel = read_kernel(array, groups, stride, dilation)
    question = Question(tolerance, stages, widths, structure, solver)
    check_question(question, kernel)
    check_moments(moments, kernel)
    with reporting(progress) as display:
        task = display.add_task("solving", total=100, detail="")

        def report(structure: Structure, share: float, error: float) -> None:
            detail = f"{structure}: error {error:.2%}"
            display.update(task, completed=round(100 * share), detail=detail)

        budget = Budget(float(time_limit))
        factorizer = Factorizer(
            array, kernel, moments, preserve_dc, ridge, int(seed), report, budget
        )
        result = _answer(factorizer, question)
        display.update(task, completed=100)
    if strict and result.met is False:
        raise ToleranceError(result.message)
    return replace(result, cascade=result.cascade.dilated(kernel.dilation))


def _answer(factorizer: Factorizer, question: Question) -> Factorization:
    """Answer a question, and say what is to be said of the answer."""
    tolerance, budget = question.tolerance, factorizer.budget
    result = _solve(factorizer, question)
    if budget.cut_short:
        result = replace(
            result,
            timed_out=True,
            message=f"the time limit of {budget.seconds:g} s cut the search short: with a larger "
            "time_limit the answer may be better",
        )
    if tolerance is None or result.met is False:
        return result
    result = replace(result, met=result.error <= tolerance)
    if result.met or result.timed_out:
        return result
    if question.is_open:
        return replace(result, message=advice(factorizer, tolerance, result))
    text = f"what was asked for has a relative error of {result.error:.3g}, above {tolerance:g}"
    return replace(result, message=text)


def _solve(factorizer: Factorizer, question: Question) -> Factorization:
    """Answer one of the four questions."""
    kernel, stages, widths = factorizer.kernel, question.stages, question.widths
    if question.structure is not None:
        return _asked(factorizer, question.structure)
    if max(kernel.kernel_size) <= 3 and stages is None and widths is None:
        return factorizer.unchanged()
    if question.solver == "alternating":
        return _alternating(factorizer, stages, widths)
    if widths is not None:
        return _with_widths(factorizer, tuple(map(int, widths)))
    if stages is not None:
        return _with_stages(factorizer, int(stages))
    assert question.tolerance is not None
    return cheapest(factorizer, question.tolerance)


def _asked(factorizer: Factorizer, structure: Structure) -> Factorization:
    """Solve for the structure that the arguments name, if that can be done."""
    _refuse_large(factorizer, structure)
    return factorizer.solve(structure)


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
    family = next(full(kernel, count))
    structure = family.structure(family.widths(1) if widths is None else widths)
    _refuse_large(factorizer, structure, alternating.STARTS)
    problem = factorizer.problem(structure)
    request = Request(problem, structure, seed=factorizer.seed, budget=factorizer.budget)
    return factorizer.measure(alternating.solve(request).cascade, problem)


def _with_stages(factorizer: Factorizer, stages: int) -> Factorization:
    """The best cascade with a number of stages within the original's multiplies."""
    kernel = factorizer.kernel
    starts: dict[Structure, list[Cascade]] = {}
    cheaper: list[Structure] = []
    for family, taper in itertools.product(full(kernel, stages), TAPERS):
        ladder = family.ladder(kernel.macs, taper=taper)
        rungs = [s for s in ladder if factorizer.fits(s)]
        cheaper += ladder[:1]
        if rungs and rungs[-1] not in starts:
            starts[rungs[-1]] = []
            if kernel.is_depthwise and len(rungs) > 1:
                chain = factorizer.attempt(rungs[0])
                if chain.exact:
                    return chain  # more chains in parallel would only cost more
                starts[rungs[-1]] = [chain.cascade]
    if not starts:
        for structure in cheaper:
            _refuse_large(factorizer, structure)
        raise ValueError(
            f"stages={stages} costs more multiplies than the {size_name(kernel)} kernel even with "
            "one hidden channel per group; use fewer stages"
        )
    if len(starts) == 1:
        ((structure, given),) = starts.items()
        return factorizer.solve(structure, "full", given)
    best: Factorization | None = None
    for structure, given in starts.items():
        if best is not None and factorizer.budget.used_up():
            return best
        draft = factorizer.attempt(structure, "draft", given)
        best = draft if best is None or draft.error < best.error else best
    assert best is not None
    return factorizer.solve(best.structure, "full", [best.cascade])


def _with_widths(factorizer: Factorizer, widths: tuple[int, ...]) -> Factorization:
    """The best cascade with given hidden widths."""
    kernel = factorizer.kernel
    structures = [f.structure(widths) for f in full(kernel, len(widths) + 1)]
    cheaper = [s for s in structures if s.macs <= kernel.macs]
    if not cheaper:
        least = min(s.macs for s in structures)
        raise ValueError(
            f"widths={widths} must cost no more than the {size_name(kernel)} kernel's "
            f"{kernel.macs} multiplies per output pixel, but cost {least}; use narrower ones"
        )
    usable = [s for s in cheaper if factorizer.fits(s)]
    if len(usable) <= 1:
        return _asked(factorizer, (usable or cheaper)[0])
    found = [factorizer.attempt(usable[0])]
    for structure in usable[1:]:
        if not factorizer.budget.used_up():
            found.append(factorizer.attempt(structure))
    return min(found, key=lambda f: f.error)


def _refuse_large(factorizer: Factorizer, structure: Structure, starts: int = 1) -> None:
    """Refuse a structure that the arguments name where it can't be solved."""
    reason = factorizer.too_large(structure, starts)
    if reason:
        raise ValueError(
            f"weight is too large for what is asked: a {size_name(factorizer.kernel)} kernel with "
            f"{len(structure.stages)} stages {reason}; ask for fewer stages or narrower ones, "
            "or raise time_limit"
        )
