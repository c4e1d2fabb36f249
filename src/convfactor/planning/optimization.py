"""From a model to a faster model, in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

from torch import nn
from torch.export import ExportedProgram

from convfactor.model.selection import Select
from convfactor.planning.arguments import check_budget
from convfactor.planning.job import Job
from convfactor.planning.quality import Evaluate
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings
from convfactor.progress import Show, check_progress

M = TypeVar("M", nn.Module, ExportedProgram)


def plan(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    tolerance: float | None = None,
    *,
    model_tolerance: float | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    higher_is_better: bool = Settings.higher_is_better,
    calibration: Iterable[Any] | None = None,
    refine: bool | None = None,
    select: Select | None = None,
    min_kernel_size: int = Settings.min_kernel_size,
    objective: Literal["latency", "macs"] = Settings.objective,
    min_speedup: float = Settings.min_speedup,
    structures: Literal["auto", "cascade"] = Settings.structures,
    strict: bool = False,
    seed: int = Settings.seed,
    progress: Show = None,
    checkpoint: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    executor: Executor | None = None,
) -> Plan:
    """Decide for every large-kernel convolution of a model, and change nothing.

    When the plan is applied, every module keeps its class and its forward; a functional call of
    ``F.conv2d`` finds something in place of its weight that runs the cascade.

    One of three budgets is given: ``tolerance`` for each layer by itself, ``model_tolerance`` for
    the output of the model, or ``evaluate`` with ``max_drop`` for whatever you measure. The budget
    of a model is spent on the layers where it saves the most time.

    Args:
        model: A trained model that runs on ``example_inputs``; it is analysed as a copy in
            evaluation mode. Or a program that ``torch.export`` made of one in evaluation mode.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments such as
            a BatchFeature, of the shapes, dtype and device that the model will be used with. Or a
            list of calls, ``[Inputs(x), Inputs(y, mask=m).times(3)]``, whose times are summed.
            Calibration batches that reach layers which no call reaches are added to them. None
            for those that an exported program holds.
        tolerance: Largest relative error of a layer: root mean square of the output's error over
            the output's standard deviation, on data that the fit has not seen. 0.01 where no
            budget is given.
        model_tolerance: The same for the outputs of the model.
        evaluate: Function that says how good a model is, such as its accuracy or PSNR on labelled
            data that is not in the calibration; called with the model and with rewritten ones.
        max_drop: By how much ``evaluate`` may get worse, in its own unit.
        higher_is_better: Whether a good model has a high value.
        calibration: Batches as the model takes them, varied, such as a list or a DataLoader; a
            quarter is kept to verify. Labels, which stand beside what looks like the example
            inputs, are dropped, and the plan says so. Without batches the error is that of the
            weights (white noise).
        refine: Train what is replaced so that the model gives what the original gives; needs no
            labels. None does so where there are a budget for the model and calibration data.
        select: Layers that may be replaced; the others are kept. A glob for their names or those
            of modules around them, such as "*.stem" ("!head" leaves out), a compiled regular
            expression that matches the whole name, a list of these, or a function (name, module)
            that says so.
        min_kernel_size: Longer side from which a kernel counts as large.
        objective: "latency" decides by measured time, "macs" by multiplies and without a clock.
        min_speedup: Speed-up of a layer from which a replacement is worth it.
        structures: "cascade" tries dense stages of at most 3x3 only; "auto" also the separable
            pair Kx1, 1xK, and depthwise or narrow large stages between 1x1 ones.
        strict: Raise where a layer misses the tolerance, or nothing is within the model's budget.
        seed: Seed of everything drawn at random.
        progress: True draws bars on stderr where that is a terminal, and elsewhere writes a line
            there every ten seconds: stage, layer and time; "bar" and "lines" choose one of them,
            False shows nothing. None draws bars on a terminal, and elsewhere gives the lines to
            ``logging``, to "convfactor.progress" at level INFO.
        checkpoint: Folder that keeps what is found as it is found; an interrupted run with the
            same arguments goes on from there.
        time_limit: Seconds after which the best plan so far is taken, where there is a budget for
            the model; the first choice is always finished. None for no limit.
        executor: Solves the layers of a model with a budget in other processes, for instance a
            ``concurrent.futures.ProcessPoolExecutor``; the answers are the same. None does so here.

    Returns:
        The plan, which is also the report.

    Raises:
        ValueError: An argument is out of range, two budgets are given, the model does not run on
            the example inputs, was exported in training mode or can't be exported again, its
            weights are not finite or not loaded, the calibration does not fit, a pattern of
            ``select`` matches no layer, or ``evaluate`` fails.
        TypeError: ``model`` is not a module whose layers can be seen, ``example_inputs`` holds no
            tensor, ``calibration`` is not an iterable of batches, ``select`` is neither a pattern
            nor a function, ``evaluate`` is not a function, or ``checkpoint`` is not a path.
        ToleranceError: ``strict``, and the budget is missed.
    """
    job = _job(
        model,
        example_inputs,
        calibration,
        evaluate,
        refine,
        time_limit,
        progress,
        select=select,
        checkpoint=checkpoint,
        executor=executor,
        tolerance=tolerance,
        model_tolerance=model_tolerance,
        max_drop=max_drop,
        higher_is_better=higher_is_better,
        objective=objective,
        min_speedup=min_speedup,
        structures=structures,
        min_kernel_size=min_kernel_size,
        seed=seed,
    )
    return job.plan(strict, progress)


def optimize(
    model: M,
    example_inputs: Any = None,
    tolerance: float | None = None,
    *,
    model_tolerance: float | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    higher_is_better: bool = Settings.higher_is_better,
    calibration: Iterable[Any] | None = None,
    refine: bool | None = None,
    select: Select | None = None,
    min_kernel_size: int = Settings.min_kernel_size,
    objective: Literal["latency", "macs"] = Settings.objective,
    min_speedup: float = Settings.min_speedup,
    structures: Literal["auto", "cascade"] = Settings.structures,
    strict: bool = False,
    seed: int = Settings.seed,
    progress: Show = None,
    checkpoint: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    executor: Executor | None = None,
) -> tuple[M, Plan]:
    """Make a copy of a trained model whose large-kernel convolutions run faster.

    The model is planned (see ``plan`` for the arguments and errors), a copy is rewritten, and the
    copy is compared with the original on held-out inputs; replacements that do not make the whole
    faster are undone. The plan says what was done and why.

    Returns:
        The faster model and the plan; where nothing is gained, an unchanged copy and the reasons.
        Of an exported program, one with the same signature, dynamic shapes and dialect; parameters
        of layers that stay keep their names.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())
        >>> fast, plan = optimize(net, torch.zeros(1, 8, 16, 16), tolerance=0.01)
        >>> print(plan)
        no convolution with a kernel of 5 or more taps on a side; the model is unchanged
    """
    job = _job(
        model,
        example_inputs,
        calibration,
        evaluate,
        refine,
        time_limit,
        progress,
        select=select,
        checkpoint=checkpoint,
        executor=executor,
        tolerance=tolerance,
        model_tolerance=model_tolerance,
        max_drop=max_drop,
        higher_is_better=higher_is_better,
        objective=objective,
        min_speedup=min_speedup,
        structures=structures,
        min_kernel_size=min_kernel_size,
        seed=seed,
    )
    fast, chosen = job.optimize(strict, progress)
    return cast(M, fast), chosen


def _job(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    calibration: Iterable[Any] | None,
    evaluate: Evaluate | None,
    refine: bool | None,
    time_limit: float | None,
    progress: Show,
    *,
    select: Select | None,
    checkpoint: str | os.PathLike[str] | None,
    executor: Executor | None,
    **asked: Any,
) -> Job:
    """Check the arguments."""
    check_budget(evaluate, executor)
    check_progress(progress)
    whole = asked["model_tolerance"] is not None or asked["max_drop"] is not None
    settings = Settings(
        **asked,
        evaluate="" if evaluate is None else getattr(evaluate, "__name__", "evaluate"),
        refine=whole and calibration is not None if refine is None else refine,
        time_limit=math.inf if time_limit is None else time_limit,
    )
    job = Job.read(model, example_inputs, calibration, settings, select, checkpoint)
    return replace(job, evaluate=evaluate, executor=executor)
