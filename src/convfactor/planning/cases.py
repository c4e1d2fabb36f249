"""Decide for one large kernel: which structure, or none, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convfactor.conv.accuracy import OutputErrors, layer_errors
from convfactor.conv.calls import convolution
from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer, Report
from convfactor.factorization.families import Family, families, separable_pair
from convfactor.factorization.search import Ladder
from convfactor.factorization.solvers import Effort
from convfactor.model import digests
from convfactor.model.sites import Site
from convfactor.planning.calibration import SiteData
from convfactor.planning.pricing import Multiplies, Price, Pricing, Stopwatch
from convfactor.plans.plan import Entry, Replacement, Settings

WIDTH_MULTIPLE = 8
LARGEST_PATCH = 8192
CLEARLY_FASTER = 0.95
# A wider structure has a smaller error; it is taken for this share of the original's time.
NEARLY_FREE = 0.02
# Processor time for the solves of one layer.
LAYER_SECONDS = 120.0
# White noise added to the sampled patches, which lowers the error on unseen ones: by 15 % for a
# 5x5 64->32 layer of SRCNN, by 2 % for 9x9 layers of a style network.
SHRINKAGE = 1e-3


@dataclass(eq=False)
class Case:
    """A site with the structures that are cheap enough for it."""

    site: Site
    kernel: ConvGeometry
    pricing: Pricing
    ladders: list[list[Structure]] = field(default_factory=list)
    cheapest: tuple[Structure, Price] | None = None

    @classmethod
    def price(cls, site: Site, settings: Settings, known: dict[object, Price]) -> Case:
        """Price the structures of a site."""
        geometry = site.geometry
        assert geometry is not None
        pricing: Pricing = Multiplies(geometry)
        multiple = 1
        if settings.objective == "latency":
            pricing = Stopwatch(geometry, site.shapes, site.weight.dtype, site.weight.device, known)
            multiple = WIDTH_MULTIPLE
        case = cls(site, geometry, pricing)
        for family in _candidates(geometry, settings):
            rungs = case._affordable(
                family.ladder(geometry.macs, multiple), 1 / settings.min_speedup
            )
            if rungs:
                case.ladders.append(rungs)
        return case

    @property
    def margin(self) -> Pair:
        """Taps around the kernel that the moments need, where they can be afforded."""
        factorizer = Factorizer(self.site.weight, self.kernel)
        margins = [factorizer.margin(rungs[0]) for rungs in self.ladders]
        rows, cols = max(m[0] for m in margins), max(m[1] for m in margins)
        height, width = self.kernel.kernel_size
        per_group = self.kernel.in_channels // self.kernel.groups
        if per_group * (height + 2 * rows) * (width + 2 * cols) > LARGEST_PATCH:
            return 0, 0
        return rows, cols

    def decide(
        self, data: SiteData | None, settings: Settings, report: Report
    ) -> tuple[Entry, Replacement | None]:
        """Solve the structures and choose."""
        site, bar = self.site, 1 / settings.min_speedup
        if not self.ladders:
            return entry_for(site, "kept", self._too_slow(), self.cheapest), None
        moments = None if data is None else data.moments
        if moments is not None and not bool(moments.covariance.any()):
            return entry_for(site, "kept", "its input does not vary in the calibration data"), None
        factorizer = Factorizer(
            site.weight.detach(),
            self.kernel,
            moments,
            ridge=SHRINKAGE,
            seed=settings.seed,
            report=report,
            budget=Budget(LAYER_SECONDS),
        )
        judge = Judge(factorizer, site, [] if data is None else data.held_out)
        found: list[tuple[Ladder[Trial], Structure]] = []
        fastest = math.inf
        missed: list[Trial] = []
        for affordable in self.ladders:
            limit = min(bar, fastest * CLEARLY_FASTER)
            rungs = self._affordable([s for s in affordable if factorizer.fits(s)], limit)
            ladder = Ladder(rungs, judge.solve, settings.tolerance, factorizer.budget)
            trial = ladder.cheapest()
            if trial is not None:
                pixels = trial.cascade.structure.dilated(self.kernel.dilation)
                found.append((ladder, pixels))
                fastest = min(fastest, self._price(trial.cascade.structure).relative)
            elif ladder.nearest is not None:
                missed.append(ladder.nearest)
        if not found:
            if not missed:
                large = (factorizer.too_large(rungs[0]) for rungs in self.ladders)
                reason = next(filter(None, large), "")
                reason = f"too large to be solved: {reason}" if reason else self._too_slow()
                return entry_for(site, "kept", reason, self.cheapest), None
            nearest = min(missed, key=lambda trial: trial.error)
            cheap = "fast" if settings.objective == "latency" else "cheap"
            reason = (
                f"tolerance: {nearest.cascade.structure}, the closest of those {cheap} enough, has "
                f"an error of {nearest.error:.2%}"
            )
            if factorizer.budget.cut_short:
                reason += f" ({LAYER_SECONDS:g} s cut the search short)"
            pixels = nearest.cascade.structure.dilated(self.kernel.dilation)
            entry = entry_for(site, "kept", reason, (pixels, self.pricing.quick(pixels)))
            return replace(entry, missed=True, error=nearest.error, errors=nearest.errors), None
        priced = [(self.pricing.careful(pixels), ladder, pixels) for ladder, pixels in found]
        price, ladder, pixels = min(priced, key=lambda one: one[0].relative)
        limit = min(bar - NEARLY_FREE, self.pricing.quick(pixels).relative + NEARLY_FREE)
        wider = ladder.widen(lambda s: self._price(s).relative <= limit)
        trial = ladder.finished()
        if wider:
            price = self.pricing.careful(trial.cascade.structure.dilated(self.kernel.dilation))
        structure = trial.cascade.structure
        if price.relative > bar:
            reason = f"{structure} meets the tolerance, but {faster(price)}, timed carefully"
            return entry_for(site, "kept", reason, (structure, price)), None
        return self._replaced(trial, price)

    def _replaced(self, trial: Trial, price: Price) -> tuple[Entry, Replacement]:
        """Write down a replacement."""
        factorization = trial.factorization
        cascade = factorization.cascade.dilated(self.kernel.dilation)
        entry = replace(
            entry_for(self.site, "replaced", faster(price), (cascade.structure, price)),
            structure=cascade.structure,
            memory_format=price.memory_format,
            error=trial.error,
            errors=trial.errors,
            weight_error=factorization.error,
            bounds=factorization.bounds,
        )
        return entry, Replacement(cascade, factorization.bias_shift)

    def _affordable(self, rungs: Sequence[Structure], limit: float) -> list[Structure]:
        """The rungs up to the widest whose price is within a limit.

        Where the price would reach the limit, if it grew with the multiplies, is tried next. One
        chain per channel is often too slow already.
        """
        low, high = 0, len(rungs)
        rung = 0 if rungs and rungs[0].is_chain else high - 1
        steps = 0
        while low < high:
            structure = rungs[rung].dilated(self.kernel.dilation)
            price = self._price(rungs[rung])
            if self.cheapest is None or price.relative < self.cheapest[1].relative:
                self.cheapest = structure, price
            if price.relative <= limit:
                low = rung + 1
            else:
                high = rung
            wanted = structure.macs * limit / price.relative
            rung = max((i for i in range(low, high) if rungs[i].macs <= wanted), default=low)
            steps += 1
            if steps > 3:
                rung = (low + high) // 2
        return list(rungs[:low])

    def _price(self, structure: Structure) -> Price:
        """A price good enough to search with; taps are on the kernel's own grid."""
        return self.pricing.quick(structure.dilated(self.kernel.dilation))

    def _too_slow(self) -> str:
        """Say what the fastest structure would cost."""
        if not self.kernel.overlaps:
            return "its kernel is not larger than its stride, so that no cascade gains"
        if self.cheapest is None:
            return "no cascade has fewer multiplies"
        structure, price = self.cheapest
        return f"no structure is faster: the fastest tried, {structure}, {faster(price)}"


