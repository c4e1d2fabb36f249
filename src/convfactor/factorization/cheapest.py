"""Find the cheapest cascade that meets a tolerance, or say why there is none."""

from __future__ import annotations

from dataclasses import replace

from convfactor.conv.structure import Structure
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.families import families, full
from convfactor.factorization.question import size_name
from convfactor.factorization.search import DRAFT_SLACK, Ladder

# Of the time limit, for finding out what would have met the tolerance.
SHARE_OF_ADVICE = 0.2
# Times the tolerance; a draft that misses it by as much is not worth a full solve.
OUT_OF_REACH = 2.0


def cheapest(factorizer: Factorizer, tolerance: float) -> Factorization:
    """The cascade of fewest multiplies that meets the tolerance, or the best cheaper one."""
    macs, budget = factorizer.kernel.macs, factorizer.budget
    best: Ladder[Structure, Factorization] | None = None
    missed: list[tuple[Factorization, Ladder[Structure, Factorization]]] = []
    for family in families(factorizer.kernel):
        rungs = [s for s in family.ladder(macs) if factorizer.fits(s)]
        if not rungs:
            continue
        if (best is not None or missed) and budget.used_up():
            break
        ladder = Ladder(rungs, factorizer.attempt, tolerance, budget)
        found = ladder.cheapest()
        nearest = ladder.nearest
        if found is not None:
            best, macs = ladder, found.macs - 1
        elif nearest is not None:
            if nearest.exact and best is None:
                return nearest
            missed.append((nearest, ladder))
    if best is not None:
        return best.finished()
    if not missed:
        return replace(factorizer.unchanged(), met=False, message=_hopeless(factorizer))
    least = min((nearest for nearest, _ in missed), key=lambda f: f.error)
    if least.error > OUT_OF_REACH * tolerance:
        return least
    # A full solve seldom takes more off a draft's error than that.
    within = DRAFT_SLACK * least.error
    contenders = (ladder.widest() for nearest, ladder in missed if nearest.error <= within)
    return min((f for f in contenders if f is not None), key=lambda f: f.error)


def _hopeless(factorizer: Factorizer) -> str:
    """Say why there is nothing to solve."""
    kernel = factorizer.kernel
    name = f"the {size_name(kernel)} kernel ({kernel.macs} multiplies)"
    if not kernel.overlaps:
        return (
            f"no cascade gains on {name} with a stride of {'x'.join(map(str, kernel.stride))}: it "
            "is not larger than its stride, so its outputs read nothing in common"
        )
    rungs = next(full(kernel)).ladder(kernel.macs)
    if not rungs:
        return f"no cascade is cheaper than {name}"
    reason = factorizer.too_large(rungs[0]) or "reaches beyond the moments"
    return f"no cascade for {name} can be solved: the cheapest {reason}"


def advice(factorizer: Factorizer, tolerance: float, best: Factorization) -> str:
    """Say what would meet the tolerance if multiplies did not matter."""
    kernel = factorizer.kernel
    text = (
        f"no cascade cheaper than the {size_name(kernel)} kernel ({kernel.macs} multiplies) has a "
        f"relative error of {tolerance:g} or less; the best one has {best.error:.3g}"
    )
    if best.exact:
        dtype = str(factorizer.weight.dtype).removeprefix("torch.")
        return f"{text}, all of it rounding to {dtype}: give the weight in a wider dtype"
    family = next(full(kernel))
    rungs = [s for s in family.ladder(4 * kernel.macs, multiple=4) if s.macs > kernel.macs]
    rungs = [s for s in rungs if factorizer.fits(s)]
    budget = factorizer.budget.part(SHARE_OF_ADVICE * factorizer.budget.seconds)
    ladder = Ladder(rungs, replace(factorizer, budget=budget).attempt, tolerance, budget)
    found = ladder.cheapest()
    if found is None and budget.cut_short:
        return text
    if found is None:
        return f"{text}, and widths costing 4 times as much do not reach it either"
    words = "would be enough" if budget.cut_short else "would be needed"
    return f"{text}; widths {found.structure.widths} ({found.macs} multiplies) {words}"
