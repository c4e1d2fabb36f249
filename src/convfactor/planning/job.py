"""One request: checked arguments, the plan for them, and the whole model before and after."""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_structure

from convfactor.errors import ToleranceError
from convfactor.latency import Clock, compare
from convfactor.model import planned, programs
from convfactor.model.copies import copied, isolated, quiet, told
from convfactor.model.finding import reaching
from convfactor.model.inputs import ModelInputs, Workload
from convfactor.model.reasons import Reason
from convfactor.model.selection import Patterns, Predicate, Select
from convfactor.model.selection import read as read_select
from convfactor.planning.arguments import check_checkpoint, check_model
from convfactor.planning.batches import Split, read_workload, split
from convfactor.planning.judge import Judge
from convfactor.planning.planner import make_plan
from convfactor.planning.quality import Drop, Evaluate, OutputError, Quality
from convfactor.planning.whole import time_models
from convfactor.plans.decisions import WholeModel
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings
from convfactor.progress import Show, reporting, step

WHOLE_SECONDS = 3.0
# Of what is replaced, so much is undone at a time: one of few, and not one by one of many.
UNDONE = 0.1


@dataclass(frozen=True, eq=False)
class Job:
    """Checked arguments, and a copy of the model that can be run.

    Of an exported program, the original is its graph.
    """

    given: nn.Module | ExportedProgram
    original: nn.Module
    model: nn.Module
    inputs: Workload
    batches: Split | None
    settings: Settings
    select: Patterns | Predicate | None
    checkpoint: Path | None
    clock: Clock = compare
    evaluate: Evaluate | None = None
    executor: Executor | None = None

    @classmethod
    def read(
        cls,
        given: nn.Module | ExportedProgram,
        example_inputs: Any,
        calibration: Any,
        settings: Settings,
        select: Select | None,
        checkpoint: str | os.PathLike[str] | None,
        clock: Clock = compare,
    ) -> Job:
        """Check everything before any long work; the arguments are those of ``optimize``."""
        model, example_inputs = _runnable(given, example_inputs)
        check_model(model)
        check_checkpoint(checkpoint)
        chosen = read_select(select)
        inputs = read_workload(example_inputs)
        batches = None
        if calibration is not None:
            batches = split(calibration, *inputs.calls)
        elif settings.refine:
            raise ValueError("refine needs calibration: batches for the model to be trained on")
        worker = copied(model)
        worker.eval()  # which need not return the model
        with isolated(settings.seed):
            trial = copied(worker)  # the first run may change a model, or make its layers
            tried = set()
            for call in inputs.calls:
                _try(trial, call, "example_inputs must be what the model takes")
                tried.add(_form(call))
            for batch in (*batches.fit, *batches.held_out) if batches else ():
                if _form(batch) not in tried:
                    _try(trial, batch, "calibration batches must be what the model takes")
                    tried.add(_form(batch))
            if batches is not None:
                more = reaching(copied(worker), inputs, batches.all, settings.min_kernel_size)
                inputs = inputs.extended(more)
        folder = None if checkpoint is None else Path(checkpoint)
        return cls(given, model, worker, inputs, batches, settings, chosen, folder, clock)

    @functools.cached_property
    def judge(self) -> Judge:
        """What runs the whole model."""
        return Judge(
            self.model, self.inputs.calls, () if self.batches is None else self.batches.held_out
        )

    @functools.cached_property
    def quality(self) -> Quality | None:
        """What the budget for the whole model is spent on; None where each layer has its own.

        Raises:
            ValueError: The evaluation of the original fails.
        """
        settings, seed = self.settings, self.settings.seed
        if settings.max_drop is not None and self.evaluate is not None:
            better = settings.higher_is_better
            return Drop.of(self.model, self.evaluate, settings.max_drop, better, seed)
        if settings.model_tolerance is None:
            return None
        batches = () if self.batches is None else self.batches.held_out
        return OutputError(self.model, batches or self.inputs.calls, settings.model_tolerance, seed)

    def plan(self, strict: bool, progress: Show) -> Plan:
        """Make the plan."""
        with reporting(progress) as display:
            return self._plan(strict, display)

    def optimize(self, strict: bool, progress: Show) -> tuple[nn.Module | ExportedProgram, Plan]:
        """Make the plan and the faster model."""
        with reporting(progress) as display:
            chosen = self._plan(strict, display)
            with isolated(self.settings.seed), step(display, "comparing models"):
                chosen = self._compared(chosen)
                if strict:
                    _demand_budget(chosen)
                return chosen.apply(self.given), chosen

    def _plan(self, strict: bool, display: Progress) -> Plan:
        """Make the plan, and show how far it is."""
        with step(display, "running the model"):
            quality = self.quality
        with isolated(self.settings.seed):
            result = make_plan(
                self.model,
                self.inputs,
                self.batches,
                self.settings,
                self._selecting(),
                display,
                self.checkpoint,
                self.clock,
                quality,
                self.executor,
            )
            with step(display, "checking the model"):
                result = self._accounted(self.judge.sound(self._unchanged(result)))
        if strict:
            _demand_budget(result)
        return result

    def _selecting(self) -> Patterns | Predicate | None:
        """Show the user's own modules to a function, which may compare their identity."""
        select = self.select
        if select is None or isinstance(select, Patterns):
            return select
        originals = dict(self.original.named_modules())
        own = {id(module): originals.get(name) for name, module in self.model.named_modules()}
        return lambda name, module: select(name, own.get(id(module)) or module)

    def _accounted(self, chosen: Plan) -> Plan:
        """Measure again what is left of the budget where a layer is kept after all.

        Layers that were refined together may be worse alone: as long as they take more than the
        budget, the one that takes most of it is kept as well.
        """
        spending, quality = chosen.spending, self.quality
        if spending is None or quality is None:
            return chosen
        if all(share.name in _replaced(chosen) for share in spending.shares):
            return chosen
        parts = {share.name: share.part for share in spending.shares}
        loss = self._loss(quality, chosen)
        while chosen.replaced and quality.part(loss) > 1:
            text = (
                f"budget: undone, as with other layers undone the loss is {loss:.3g}, and "
                f"{spending.limit:g} is allowed"
            )
            taken = {i: parts.get(chosen.entries[i].name, 0.0) for i in chosen.replaced}
            costliest = max(taken, key=taken.__getitem__)
            chosen = chosen.keeping(costliest, Reason("budget", "budget", text))
            chosen = replace(chosen, whole=None)
            loss = self._loss(quality, chosen)
        return replace(chosen, spending=spending.only(_replaced(chosen), loss))

    def _loss(self, quality: Quality, chosen: Plan) -> float:
        """How much worse a plan makes the model."""
        return quality.loss(chosen.rewrite(copied(self.model))) if chosen.replaced else 0.0

    def _unchanged(self, chosen: Plan) -> Plan:
        """Keep the layers whose weight is not the user's, since a run has changed it."""
        subjects = [chosen.entries[i].subject for i in chosen.replaced]
        wrongs = planned.check_all(self.original, subjects)
        for i, wrong in zip(chosen.replaced, wrongs, strict=True):
            if wrong is not None:
                text = "its weight is made or changed by the forward; run the model once before"
                short = "its weight is made by the forward"
                chosen = chosen.keeping(i, Reason("unsupported", short, text))
        return chosen

    def _compared(self, chosen: Plan) -> Plan:
        """Compare the whole model, until what is left of it is within the budget."""
        while True:
            faster = self.compare(chosen)
            chosen = self._accounted(faster)
            if chosen.replaced == faster.replaced:
                return chosen

    def compare(self, chosen: Plan) -> Plan:
        """Compare the whole model before and after; undo what does not make it faster."""
        while chosen.replaced:
            fast = chosen.apply(self.model)
            whole = self._measure(chosen, fast)
            if whole.before is None or whole.after is None:
                return replace(chosen, whole=whole)
            if whole.after.median < whole.before.median:
                return replace(chosen, whole=whole)
            worst = sorted(chosen.replaced, key=lambda i: _saving(chosen, i))
            text = (
                f"undone: the whole model took {whole.after.median * 1e3:.3g} ms with it, "
                f"{whole.before.median * 1e3:.3g} ms without"
            )
            for i in worst[: math.ceil(len(worst) * UNDONE)]:
                chosen = chosen.keeping(i, Reason("speed", "undone: no faster", text))
        return chosen

    def _measure(self, chosen: Plan, fast: nn.Module) -> WholeModel:
        """Errors and times of a rewritten model."""
        errors = self.judge.errors(chosen)
        if self.settings.objective == "macs":
            return WholeModel(errors, None, None, "as given")
        times = time_models([self.model, fast], self.inputs, self.clock, WHOLE_SECONDS)
        before = min(times[0].values(), key=lambda t: t.median)
        name, after = min(times[1].items(), key=lambda p: p[1].median)
        return WholeModel(errors, before, after, name)


