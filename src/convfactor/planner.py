"""Decide for every large kernel of a model: which cascade, or none, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn

from convfactor import calibration, rewrite, transforms
from convfactor.calibration import SiteData, Split
from convfactor.cascade import Cascade, Structure
from convfactor.factorization import Factorization, Factorizer, Report, families
from convfactor.geometry import ConvGeometry, Pair
from convfactor.layers import CascadeConv2d
from convfactor.plans import PLAN_FILE, Entry, Environment, Plan, Replacement, Settings
from convfactor.pricing import Multiplies, Price, Pricing, Stopwatch, convolution
from convfactor.search import Ladder
from convfactor.sites import ModelInputs, Select, Site, find
from convfactor.solvers import Effort
from convfactor.structures import Family, separable_pair
from convfactor.transforms import TransformSite
from convfactor.verification import ErrorMeter, OutputErrors, reads_padding

WIDTH_MULTIPLE = 8
LARGEST_PATCH = 8192
CLEARLY_FASTER = 0.9
# A wider structure has a smaller error; it is taken for this share of the original's time.
NEARLY_FREE = 0.02
# White noise added to the sampled patches, which lowers the error on unseen ones: by 15 % for a
# 5x5 64->32 layer of SRCNN, by 2 % for 9x9 layers of a style network.
SHRINKAGE = 1e-3


def make_plan(
    model: nn.Module,
    inputs: ModelInputs,
    batches: Split | None,
    settings: Settings,
    select: Select | None,
    progress: Progress,
    checkpoint: Path | None,
) -> Plan:
    """Plan a model that is in evaluation mode.

    Sites are priced first, since latency does not depend on the weights; only those for which
    some structure is cheap enough are calibrated and solved.

    Args:
        model: The model; it is left as it was.
        inputs: Example inputs.
        batches: Calibration data, or None for white noise.
        settings: What was asked for.
        select: Keeps a site out where it returns False for (name, module).
        progress: Display for the progress.
        checkpoint: Folder that takes the plan after every layer, and from which the decisions of
            an interrupted run with the same data and settings are taken over.

    Raises:
        ValueError: A layer's weights hold Inf or NaN.
    """
    sites = find(model, inputs, settings.min_kernel_size, select)
    _check_weights(sites)
    device = next((site.weight.device for site in sites), torch.device("cpu"))
    plan = Plan(
        (),
        settings,
        Environment.current(device),
        "white noise" if batches is None else str(batches),
    )
    earlier = _earlier(checkpoint, plan)
    decided = {site: e for site in sites if (e := _recall(earlier, site)) is not None}

    cases: dict[Site, _Case] = {}
    known: dict[object, Price] = {}
    for site, _ in _steps(progress, "timing", sites):
        if site.obstacle is None and site.kind == "functional":
            assert site.geometry is not None
            site.obstacle = rewrite.obstacle(model, site.owners[0], site.weight_name, site.geometry)
        if site.obstacle is None and batches is not None:
            site.obstacle = _too_large(site)
        if site.obstacle is None and site not in decided:
            cases[site] = _Case.price(site, settings, known)
    worth = {site: case for site, case in cases.items() if case.ladders}
    data: dict[Site, SiteData] = {}
    if batches is not None and worth:
        task = progress.add_task("calibrating", total=len(batches.fit), detail="")
        data = calibration.collect(
            model,
            list(worth),
            [case.margin for case in worth.values()],
            batches,
            settings.seed,
            lambda done: progress.update(task, completed=done),
        )
    for site, report in _steps(progress, "solving", sites):
        if site in decided:
            entry, replacement = decided[site]
        elif site.obstacle is not None:
            entry, replacement = _entry(site, "kept", site.obstacle), None
        else:
            entry, replacement = cases[site].decide(data.pop(site, None), settings, report)
        plan = plan.extended(entry, replacement)
        if checkpoint is not None:
            plan.save(checkpoint)
    for transform in transforms.find(model, inputs, select):
        plan = plan.extended(_decide_transform(transform, settings, device), None)
    return plan


@dataclass(eq=False)
class _Case:
    """A site with the structures that are cheap enough for it."""

    site: Site
    kernel: ConvGeometry
    pricing: Pricing
    ladders: list[list[Structure]] = field(default_factory=list)
    cheapest: tuple[Structure, Price] | None = None

    @classmethod
    def price(cls, site: Site, settings: Settings, known: dict[object, Price]) -> _Case:
        """Price the structures of a site."""
        geometry = site.geometry
        assert geometry is not None
        pricing: Pricing = Multiplies(geometry)
        multiple = 1
        if settings.objective == "latency":
            pricing = Stopwatch(geometry, site.shapes, site.weight.dtype, site.weight.device, known)
            multiple = WIDTH_MULTIPLE
        case = cls(site, geometry, pricing)
        for family in _families(geometry, settings):
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
            return _entry(site, "kept", self._too_slow(), self.cheapest), None
        moments = None if data is None else data.moments
        if moments is not None and not bool(moments.covariance.any()):
            return _entry(site, "kept", "its input does not vary in the calibration data"), None
        factorizer = Factorizer(
            site.weight.detach(),
            self.kernel,
            moments,
            ridge=SHRINKAGE,
            seed=settings.seed,
            report=report,
        )
        judge = _Judge(factorizer, site, [] if data is None else data.held_out)
        found: list[tuple[Ladder[_Trial], Structure]] = []
        fastest = math.inf
        missed: list[_Trial] = []
        for affordable in self.ladders:
            limit = min(bar, fastest * CLEARLY_FASTER)
            rungs = self._affordable([s for s in affordable if factorizer.fits(s)], limit)
            ladder = Ladder(rungs, judge.solve, settings.tolerance)
            trial = ladder.cheapest()
            if trial is not None:
                pixels = trial.cascade.structure.dilated(self.kernel.dilation)
                found.append((ladder, pixels))
                fastest = min(fastest, self.pricing.quick(pixels).relative)
            elif ladder.nearest is not None:
                missed.append(ladder.nearest)
        if not found:
            if not missed:
                return _entry(site, "kept", self._too_slow(), self.cheapest), None
            nearest = min(missed, key=lambda trial: trial.error)
            reason = (
                f"tolerance: {nearest.cascade.structure}, the closest of those fast enough, has an "
                f"error of {nearest.error:.2%}"
            )
            pixels = nearest.cascade.structure.dilated(self.kernel.dilation)
            entry = _entry(site, "kept", reason, (pixels, self.pricing.quick(pixels)))
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
            reason = f"{structure} meets the tolerance, but {_faster(price)}, timed carefully"
            return _entry(site, "kept", reason, (structure, price)), None
        return self._replaced(trial, price)

    def _replaced(self, trial: _Trial, price: Price) -> tuple[Entry, Replacement]:
        """Write down a replacement."""
        factorization = trial.factorization
        cascade = factorization.cascade.dilated(self.kernel.dilation)
        entry = replace(
            _entry(self.site, "replaced", _faster(price), (cascade.structure, price)),
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
        if self.cheapest is None:
            return "no cascade has fewer multiplies"
        structure, price = self.cheapest
        return f"no structure is faster: the fastest tried, {structure}, {_faster(price)}"


@dataclass(frozen=True, eq=False)
class _Trial:
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


class _Judge:
    """Solves structures for one site and measures them on its held-out inputs."""

    def __init__(
        self, factorizer: Factorizer, site: Site, held_out: Sequence[Sequence[Tensor]]
    ) -> None:
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

    def solve(self, structure: Structure, effort: Effort, starts: Sequence[Cascade]) -> _Trial:
        """Solve, round to the layer's dtype, and measure on full outputs."""
        factorization = self._factorizer.solve(structure, effort, starts)
        if not self._pairs:
            return _Trial(factorization, None)
        cascade = factorization.cascade.dilated(self._geometry.dilation)
        layer = CascadeConv2d.from_weight(
            self._site.weight,
            self._site.bias,
            Replacement(cascade, factorization.bias_shift),
            self._geometry,
        )
        meter = ErrorMeter()
        with torch.no_grad():
            for x, true in self._pairs:
                border = reads_padding(self._geometry, (x.shape[-2], x.shape[-1]))
                meter.add(true, layer(x), border.to(x.device))
        return _Trial(factorization, meter.errors())


