"""What the commands do."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import warnings
from argparse import Namespace
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import convfactor
from convfactor.cli.arguments import EXPORTED, PROGRAM, REPORTS, asked
from convfactor.cli.given import (
    moved,
    read_calibration,
    read_device,
    read_evaluation,
    read_model,
    read_program,
)
from convfactor.cli.messages import listen, note, say
from convfactor.model.inputs import Inputs
from convfactor.model.programs import inputs_of
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE, WEIGHTS_FILE
from convfactor.plans.tables import show, to_text
from convfactor.progress import Show
from convfactor.saving.folders import FILES
from convfactor.terminal import WIDTH

PARTIAL = "partial"


def run(options: Namespace) -> None:
    """Run the command that was given; results go to stdout, and to the files that it says."""
    listen(quiet="quiet" in options and options.quiet)
    {"demo": _demo, "optimize": _optimize, "show": _show}[options.command](options)


def _demo(options: Namespace) -> None:
    """Run the demo."""
    from convfactor.demo import run  # needs the extra packages of the demo

    with workers(options.workers, {"max_drop"}) as executor:
        run.demo(options.output, options.max_drop, executor, _shown(options))


def _optimize(options: Namespace) -> None:
    """Optimize a user's model and write everything about it."""
    calibration = None if options.calibration is None else read_calibration(options.calibration)
    model, device, dtype = _model(options)
    calls = _calls(options, device, dtype)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    wanted = asked(options)
    if options.evaluate is not None:
        wanted["evaluate"] = read_evaluation(options.evaluate)
    with workers(options.workers, wanted) as executor:
        fast, plan = convfactor.optimize(
            model,
            calls,
            **wanted,
            select=[*options.select, *(f"!{pattern}" for pattern in options.skip)] or None,
            calibration=calibration and [moved(b, device, dtype) for b in calibration],
            strict=options.strict,
            progress=_shown(options),
            checkpoint=output / PARTIAL,
            executor=executor,
        )
    plan.save(output)
    (output / "table.txt").write_text(to_text(plan, WIDTH) + "\n", encoding="utf-8")
    plan.to_html(output / "report.html", model)
    written = [PLAN_FILE, WEIGHTS_FILE, "table.txt", "report.html", *_write(fast, calls, output)]
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    show(plan)
    note(f"wrote {', '.join(written)} to {output}")


def _shown(options: Namespace) -> Show:
    """How progress is shown; in a pipe by ``logging``, as everything else that is told."""
    if options.progress == "auto":
        return False if options.quiet else None
    chosen: Show = options.progress
    return chosen


def _model(options: Namespace) -> tuple[Any, torch.device, torch.dtype]:
    """The model or the exported program that is given, where it is, and in what it computes."""
    if options.model.endswith(PROGRAM):
        program = read_program(options.model)
        tensors = inputs_of(program).tensors
        first = next((t for t in tensors if t.is_floating_point()), tensors[0])
        return program, first.device, first.dtype
    device, dtype = read_device(options.device), getattr(torch, options.dtype)
    return read_model(options.model, options.weights).to(device, dtype), device, dtype


def _write(fast: Any, calls: list[Inputs] | None, output: Path) -> list[str]:
    """Write the rewritten model, and say into which files."""
    if isinstance(fast, ExportedProgram):
        torch.export.save(fast, output / EXPORTED)
        return [EXPORTED]
    convfactor.save(fast, output)
    written = [FILES.record, FILES.weights]
    assert calls is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(fast.eval(), calls[0].args), output / EXPORTED)
    except Exception as error:  # a model that torch can't export is still optimized
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        say(f"{EXPORTED} was not written: torch.export does not take this model ({reason})")
        return written
    return [*written, EXPORTED]


def _calls(options: Namespace, device: torch.device, dtype: torch.dtype) -> list[Inputs] | None:
    """Random inputs of the shapes that are given; None for those that a program holds."""
    if options.call is None and options.input is None:
        return None
    generator = torch.Generator().manual_seed(options.seed)
    return [
        Inputs(*(torch.rand(s, generator=generator).to(device, dtype) for s in shapes)).times(count)
        for count, shapes in options.call or [(1, options.input)]
    ]


@contextlib.contextmanager
def workers(count: int, wanted: Collection[str]) -> Iterator[Executor | None]:
    """Processes to solve in, where they are used.

    Args:
        count: How many.
        wanted: Names of what is asked of the plan.
    """
    if count == 1 or not {"model_tolerance", "max_drop"}.intersection(wanted):
        yield None
        return
    # Forked, they would share the threads of torch, which are not there any more.
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as executor:
        yield executor


def _show(options: Namespace) -> None:
    """Print a saved plan, and write it in other forms."""
    plan = Plan.load(options.folder)
    show(plan)
    model: Any = None
    if options.model is not None and options.model.endswith(PROGRAM):
        model = read_program(options.model)
    elif options.model is not None:
        model = read_model(options.model, options.weights)
    for name in REPORTS:
        path: Path | None = getattr(options, name)
        if path is not None:
            extra = {"model": model} if name == "html" else {}
            getattr(plan, f"to_{name}")(path, **extra)
            note(f"wrote {path}")
