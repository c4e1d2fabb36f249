"""What a layer can save, and at which error: some structures solved, the others interpolated."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer
from convfactor.model.reasons import Reason
from convfactor.planning.bench import Candidate, Trial
from convfactor.planning.calibration import SiteData
from convfactor.planning.layers import Layer
from convfactor.planning.pricing import Price
from convfactor.planning.pupil import Refined
from convfactor.plans.decisions import Kept, Replaced, Tried
from convfactor.progress import Told

# From one solved structure of a family to the next, the multiplies fall by this factor at least.
STEP = 2.5
# A layer this far off spoils any model: nothing narrower is solved.
USELESS = 0.25
# Of those that are not solved, few are priced: their multiplies grow by this factor at least.
APART = 1.25
# Processor time for the first look at one family.
LOOK_SECONDS = 15.0
# Errors with which the effect of a layer on the model is measured.
EXAMPLES = (0.02, 0.1)


@dataclass(frozen=True, eq=False)
class Look:
    """Structures of one family to be solved in turn: all that another process needs to know."""

    factorizer: Factorizer
    structures: tuple[Structure, ...]


def look(task: Look) -> list[Factorization]:
    """Solve structures, widest first, with drafts, until they are of no use or time is up.

    Args:
        task: What to solve.
    """
    budget = Budget(LOOK_SECONDS)
    solved: list[Factorization] = []
    with one_thread():
        for structure in task.structures:
            if solved and (budget.used_up() or solved[-1].error > USELESS):
                break
            own = replace(task.factorizer, budget=budget.part(budget.left / 2))
            solved.append(own.solve(structure, "draft"))
    return solved


class Memory(Protocol):
    """Remembers what was solved."""

    def recall(self, task: Look) -> list[Factorization] | None:
        """The answers to a task, or None."""

    def keep(self, task: Look, answers: Sequence[Factorization]) -> None:
        """Remember the answers to a task."""


def look_at(
    layers: Sequence[Frontier],
    executor: Executor | None,
    memory: Memory,
    told: Iterator[Told],
    end: float,
) -> None:
    """Take a first look at layers, in other processes where there are some.

    The answers are the same wherever they are found, since each uses one thread.

    Args:
        layers: What to look at.
        executor: Where to solve; None does so here.
        memory: Remembers answers.
        told: For each layer, what to tell of its solves.
        end: Time of ``time.monotonic`` from which on nothing more is solved.
    """
    tasks = [[(task, memory.recall(task)) for task in layer.tasks()] for layer in layers]
    open_tasks = [task for own in tasks for task, known in own if known is None]
    with one_thread():
        remote = None if executor is None else executor.map(look, open_tasks)
        for layer, own, report in zip(layers, tasks, told, strict=True):
            for task, known in own:
                if known is None:
                    if time.monotonic() > end:
                        continue
                    heard = replace(task, factorizer=replace(task.factorizer, report=report))
                    known = look(heard) if remote is None else next(remote)
                    memory.keep(task, known)
                layer.add(known)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: with several, sums differ in their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Point:
    """What one candidate costs, and how far off it is, measured or interpolated."""

    candidate: Candidate
    price: Price
    error: float


@dataclass(eq=False)
class Frontier:
    """The candidates of one layer.

    Attributes:
        layer: The layer, its candidates priced.
        data: What the calibration knows; None for white noise.
    """

    layer: Layer
    data: SiteData | None
    _trials: dict[Candidate, Trial] = field(default_factory=dict)
    _full: set[Candidate] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Leave out what can't be solved."""
        layer, data = self.layer, self.data
        self._factorizer = layer.factorizer(data)
        self._bench = layer.bench(self._factorizer, data)
        self._ladders = [
            rungs
            for ladder in layer.ladders
            if (rungs := [one for one in ladder if self._factorizer.fits(one.taps)])
        ]
        self._candidates = {one.taps: one for rungs in self._ladders for one in rungs}

    def tasks(self) -> list[Look]:
        """What to solve for a first look."""
        return [
            Look(self._factorizer, tuple(one.taps for one in _spread(rungs)))
            for rungs in self._ladders
        ]

    def add(self, solved: Sequence[Factorization]) -> None:
        """Measure what was solved on held-out data."""
        for factorization in solved:
            candidate = self._candidates[factorization.structure]
            self._trials[candidate] = self._bench.measured(candidate, factorization)

    def solve(self, candidate: Candidate, seconds: float) -> Trial:
        """The best answer for a candidate, solved once with full effort."""
        if candidate not in self._full:
            self._full.add(candidate)
            known = self._trials.get(candidate)
            starts = [] if known is None else [known.cascade]
            own = replace(self._factorizer, budget=Budget(seconds))
            found = self._bench.measured(candidate, own.solve(candidate.taps, "full", starts))
            if known is None or found.error <= known.error:
                self._trials[candidate] = found
        return self._trials[candidate]

    def retouched(self, trial: Trial, refined: Refined) -> Trial:
        """Measure a solution after its weights and bias were trained."""
        weights = [stage.weight for stage in refined.cascade.stages]
        cascade = Cascade.of(trial.candidate.taps, weights)
        changed = self._factorizer.retouched(cascade, refined.bias_shift)
        return self._bench.measured(trial.candidate, changed)

    @property
    def cost(self) -> float:
        """What the original costs, in seconds or multiplies of one run; 0 if unknown."""
        before = next((self.layer.price_of(c).cost.before for c in self._candidates.values()), None)
        if before is not None:
            return before.median
        site = self.layer.site
        if self.layer.settings.objective == "latency":
            return 0.0
        pixels = sum(
            calls
            * math.prod(shape.size[:-3])
            * math.prod(site.geometry.output_size(*shape.size[-2:]))
            for shape, calls in site.subject.shapes
        )
        return float(site.geometry.macs * pixels)

    def saved(self, point: Point) -> float:
        """What a candidate saves of it."""
        return self.cost * (1 - point.price.relative)

    def points(self) -> list[Point]:
        """Candidates that nothing cheaper is as exact as, from the cheapest to the most exact."""
        found = [point for rungs in self._ladders for point in self._interpolated(rungs)]
        kept: list[Point] = []
        for point in sorted(found, key=lambda p: (p.price.relative, p.error)):
            worth = point.price.relative <= self.layer.bar
            if worth and (not kept or point.error < kept[-1].error):
                kept.append(point)
        return kept

    def confirms(self, point: Point) -> bool:
        """Whether a careful price is that of a point: of many, the lowest may be luck."""
        return self.layer.careful_price_of(point.candidate) == point.price

    def examples(self) -> list[Trial]:
        """Solutions to measure the effect of an error with, a small and a large one."""
        solved = [t for t in self._trials.values() if 0 < t.error < math.inf]
        return list(
            dict.fromkeys(
                min(solved, key=lambda trial: abs(math.log(trial.error / wanted)))
                for wanted in EXAMPLES
                if solved
            )
        )

    def replaced(self, trial: Trial) -> Replaced:
        """The decision for a solution."""
        return self.layer.replaced(trial, self.layer.price_of(trial.candidate))

    def kept(self) -> Kept:
        """The decision for none: what would have been saved first."""
        if self._candidates and not self._trials:
            text = "time: not looked at before time_limit was over; allow more time"
            return Kept(Reason("time", "not looked at in the time allowed", text))
        points = self.points()
        if not points:
            return self.layer.missed(self._factorizer, list(self._trials.values()))
        point = points[-1]
        saved = 1 / point.price.relative
        text = (
            f"budget: {point.candidate.taps} would make it {saved:.2f}x as fast, with an error of "
            f"{point.error:.2%}, which takes more of the budget than it has, or than that is worth"
        )
        tried = Tried(point.candidate.pixels, point.price.cost, point.error)
        return Kept(Reason("budget", "budget", text), tried)

    def _interpolated(self, rungs: Sequence[Candidate]) -> list[Point]:
        """Errors along a family, as a power of the multiplies between the solved rungs."""
        known = [i for i, one in enumerate(rungs) if one in self._trials]
        points: list[Point] = []
        for i, one in enumerate(rungs):
            near = points and one.macs < APART * points[-1].candidate.macs
            if near and one not in self._trials:
                continue
            below = max((k for k in known if k <= i), default=None)
            above = min((k for k in known if k >= i), default=None)
            if below is None or above is None:
                continue
            error = self._between(rungs, below, above, i)
            if error < USELESS:
                points.append(Point(one, self.layer.price_of(one), error))
        return points

    def _between(self, rungs: Sequence[Candidate], below: int, above: int, i: int) -> float:
        """The error of a rung between two solved ones."""
        low, high = (self._trials[rungs[k]].error for k in (below, above))
        if below == above or not 0 < high < low < math.inf:
            return low
        first, last, here = (math.log(rungs[k].macs) for k in (below, above, i))
        share = (here - first) / (last - first)
        return math.exp((1 - share) * math.log(low) + share * math.log(high))


def _spread(rungs: Sequence[Candidate]) -> list[Candidate]:
    """Some of the rungs, the widest first, each clearly narrower than the one before."""
    chosen: list[Candidate] = []
    for one in reversed(rungs):
        if not chosen or one.macs * STEP <= chosen[-1].macs or one is rungs[0]:
            chosen.append(one)
    return chosen
