"""Spend one budget for a whole model where it saves the most time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from rich.progress import Progress
from torch import nn

from convfactor.latency import Clock
from convfactor.model.copies import copied
from convfactor.model.inputs import Workload
from convfactor.model.sites import Found, TransformSite
from convfactor.planning import transforms
from convfactor.planning.accounts import Try, account
from convfactor.planning.batches import Split
from convfactor.planning.bench import Candidate, Trial
from convfactor.planning.choices import Choice, Choices
from convfactor.planning.effects import Allowance, Effect, proportional
from convfactor.planning.frontier import Frontier, Memory, look_at
from convfactor.planning.prepared import Prepared
from convfactor.planning.quality import OutputError, Quality
from convfactor.planning.refinement import refine
from convfactor.planning.whole import time_models
from convfactor.plans.decisions import Decision, Entry, Replaced
from convfactor.plans.plan import Plan
from convfactor.progress import Told, steps

ROUNDS = 6
# Choices whose costs differ by less are not worth the time of trying both.
ALIKE = 0.01
# What takes a little more than the budget is refined again.
NEAR, TURNS = 1.15, 3
SOLVE_SECONDS = 20.0
WHOLE_SECONDS = 1.0


@dataclass(eq=False)
class Spender:
    """Finds the fastest model within a budget.

    Every layer is looked at: what it can save, and at which error. Each is then exchanged alone,
    which shows what its error does to the model; as the effects of several layers nearly add up, a
    knapsack finds the best choice for all of them. It is solved, refined and measured, and the
    allowance of the next choice follows from how far off the sum of the effects was.

    Attributes:
        prepared: The sites of the model.
        model: The model; it is left as it was.
        inputs: Calls that stand for its use.
        batches: Calibration data, or None for white noise.
        quality: What the budget is spent on.
        clock: Times calls.
        progress: Display for the progress.
        memory: Remembers what is solved.
    """

    prepared: Prepared
    model: nn.Module
    inputs: Workload
    batches: Split | None
    quality: Quality
    clock: Clock
    progress: Progress
    memory: Memory
    _frontiers: list[Frontier] = field(default_factory=list)
    _refined: dict[tuple[int, Candidate], Trial] = field(default_factory=dict)

    def spend(self, executor: Executor | None) -> Plan:
        """Find the best plan within the budget.

        Args:
            executor: Where to take the first look at the layers; None does so here.
        """
        started = time.monotonic()
        self._end = started + self.prepared.plan.settings.time_limit
        self._decided = {one: self._beforehand(one) for one in self.prepared.found}
        self._sites = [one for one, decision in self._decided.items() if decision is None]
        for site in self._sites:
            layer = self.prepared.layers[site]
            self._frontiers.append(Frontier(layer, self.prepared.data.pop(layer.site, None)))
        look_at(self._frontiers, executor, self.memory, self._steps("solving"), self._end)
        self._choices = Choices(self._frontiers, self._effects(), self._cost_of_all())
        tries = self._tries()
        holding = [one for one in tries if self.quality.part(one.loss) <= 1]
        best = max(holding, key=lambda one: self._choices.saved(one.choice), default=None)
        plan = self._plan({}) if best is None else self._settled(best)
        names = [site.subject.name for site in self._sites]
        seconds = time.monotonic() - started
        spent = account(self._choices, self.quality, names, best, tries, seconds)
        return replace(plan, spending=spent)

    def _beforehand(self, one: Found) -> Decision | None:
        """What becomes of a site whatever the budget is."""
        if one in self.prepared.known:
            return self.prepared.known[one]
        if isinstance(one, TransformSite):
            settings, device = self.prepared.plan.settings, self.prepared.device
            return transforms.decide(one, settings, device, self.clock)
        layer = self.prepared.layers[one]
        return layer.hopeless(self.prepared.data.get(layer.site))

    def _cost_of_all(self) -> float:
        """What the whole model costs in its better format, in the unit of the prices."""
        layers = sum(frontier.cost for frontier in self._frontiers)
        if self.prepared.plan.settings.objective == "macs" or not layers:
            return layers
        (timings,) = time_models([self.model], self.inputs, self.clock, WHOLE_SECONDS)
        return max(min(timing.median for timing in timings.values()), layers)

    def _effects(self) -> list[Effect]:
        """Find out what the error of each layer does to the model, exchanged alone."""
        alone, parts, squares = [], [], []
        told = self._steps("measuring")
        for (i, frontier), _ in zip(enumerate(self._frontiers), told, strict=True):
            for trial in frontier.examples():
                fast = self._plan({i: trial}).rewrite(copied(self.model))
                alone.append((i, trial.error))
                parts.append(self.quality.part(self.quality.loss(fast)))
                squares.append(self._output_error(fast) ** 2)
        shared = list(zip(alone, proportional(parts, squares), strict=True))
        return [
            Effect.of([(error, part) for (layer, error), part in shared if layer == i])
            for i in range(len(self._frontiers))
        ]

    def _output_error(self, fast: nn.Module) -> float:
        """How far the output of a rewritten model is off, on data that was not fitted."""
        if self.batches is None or isinstance(self.quality, OutputError):
            return math.inf
        seed = self.prepared.plan.settings.seed
        return OutputError(self.model, self.batches.held_out, 1.0, seed).loss(fast)

    def _tries(self) -> list[Try]:
        """Choose, solve, refine and measure until nothing better is to be expected."""
        tries: list[Try] = []
        allowance = Allowance.first(self.prepared.plan.settings.refine)
        self._task = task = self.progress.add_task("choosing", total=ROUNDS, detail="")
        for _ in range(ROUNDS):
            choice = self._untried(allowance, tries)
            if not choice or (tries and time.monotonic() > self._end):
                break
            tries.append(self._try(choice))
            part = self.quality.part(tries[-1].loss)
            allowance.learn(self._choices.expected(choice), part)
            layers = f"{len(choice)} {'layer' if len(choice) == 1 else 'layers'}"
            detail = f"{layers} save {1 - self._choices.cost(choice):.0%} for {part:.0%} of it"
            self.progress.update(task, advance=1, detail=detail)
        self.progress.update(task, completed=ROUNDS)
        return tries

    def _untried(self, allowance: Allowance, tries: Sequence[Try]) -> Choice:
        """The choice for an allowance, or for the next one that gives a choice that is new.

        It is empty where there is none.
        """
        costs = [(self._choices.cost(one.choice), one) for one in tries]
        while True:
            choice = self._choices.confirmed(allowance.value)
            cost = self._choices.cost(choice)
            same = next((one for known, one in costs if abs(cost - known) < ALIKE), None)
            if same is None or not choice:
                return choice
            if not allowance.pass_by(self.quality.part(same.loss)):
                return {}

    def _settled(self, best: Try) -> Plan:
        """Keep the layers whose gain is none, or in doubt, as far as the others hold."""
        plan = best.plan
        for i, trial in best.trials.items():
            place = self._place(i)
            subject, decision = self._sites[i].subject, self._frontiers[i].layer.settled(trial)
            entries = (*plan.entries[:place], Entry(subject, decision), *plan.entries[place + 1 :])
            changed = replace(plan, entries=entries)
            if isinstance(decision, Replaced) or self.quality.part(self._loss(changed)) <= 1:
                plan = changed
        return plan

    def _try(self, choice: Choice) -> Try:
        """Solve, refine and measure a choice."""
        trials = {}
        for i, point in choice.items():
            self._hear(f"{self._sites[i].subject.name}: {point.candidate.taps}")
            trials[i] = self._frontiers[i].solve(point.candidate, SOLVE_SECONDS)
        plan = self._plan(trials)
        tried = Try(choice, trials, plan, self._loss(plan))
        if not plan.settings.refine or self.batches is None:
            return tried
        best = tried
        for turn in range(TURNS):
            start = {i: self._refined.get((i, t.candidate), t) for i, t in trials.items()}
            trained = self._trained(start, turn)
            if trained == best.trials:
                break
            self._refined.update({(i, t.candidate): t for i, t in trained.items()})
            plan = self._plan(trained)
            now = replace(tried, trials=trained, plan=plan, refined=self._loss(plan))
            if not now.loss < best.loss:
                break
            best = now
            if not 1 < self.quality.part(now.loss) <= NEAR:
                break
        return best

    def _trained(self, trials: Mapping[int, Trial], turn: int) -> dict[int, Trial]:
        """Refine solutions of some layers together; the same where that does not help."""
        assert self.batches is not None
        settings = self.prepared.plan.settings
        better = refine(
            self.model,
            self._plan(trials),
            self.batches.fit,
            self.quality.loss,
            settings.seed + turn,
            self._end,
            settings.objective == "latency",
            self._hear,
        )
        if not better:
            return dict(trials)
        return {
            i: self._frontiers[i].retouched(trial, better[self._place(i)])
            for i, trial in trials.items()
        }

    def _plan(self, trials: Mapping[int, Trial]) -> Plan:
        """The plan that takes some solutions, and keeps the other layers."""
        plan = self.prepared.plan
        numbers = {site: i for i, site in enumerate(self._sites)}
        for one, decision in self._decided.items():
            if decision is None:
                number = numbers[one]
                frontier, trial = self._frontiers[number], trials.get(number)
                decision = frontier.kept() if trial is None else frontier.replaced(trial)
            plan = plan.extended(Entry(one.subject, decision))
        return plan

    def _place(self, i: int) -> int:
        """Index of a layer's entry in the plan."""
        return self.prepared.found.index(self._sites[i])

    def _loss(self, plan: Plan) -> float:
        """How much worse a plan makes the model."""
        return self.quality.loss(plan.rewrite(copied(self.model)))

    def _hear(self, text: str) -> None:
        """Show what is solved, and how far the refinement is."""
        self.progress.update(self._task, detail=text)

    def _steps(self, description: str) -> Iterator[Told]:
        """Go through the layers on the display."""
        return steps(self.progress, description, [one.subject.name for one in self._sites])
