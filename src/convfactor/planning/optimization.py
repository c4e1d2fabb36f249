"""From a model to a faster model, in one call."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_structure

from convfactor.errors import PlanMismatchError, ToleranceError
from convfactor.latency import compare
from convfactor.model import rewrite
from convfactor.model.copies import copied, isolated, quiet, told
from convfactor.model.finding import Select
from convfactor.model.inputs import ModelInputs
from convfactor.planning import calibration as calibration_data
from convfactor.planning.arguments import check_model, check_options
from convfactor.planning.calibration import Split
from convfactor.planning.judge import Judge
from convfactor.planning.planner import make_plan
from convfactor.planning.pricing import MemoryFormat
from convfactor.plans.plan import Plan, Settings, WholeModel, channels_last
from convfactor.progress import reporting

WHOLE_SECONDS = 3.0


def plan(
    model: nn.Module,
    example_inputs: Any,
    tolerance: float = 1e-2,
    *,
    calibration: Iterable[Any] | None = None,
    select: Select | None = None,
    min_kernel_size: int = 5,
    objective: Literal["latency", "macs"] = "latency",
    min_speedup: float = 1.05,
    structures: Literal["auto", "cascade"] = "auto",
    strict: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Plan:
    """Decide for every large-kernel convolution of a model, and change nothing.

    When the plan is applied, every module keeps its class and its forward; a functional call of
    ``F.conv2d`` finds something in place of its weight that runs the cascade.

    Args:
        model: A trained model that runs on ``example_inputs``; it is analysed as a copy in
            evaluation mode.
        example_inputs: A tensor, a tuple of arguments or a mapping of keyword arguments, of the
            shapes, dtype and device that the model will be used with.
        tolerance: Largest relative error of a layer: root mean square of the output's error over
            the output's standard deviation, on data that the fit has not seen.
        calibration: Batches as the model takes them, varied and without labels; a quarter is kept
            to verify. Without them the error is that of the weights (white noise).
        select: Keeps a layer as it is where it returns False for (name, module).
        min_kernel_size: Longer side from which a kernel counts as large.
        objective: "latency" decides by measured time, "macs" by multiplies and without a clock.
        min_speedup: Speed-up of a layer from which a replacement is worth it.
        structures: "auto" also tries the separable pair Kx1, 1xK; "cascade" does not.
        strict: Raise where a layer misses the tolerance.
        seed: Seed of everything drawn at random.
        progress: Show progress on stderr; None does so on a terminal.
        checkpoint: Folder that keeps the decisions as they are taken; an interrupted run with the
            same arguments goes on from there.

    Raises:
        ValueError: An argument is out of range, the model does not run on the example inputs, its
            weights are not finite or not loaded, or the calibration does not fit.
        TypeError: ``model`` is not a module whose layers can be seen, ``example_inputs`` holds no
            tensor, ``calibration`` is not an iterable of batches, ``select`` is not a function, or
            ``checkpoint`` is not a path.
        ToleranceError: ``strict``, and a layer misses the tolerance.
    """
    settings = Settings(tolerance, objective, min_speedup, structures, min_kernel_size, seed)
    job = _Job.read(model, example_inputs, calibration, settings, select, checkpoint)
    return job.plan(strict, progress)


def optimize(
    model: nn.Module,
    example_inputs: Any,
    tolerance: float = 1e-2,
    *,
    calibration: Iterable[Any] | None = None,
    select: Select | None = None,
    min_kernel_size: int = 5,
    objective: Literal["latency", "macs"] = "latency",
    min_speedup: float = 1.05,
    structures: Literal["auto", "cascade"] = "auto",
    strict: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, Plan]:
    """Make a copy of a trained model whose large-kernel convolutions run faster.

    The model is planned (see ``plan`` for the arguments and errors), a copy is rewritten, and the
    copy is compared with the original on held-out inputs; replacements that do not make the whole
    faster are undone. The plan says what was done and why.

    Returns:
        The faster model and the plan; where nothing is gained, an unchanged copy and the reasons.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())
        >>> fast, plan = optimize(net, torch.zeros(1, 8, 16, 16), tolerance=0.01)
        >>> print(plan)
        no convolution with a kernel of 5 or more taps on a side; the model is unchanged
    """
    settings = Settings(tolerance, objective, min_speedup, structures, min_kernel_size, seed)
    job = _Job.read(model, example_inputs, calibration, settings, select, checkpoint)
    chosen = job.plan(strict, progress)
    with reporting(progress) as display, isolated(seed):
        display.add_task("comparing the whole model", total=None, detail="")
        chosen = job.compare(chosen)
        return chosen.apply(model), chosen


@dataclass(frozen=True, eq=False)
class _Job:
    """Checked arguments, and a copy of the model that can be run."""

    original: nn.Module
    model: nn.Module
    inputs: ModelInputs
    batches: Split | None
    settings: Settings
    select: Select | None
    checkpoint: Path | None

    @classmethod
    def read(
        cls,
        model: nn.Module,
        example_inputs: Any,
        calibration: Any,
        settings: Settings,
        select: Select | None,
        checkpoint: str | os.PathLike[str] | None,
    ) -> _Job:
        """Check everything before any long work."""
        check_model(model)
        check_options(select, checkpoint)
        inputs = calibration_data.read_inputs("example_inputs", example_inputs)
        batches = None
        if calibration is not None:
            batches = calibration_data.split(calibration, inputs)
        worker = copied(model)
        worker.eval()  # which need not return the model
        with isolated(settings.seed):
            trial = copied(worker)  # the first run may change a model, or make its layers
            _try(trial, inputs, "example_inputs must be what the model takes")
            tried = {_form(inputs)}
            for batch in (*batches.fit, *batches.held_out) if batches else ():
                if _form(batch) not in tried:
                    _try(
                        trial,
                        batch,
                        "calibration batches must be what the model takes, without labels",
                    )
                    tried.add(_form(batch))
        folder = None if checkpoint is None else Path(checkpoint)
        return cls(model, worker, inputs, batches, settings, select, folder)

    @functools.cached_property
    def judge(self) -> Judge:
        """What runs the whole model."""
        return Judge(self.model, self.inputs, () if self.batches is None else self.batches.held_out)

    def plan(self, strict: bool, progress: bool | None) -> Plan:
        """Make the plan."""
        select = None if self.select is None else self._on_original(self.select)
        with reporting(progress) as display, isolated(self.settings.seed):
            result = make_plan(
                self.model,
                self.inputs,
                self.batches,
                self.settings,
                select,
                display,
                self.checkpoint,
            )
            result = self.judge.sound(self._unchanged(result))
        missed = [entry for entry in result.entries if entry.missed]
        if strict and missed:
            names = ", ".join(f"{entry.name} ({entry.reason})" for entry in missed)
            raise ToleranceError(f"the tolerance of {self.settings.tolerance:g} is missed: {names}")
        return result

    def _on_original(self, select: Select) -> Select:
        """Show the user's own modules to ``select``, which may compare their identity."""
        originals = dict(self.original.named_modules())
        own = {id(module): originals.get(name) for name, module in self.model.named_modules()}
        return lambda name, module: select(name, own.get(id(module)) or module)

    def _unchanged(self, chosen: Plan) -> Plan:
        """Keep the layers whose weight is not the user's, since a run has changed it."""
        for i in chosen.replaced:
            try:
                rewrite.check(self.original, chosen.entries[i])
            except PlanMismatchError:
                reason = "its weight is made or changed by the forward; run the model once before"
                chosen = chosen.without(i, reason)
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
            worst = min(chosen.replaced, key=lambda i: _saving(chosen, i))
            chosen = chosen.without(
                worst,
                f"undone: the whole model took {whole.after.median * 1e3:.3g} ms with it, "
                f"{whole.before.median * 1e3:.3g} ms without",
            )
        return chosen

    def _measure(self, chosen: Plan, fast: nn.Module) -> WholeModel:
        """Errors and times of a rewritten model."""
        errors = self.judge.errors(chosen)
        if self.settings.objective == "macs":
            return WholeModel(errors, None, None, "as given")
        formats: tuple[MemoryFormat, ...] = ("as given", "channels_last")
        pairs = [_in_format(self.inputs, name, self.model, fast) for name in formats]
        calls = [
            lambda model=model, inputs=inputs: inputs.run(model)
            for before, after, inputs in pairs
            for model in (before, after)
        ]
        device = next((t.device for t in self.inputs.tensors), torch.device("cpu"))
        timings = compare(calls, device, WHOLE_SECONDS)
        before = min(timings[0::2], key=lambda t: t.median)
        after, name = min(zip(timings[1::2], formats, strict=True), key=lambda p: p[0].median)
        return WholeModel(errors, before, after, name)