def _families(kernel: ConvGeometry, settings: Settings) -> list[Family]:
    """What to try, in turn; a later one has to be clearly faster than the best before it."""
    cascades = families(kernel)
    if settings.structures == "cascade":
        return cascades
    pair = list(separable_pair(kernel))
    # For single channels the pair is solved at once, and few cascades are faster.
    return [*pair, *cascades] if kernel.is_depthwise else [*cascades, *pair]


def _faster(price: Price) -> str:
    """Put a price into words."""
    ratio = 1 / price.relative if price.relative > 0 else math.inf
    if price.after is None:
        return f"{ratio:.2f}x fewer multiplies" if ratio > 1 else f"{1 / ratio:.2f}x the multiplies"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


def _too_large(site: Site) -> str | None:
    """Why the covariance of a site's patches can't be held."""
    assert site.geometry is not None
    size = math.prod(site.geometry.weight_shape[1:])
    if size <= LARGEST_PATCH:
        return None
    return f"its patches hold {size} values, more than the {LARGEST_PATCH} that can be calibrated"


def _entry(
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
        fingerprint=rewrite.fingerprint(weight),
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


def _decide_transform(site: TransformSite, settings: Settings, device: torch.device) -> Entry:
    """Take the faster equal of a transform where it is the same and faster."""
    dtype = next((str(b.dtype).removeprefix("torch.") for b in site.module.buffers()), "")
    entry = Entry(
        name=site.names[0],
        kind="transform",
        owners=site.names,
        weight_name="",
        dtype=dtype,
        kernel_size=(),
        geometry=None,
        shapes=(),
        decision="kept",
        reason=site.obstacle or "",
        fingerprint=transforms.fingerprint(site.module),
    )
    if site.obstacle is not None:
        return entry
    if settings.objective == "macs":
        return replace(entry, reason="a transform is judged by its time, and nothing was timed")
    try:
        fast = transforms.replacement(site.module)
    except (ValueError, ImportError) as error:
        return replace(entry, reason=f"no faster equal: {error}")
    found = transforms.measure(site, fast, device)
    ratio = found.before.median / found.after.median
    faster = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    timed = replace(entry, error=found.error, before=found.before, after=found.after)
    if found.error > settings.tolerance:
        return replace(timed, reason=f"its equal has an error of {found.error:.2%}", missed=True)
    if ratio < settings.min_speedup:
        return replace(timed, reason=f"convfactor's own is {faster}")
    reason = f"{faster}, by convfactor.wavelets"
    return replace(timed, decision="replaced", reason=reason)


def _check_weights(sites: Sequence[Site]) -> None:
    """Refuse a model whose weights are not numbers."""
    for site in sites:
        if site.obstacle is None and not bool(site.weight.isfinite().all()):
            raise ValueError(
                f"model must have finite weights, got Inf or NaN in {site.weight_name}; "
                "leave the layer out with select, or load sound weights"
            )


def _earlier(checkpoint: Path | None, plan: Plan) -> Plan | None:
    """The plan of an interrupted run that asked the same of the same data."""
    if checkpoint is None or not os.path.exists(checkpoint / PLAN_FILE):
        return None
    earlier = Plan.load(checkpoint)
    same = (
        earlier.settings == plan.settings
        and earlier.environment == plan.environment
        and earlier.metric == plan.metric
    )
    return earlier if same else None


def _recall(earlier: Plan | None, site: Site) -> tuple[Entry, Replacement | None] | None:
    """The decision of an interrupted run on a site."""
    if earlier is None or site.obstacle is not None:
        return None
    wanted = (
        site.owners,
        site.geometry,
        tuple(site.shapes.items()),
        site.weight_name,
        rewrite.fingerprint(site.weight),
    )
    for i, entry in enumerate(earlier.entries):
        mine = (entry.owners, entry.geometry, entry.shapes, entry.weight_name, entry.fingerprint)
        # What was never priced had an obstacle, such as not being selected, that is gone now.
        if mine == wanted and entry.macs_before is not None:
            return entry, earlier.replacements.get(i)
    return None


def _steps(
    progress: Progress, description: str, sites: Sequence[Site]
) -> Iterator[tuple[Site, Report]]:
    """Go through the sites, naming each, and what is solved for it, on the display."""
    task = progress.add_task(description, total=len(sites), detail="")
    for site in sites:

        def report(structure: Structure, share: float, error: float, name: str = site.name) -> None:
            detail = f"{name}: {structure}, {share:.0%} done, error {error:.2%}"
            progress.update(task, detail=detail)

        progress.update(task, detail=site.name)
        yield site, report
        progress.advance(task)
    progress.update(task, detail="")
