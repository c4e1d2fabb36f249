"""From a model to a faster model, in one call."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_structure

from convfactor import calibration as calibration_data
from convfactor.arguments import check_model, check_options
from convfactor.calibration import Split
from convfactor.errors import ToleranceError
from convfactor.latency import compare
from convfactor.planner import make_plan
from convfactor.plans import Plan, Settings, WholeModel, channels_last
from convfactor.pricing import MemoryFormat
from convfactor.progress import reporting
from convfactor.sites import ModelInputs, Select
from convfactor.verification import output_errors

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

    When the plan is applied, a module whose own forward calls ``F.conv2d`` becomes a ``torch.fx``
    GraphModule in evaluation mode; all others keep their class.

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
    faster are undone. The plan says what was done and why. A module whose own forward calls
    ``F.conv2d`` becomes a ``torch.fx`` GraphModule in evaluation mode; all others keep their class.

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
    with reporting(progress) as display, _deterministic(seed):
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
        try:
            worker = copy.deepcopy(model).eval()
        except Exception as error:
            raise ValueError(
                f"model must be one that copy.deepcopy can copy, but that raised {_told(error)}"
            ) from error
        with _deterministic(settings.seed):
            # A trial would give lazy layers their weights.
            trial = copy.deepcopy(worker) if any(map(is_lazy, worker.parameters())) else worker
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

    def plan(self, strict: bool, progress: bool | None) -> Plan:
        """Make the plan."""
        select = None if self.select is None else self._on_original(self.select)
        with reporting(progress) as display, _deterministic(self.settings.seed):
            result = make_plan(
                self.model,
                self.inputs,
                self.batches,
                self.settings,
                select,
                display,
                self.checkpoint,
            )
            result = self._runnable(result)
        missed = [entry for entry in result.entries if entry.missed]
        if strict and missed:
            names = ", ".join(f"{entry.name} ({entry.reason})" for entry in missed)
            raise ToleranceError(f"the tolerance of {self.settings.tolerance:g} is missed: {names}")
        return result

    def _on_original(self, select: Select) -> Select:
        """Show the user's own modules to ``select``, which may compare their identity."""
        originals = dict(zip(self.model.modules(), self.original.modules(), strict=True))
        return lambda name, module: select(name, originals[module])

    def _runnable(self, chosen: Plan) -> Plan:
        """Undo the replacements with which the model does not run.

        Some forwards read attributes of their layers that a cascade, or a traced forward, has not.
        """
        if not chosen.replaced or _failure(chosen.apply(self.model), self.inputs) is None:
            return chosen
        for i in chosen.replaced:
            alone = functools.reduce(
                lambda plan, other: plan.without(other, ""), set(chosen.replaced) - {i}, chosen
            )
            error = _failure(alone.apply(self.model), self.inputs)
            if error is not None:
                chosen = chosen.without(i, f"undone: with it the model raises {_told(error)}")
        return chosen

    def compare(self, chosen: Plan) -> Plan:
        """Compare the whole model before and after; undo what does not make it faster."""
        while chosen.replaced:
            fast = chosen.apply(self.model)
            whole = self._measure(fast)
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

    def _measure(self, fast: nn.Module) -> WholeModel:
        """Errors and times of a rewritten model."""
        held_out = (self.inputs,) if self.batches is None else self.batches.held_out
        errors = output_errors(self.model, fast, held_out)
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
        inputs.run(model)
    except Exception as error:
        return error
    return None


def _told(error: Exception) -> str:
    """Type and first line of an error; torch's may go on for pages."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _try(model: nn.Module, inputs: ModelInputs, wanted: str) -> None:
    """Run a model once, so that what does not fit is refused before any long work."""
    error = _failure(model, inputs)
    if error is not None:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
        raise ValueError(f"{wanted}, but it raised on {shapes}: {_told(error)}") from error


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Fix torch's random numbers for a model that draws some, and restore them afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


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

    first, second = (channels_last(copy.deepcopy(model)) for model in models)
    return first, second, inputs.map(convert)