def _runnable(given: Any, example_inputs: Any) -> tuple[Any, Any]:
    """The graph of an exported program, and its example inputs; any other model as it is."""
    if not isinstance(given, ExportedProgram):
        return given, example_inputs
    graph = programs.graph_of(given)
    programs.exported(graph, given)  # refuses what torch can't export again
    return graph, programs.inputs_of(given) if example_inputs is None else example_inputs


def _demand_budget(chosen: Plan) -> None:
    """Refuse a plan that misses what was asked for.

    Raises:
        ToleranceError: It does.
    """
    spending = chosen.spending
    missed = [
        entry
        for entry in chosen.entries
        if entry.missed or (spending is not None and spending.solved is None and entry.budgeted)
    ]
    if missed:
        names = ", ".join(f"{entry.name} ({entry.reason})" for entry in missed)
        raise ToleranceError(f"the {chosen.settings.budget} is missed: {names}")


def _replaced(chosen: Plan) -> set[str]:
    """Names of what is replaced."""
    return {chosen.entries[i].name for i in chosen.replaced}


def _form(inputs: ModelInputs) -> tuple[object, ...]:
    """What tells calls apart before they are tried: the arguments, and the tensors' shapes."""
    arguments = str(tree_structure((inputs.args, dict(inputs.kwargs))))
    return (arguments, *(tensor.shape for tensor in inputs.tensors))


def _try(model: nn.Module, inputs: ModelInputs, wanted: str) -> None:
    """Run a model once, so that what does not fit is refused before any long work."""
    try:
        with quiet(model):
            inputs.run(model)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
        raise ValueError(f"{wanted}, but it raised on {shapes}: {told(error)}") from error


def _saving(chosen: Plan, index: int) -> float:
    """Seconds that one replacement was measured to save."""
    cost = chosen.entries[index].decision.cost
    if cost is None or cost.before is None or cost.after is None:
        return 0.0
    return cost.before.median - cost.after.median
