"""Decide for one large kernel: which structure, or none, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from convfactor.conv.geometry import Pair
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorizer import Factorizer, Report
from convfactor.factorization.families import Family
from convfactor.factorization.search import Ladder
from convfactor.latency import Clock, compare
from convfactor.model.reasons import Reason
from convfactor.model.sites import Site
from convfactor.planning import structures
from convfactor.planning.bench import Bench, Candidate, Trial
from convfactor.planning.calibration import SiteData
from convfactor.planning.pricing import Multiplies, Price, Pricing, Stopwatch
from convfactor.plans.decisions import Decision, Kept, Replaced, Tried
from convfactor.plans.hints import NEARLY_EXACT
from convfactor.plans.settings import Settings

PATIENCE = 4.0  # what the noise leaves undecided is timed this much longer
LARGEST_PATCH = 8192
CLEARLY_FASTER = 0.95
# A wider structure has a smaller error; it is taken for this share of the original's time.
NEARLY_FREE = 0.02
# Processor time for the solves of one layer.
LAYER_SECONDS = 120.0
# And after which no further one begins that only tells how wide would be wide enough.
ADVICE_SECONDS = 5.0
# White noise added to the sampled patches, which lowers the error on unseen ones: by 15 % for a
# 5x5 64->32 layer of SRCNN, by 2 % for 9x9 layers of a style network.
SHRINKAGE = 1e-3


@dataclass(eq=False)
class Layer:
    """A site with the structures that are cheap enough for it.

    Attributes:
        site: The convolution.
        settings: What was asked for.
        pricing: Says what a structure costs.
        ladders: Affordable candidates, family by family.
        cheapest: The cheapest that was priced.
    """

    site: Site
    settings: Settings
    pricing: Pricing
    ladders: list[list[Candidate]] = field(default_factory=list)
    cheapest: tuple[Candidate, Price] | None = None

    @classmethod
    def price(
        cls, site: Site, settings: Settings, known: dict[object, Price], clock: Clock = compare
    ) -> Layer:
        """Price the structures of a site.

        Args:
            site: The convolution.
            settings: What was asked for.
            known: Prices already measured, shared between the layers of one model.
            clock: Times calls.
        """
        geometry, form = site.geometry, site.form
        pricing: Pricing = Multiplies(geometry, form)
        if settings.objective == "latency":
            weight, shapes = site.weight, site.subject.shapes
            pricing = Stopwatch(geometry, shapes, weight.dtype, weight.device, known, clock, form)
        layer = cls(site, settings, pricing)
        general: Candidate | None = None
        for family in structures.tried(geometry, settings, form):
            if general is not None and not layer._beats(family, general):
                continue
            rungs = layer._affordable(structures.rungs(family, geometry, settings), layer.bar)
            if rungs:
                layer.ladders.append(rungs)
                general = rungs[-1] if len(family.apart) == 1 else general
        return layer

    @property
    def bar(self) -> float:
        """Relative cost from which a replacement is worth it."""
        return 1 / self.settings.min_speedup

    @property
    def margin(self) -> Pair:
        """Taps around the kernel that the moments need, where they can be afforded."""
        kernel = self.site.geometry
        factorizer = Factorizer(self.site.weight, kernel)
        margins = [factorizer.margin(rungs[0].taps) for rungs in self._calibrated]
        rows, cols = max(m[0] for m in margins), max(m[1] for m in margins)
        height, width = kernel.kernel_size
        per_group = kernel.in_channels // kernel.groups
        if per_group * (height + 2 * rows) * (width + 2 * cols) > LARGEST_PATCH:
            return 0, 0
        return rows, cols

    @property
    def _calibrated(self) -> list[list[Candidate]]:
        """The ladders of which something can be solved with calibration data, as to its memory."""
        factorizer = Factorizer(self.site.weight, self.site.geometry)
        return [
            rungs
            for rungs in self.ladders
            if any(not factorizer.too_large(one.taps, calibrated=True) for one in rungs)
        ]

    def too_large(self) -> Kept | None:
        """Why nothing can be solved with calibration data, or None.

        Asked before there is any, as the moments alone take a third of the memory of a solve.
        """
        if not self.ladders or self._calibrated:
            return None
        factorizer = Factorizer(self.site.weight, self.site.geometry)
        return self._oversized(factorizer.too_large(self.ladders[0][0].taps, calibrated=True))

    def hopeless(self, data: SiteData | None) -> Kept | None:
        """Why nothing needs to be solved, or None.

        Args:
            data: What the calibration knows; None for white noise.
        """
        if not self.ladders:
            return self.too_slow()
        if data is not None and not bool(data.moments.covariance.any()):
            return Kept(Reason.brief("constant", "its input does not vary in the calibration data"))
        return None

    def factorizer(self, data: SiteData | None) -> Factorizer:
        """What solves its structures, in the metric of the calibration data if there is any."""
        scales = self.site.scales
        return Factorizer(
            self.site.weight.detach(),
            self.site.geometry,
            None if data is None else data.moments,
            ridge=SHRINKAGE,
            seed=self.settings.seed,
            scales=scales if data is None else replace(scales, inputs=None),
        )

    def bench(self, factorizer: Factorizer, data: SiteData | None) -> Bench:
        """What measures solutions on held-out data."""
        return Bench(factorizer, self.site, [] if data is None else data.held_out)

    def decide(self, data: SiteData | None, report: Report) -> Decision:
        """Solve the structures and choose.

        Args:
            data: What the calibration knows; None for white noise.
            report: Told what is being solved.
        """
        hopeless = self.hopeless(data)
        if hopeless is not None:
            return hopeless
        factorizer = replace(self.factorizer(data), report=report, budget=Budget(LAYER_SECONDS))
        bench = self.bench(factorizer, data)
        found: list[Ladder[Candidate, Trial]] = []
        fastest = math.inf
        missed: list[Trial] = []
        for within in self.ladders:
            limit = min(self.bar, fastest * CLEARLY_FASTER)
            solvable = [one for one in within if factorizer.fits(one.taps)]
            rungs = self._affordable(solvable, limit)
            ladder = Ladder(rungs, bench.solve, self.settings.layer_tolerance, factorizer.budget)
            trial = ladder.cheapest()
            if trial is not None:
                found.append(ladder)
                fastest = min(fastest, self.price_of(trial.candidate).relative)
            elif ladder.nearest is not None:
                missed.append(ladder.nearest)
        if found:
            return self._best(found)
        return self.missed(factorizer, missed, bench)

    def _best(self, found: Sequence[Ladder[Candidate, Trial]]) -> Decision:
        """Take the cheapest of several, as wide as costs next to nothing."""
        priced = [(self.careful_price_of(ladder.best.candidate), ladder) for ladder in found]
        price, ladder = min(priced, key=lambda one: one[0].relative)
        quick = self.price_of(ladder.best.candidate).relative
        limit = min(self.bar - NEARLY_FREE, quick + NEARLY_FREE)
        wider = ladder.widen(lambda one: self.price_of(one).relative <= limit)
        trial = ladder.finished()
        return self.settled(trial, None if wider else price)

    def settled(self, trial: Trial, price: Price | None = None) -> Replaced | Kept:
        """Replace the layer where that is clearly faster, timed carefully.

        Args:
            trial: The solution.
            price: Its careful price, where it is known.
        """
        price = self.careful_price_of(trial.candidate) if price is None else price
        if not price.cost.decides(self.bar):
            price = self.careful_price_of(trial.candidate, PATIENCE)
        if price.relative <= self.bar and price.cost.decides(self.bar):
            return self.replaced(trial, price)
        tried = Tried(trial.candidate.pixels, price.cost, trial.error, trial.errors)
        if price.cost.decides(self.bar):
            text = f"{trial.candidate.taps} meets the tolerance, but {price.cost}, timed carefully"
            return Kept(Reason("speed", f"{price.cost}", text), tried)
        text = (
            f"undecided, kept: {trial.candidate.taps} is {price.cost}, which the noise of the "
            f"timings may hide or make up; plan again on a quiet machine"
        )
        return Kept(Reason("undecided", "undecided, kept", text), tried)

    def replaced(self, trial: Trial, price: Price) -> Replaced:
        """Write down a replacement."""
        factorization = trial.factorization
        return Replaced(
            cascade=factorization.cascade.dilated(self.site.geometry.dilation),
            bias_shift=factorization.bias_shift,
            memory_format=price.memory_format,
            cost=price.cost,
            error=trial.error,
            errors=trial.errors,
            weight_error=factorization.error,
            bounds=factorization.bounds,
            gains=self.site.scales.outputs,
        )

    def missed(
        self, factorizer: Factorizer, missed: Sequence[Trial], bench: Bench | None = None
    ) -> Kept:
        """Say what came closest to the tolerance, and with a bench which width would meet it."""
        if not missed:
            large = (factorizer.too_large(rungs[0].taps) for rungs in self.ladders)
            reason = next(filter(None, large), "")
            return self._oversized(reason) if reason else self.too_slow()
        nearest = min(missed, key=lambda trial: trial.error)
        cheap = "fast" if self.settings.objective == "latency" else "cheap"
        text = (
            f"tolerance: {nearest.candidate.taps}, the closest of those {cheap} enough, "
            f"has an error of {nearest.error:.2%}"
        )
        if factorizer.budget.cut_short:
            text += f" ({LAYER_SECONDS:g} s cut the search short)"
        elif bench is not None and nearest.error <= NEARLY_EXACT * self.settings.layer_tolerance:
            text += self._wide_enough(factorizer, nearest, bench)
        cost = self.price_of(nearest.candidate).cost
        tried = Tried(nearest.candidate.pixels, cost, nearest.error, nearest.errors)
        return Kept(Reason("tolerance", "tolerance", text), tried)

    def _wide_enough(self, factorizer: Factorizer, nearest: Trial, bench: Bench) -> str:
        """Say which width of the same family would meet the tolerance, and what it costs."""
        site, settings = self.site, self.settings
        wider = structures.wider(nearest.candidate, site.geometry, settings, site.form)
        solvable = [one for one in wider if factorizer.fits(one.taps)]
        budget = Budget(ADVICE_SECONDS)
        found = Ladder(solvable, bench.solve, settings.layer_tolerance, budget).cheapest()
        if found is None:
            return ""
        return f"; {found.candidate.taps} would meet it: {self.price_of(found.candidate).cost}"

    def _oversized(self, reason: str) -> Kept:
        """Say why no structure can be solved."""
        text = f"too large to be solved: {reason}"
        return Kept(Reason("size", "too large to be solved", text), self._tried)

    def too_slow(self) -> Kept:
        """Say what the fastest structure would cost."""
        if not self.site.geometry.overlaps:
            text = "its kernel is not larger than its stride, so that no cascade gains"
            return Kept(Reason("speed", "kernel not larger than its stride", text), self._tried)
        if self.cheapest is None:
            return Kept(Reason.brief("speed", "no cascade has fewer multiplies"))
        candidate, price = self.cheapest
        text = f"no structure is faster: the fastest tried, {candidate.pixels}, {price.cost}"
        return Kept(Reason("speed", "no structure is faster", text), self._tried)

    @property
    def _tried(self) -> Tried | None:
        """The cheapest structure, which was not solved."""
        if self.cheapest is None:
            return None
        candidate, price = self.cheapest
        return Tried(candidate.pixels, price.cost)

    def _affordable(self, rungs: Sequence[Candidate], limit: float) -> list[Candidate]:
        """The rungs up to the widest whose price is within a limit."""
        return structures.affordable(rungs, limit, self._noted)

    def _noted(self, candidate: Candidate) -> Price:
        """A price to search with; the lowest is kept, to be told."""
        price = self.price_of(candidate)
        if self.cheapest is None or price.relative < self.cheapest[1].relative:
            self.cheapest = candidate, price
        return price

    def _beats(self, family: Family, general: Candidate) -> bool:
        """Whether several depthwise stages are faster than one of their taps, which is as exact."""
        widths = general.taps.widths[:1] * (len(family.kernel_sizes) - 1)
        one = Candidate.of(family.structure(widths), self.site.geometry)
        return self.price_of(one).relative < self.price_of(general).relative

    def price_of(self, candidate: Candidate) -> Price:
        """A price good enough to search with."""
        return self.pricing.quick(candidate.pixels)

    def careful_price_of(self, candidate: Candidate, patience: float = 1.0) -> Price:
        """A price to decide on."""
        return self.pricing.careful(candidate.pixels, patience)
