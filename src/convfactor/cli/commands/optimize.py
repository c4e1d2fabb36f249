"""Optimize a user's model, and write everything about it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import convfactor
from convfactor.cli.arguments import EXPORTED, PROGRAM, asked
from convfactor.cli.folders import made
from convfactor.cli.given import (
    moved,
    read_calibration,
    read_device,
    read_evaluation,
    read_model,
    read_program,
)
from convfactor.cli.interrupts import NOTHING, saying
from convfactor.cli.messages import say
from convfactor.cli.notes import note, shown
from convfactor.cli.workers import workers
from convfactor.errors import ToleranceError
from convfactor.model.inputs import Inputs
from convfactor.model.programs import inputs_of
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE, WEIGHTS_FILE
from convfactor.plans.summary import summary
from convfactor.plans.tables import show, to_text
from convfactor.saving.folders import FILES
from convfactor.terminal import WIDTH

convfactor.optimize  # noqa: B018 - loads what takes long, which can't be interrupted halfway
# A name that nobody else gives to a folder, as this one is taken away in the end.
PARTIAL = ".convfactor-partial"


def run(options: Namespace) -> None:
    """Optimize, write, and print the table or the outcome."""
    output: Path = options.output
    with (
        contextlib.redirect_stdout(sys.stderr),  # what the user's code prints is no result
        made(output, PARTIAL) as written,
        saying(lambda: _said(output, written)),
        _failing(output),
    ):
        plan, files = _optimized(options)
    with saying(lambda: f"the result in {output} is complete"):
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        if options.json:
            if not options.quiet:
                show(plan, sys.stderr)
            print(json.dumps({"output": str(output), "files": files, **summary(plan)}, indent=2))
        else:
            show(plan)
        note(f"wrote {', '.join(files)} to {output}")


@contextlib.contextmanager
def _failing(output: Path) -> Iterator[None]:
    """Say what a run that fails leaves; of one that misses its tolerance nothing is of use."""
    try:
        yield
    except ToleranceError:
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        raise
    except Exception:
        kept = _kept(output)
        if kept:
            say(kept)
        raise


def _said(output: Path, written: Callable[[], list[str]]) -> str:
    """What an interrupted run leaves."""
    files = written()
    some = f"{', '.join(files)} in {output} is all that was written" if files else NOTHING
    return _kept(output) or some


def _kept(output: Path) -> str:
    """That a run can go on, if it can."""
    partial = output / PARTIAL
    if partial.is_dir() and any(partial.iterdir()):
        return f"what was found is kept in {partial}, and the same command goes on from there"
    return ""


def _optimized(options: Namespace) -> tuple[Plan, list[str]]:
    """Optimize, and write everything but what is printed.

    Returns:
        The plan, and the names of the files.
    """
    output: Path = options.output
    calibration = None if options.calibration is None else read_calibration(options.calibration)
    model, device, dtype = _model(options)
    calls = _calls(options, device, dtype)
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
            progress=shown(options),
            checkpoint=output / PARTIAL,
            executor=executor,
        )
    plan.save(output)
    (output / "table.txt").write_text(to_text(plan, WIDTH) + "\n", encoding="utf-8")
    plan.to_html(output / "report.html", model)
    files = [PLAN_FILE, WEIGHTS_FILE, "table.txt", "report.html"]
    return plan, [*files, *_write(fast, calls, output)]


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
    (output / EXPORTED).unlink(missing_ok=True)  # of another model, should this one not export
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
