"""From a model to a faster model, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from convfactor.model.finding import Select
from convfactor.planning.job import Job
from convfactor.plans.plan import Plan
from convfactor.plans.settings import Settings


def plan(
    model: nn.Module,
    example_inputs: Any,
    tolerance: float = Settings.tolerance,
    *,
    calibration: Iterable[Any] | None = None,
    select: Select | None = None,
    min_kernel_size: int = Settings.min_kernel_size,
    objective: Literal["latency", "macs"] = Settings.objective,
    min_speedup: float = Settings.min_speedup,
    structures: Literal["auto", "cascade"] = Settings.structures,
    strict: bool = False,
    seed: int = Settings.seed,
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
    job = Job.read(model, example_inputs, calibration, settings, select, checkpoint)
    return job.plan(strict, progress)


def optimize(
    model: nn.Module,
    example_inputs: Any,
    tolerance: float = Settings.tolerance,
    *,
    calibration: Iterable[Any] | None = None,
    select: Select | None = None,
    min_kernel_size: int = Settings.min_kernel_size,
    objective: Literal["latency", "macs"] = Settings.objective,
    min_speedup: float = Settings.min_speedup,
    structures: Literal["auto", "cascade"] = Settings.structures,
    strict: bool = False,
    seed: int = Settings.seed,
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
    job = Job.read(model, example_inputs, calibration, settings, select, checkpoint)
    return job.optimize(strict, progress)