@dataclass(frozen=True, eq=False)
class Trial:
    """A solved structure and its error on data that the fit did not see."""

    factorization: Factorization
    errors: OutputErrors | None

    @property
    def cascade(self) -> Cascade:
        """The cascade, its taps on the kernel's own grid."""
        return self.factorization.cascade

    @property
    def exact(self) -> bool:
        """Whether only rounding is left."""
        return self.factorization.exact

    @property
    def error(self) -> float:
        """What the tolerance bounds."""
        return self.factorization.error if self.errors is None else self.errors.pooled


class Judge:
    """Solves structures for one site and measures them on its held-out inputs."""

    def __init__(
        self, factorizer: Factorizer, site: Site, held_out: Sequence[Sequence[Tensor]]
    ) -> None:
        """Run the original on its held-out inputs, so that it is there to compare with."""
        self._factorizer = factorizer
        self._site = site
        assert site.geometry is not None
        self._geometry = site.geometry
        with torch.no_grad():
            self._pairs = [
                (x, convolution(x, site.weight, site.bias, self._geometry))
                for batch in held_out
                for x in batch
            ]

    def solve(self, structure: Structure, effort: Effort, starts: Sequence[Cascade]) -> Trial:
        """Solve, round to the layer's dtype, and measure on full outputs."""
        factorization = self._factorizer.attempt(structure, effort, starts)
        if not self._pairs:
            return Trial(factorization, None)
        cascade = factorization.cascade.dilated(self._geometry.dilation)
        layer = CascadeConv2d.from_weight(
            self._site.weight,
            self._site.bias,
            Replacement(cascade, factorization.bias_shift),
            self._geometry,
        )
        return Trial(factorization, layer_errors(layer, self._pairs, self._geometry))


def _candidates(kernel: ConvGeometry, settings: Settings) -> list[Family]:
    """What to try, in turn; a later one has to be clearly faster than the best before it."""
    cascades = families(kernel)
    if settings.structures == "cascade":
        return cascades
    pair = list(separable_pair(kernel))
    # For single channels the pair is solved at once, and few cascades are faster.
    return [*pair, *cascades] if kernel.is_depthwise else [*cascades, *pair]


def faster(price: Price) -> str:
    """Put a price into words."""
    ratio = 1 / price.relative if price.relative > 0 else math.inf
    if price.after is None:
        return f"{ratio:.2f}x fewer multiplies" if ratio > 1 else f"{1 / ratio:.2f}x the multiplies"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


def entry_for(
    site: Site,
    decision: str,
    reason: str,
    priced: tuple[Structure, Price] | None = None,
) -> Entry:
    """Write down a site."""
    structure, price = priced if priced is not None else (None, None)
    weight = site.weight
    entry = Entry(
        name=site.name,
        kind=site.kind,
        owners=site.owners,
        weight_name=site.weight_name,
        dtype=str(weight.dtype).removeprefix("torch."),
        kernel_size=tuple(weight.shape[2:]),
        geometry=site.geometry,
        shapes=tuple(site.shapes.items()),
        decision="replaced" if decision == "replaced" else "kept",
        reason=reason,
        fingerprint=digests.fingerprint(weight) if site.weight_name else "",
    )
    if price is None or structure is None:
        return entry
    return replace(
        entry,
        before=price.before,
        after=price.after,
        macs_before=site.geometry.macs if site.geometry else None,
        macs_after=structure.macs,
    )