def _form(inputs: ModelInputs) -> tuple[object, ...]:
    """What tells calls apart before they are tried: the arguments, and the tensors' shapes."""
    arguments = str(tree_structure((inputs.args, dict(inputs.kwargs))))
    return (arguments, *(tensor.shape for tensor in inputs.tensors))


def _failure(model: nn.Module, inputs: ModelInputs) -> Exception | None:
    """What a model raises on its inputs."""
    try:
        with quiet(model):
            inputs.run(model)
    except Exception as error:
        return error
    return None


def _try(model: nn.Module, inputs: ModelInputs, wanted: str) -> None:
    """Run a model once, so that what does not fit is refused before any long work."""
    error = _failure(model, inputs)
    if error is not None:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
        raise ValueError(f"{wanted}, but it raised on {shapes}: {told(error)}") from error


def _saving(chosen: Plan, index: int) -> float:
    """Seconds that one replacement was measured to save."""
    entry = chosen.entries[index]
    if entry.before is None or entry.after is None:
        return 0.0
    return entry.before.median - entry.after.median


def _in_format(
    inputs: ModelInputs, name: MemoryFormat, *models: nn.Module
) -> tuple[nn.Module, nn.Module, ModelInputs]:
    """Models and inputs in a memory format."""
    first, second = models
    if name == "as given":
        return first, second, inputs

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    first, second = (channels_last(copied(model)) for model in models)
    return first, second, inputs.map(convert)
