"""What the command line takes, and what is wrong with it whatever the model is."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import convfactor
from convfactor.plans.settings import OBJECTIVES, STRUCTURES, Settings

ARCHIVE = ".npz"
PROGRAM = ".pt2"
EXPORTED = f"model{PROGRAM}"
DEVICE, DTYPE = "cpu", "float32"
PROGRESS = ("auto", "bar", "lines")
REPORTS = {
    "html": "a page with pictures of the kernels",
    "markdown": "the table for GitHub",
    "csv": "the figures for other programs",
    "json": "the whole record",
}


def parser() -> ArgumentParser:
    """Describe the commands."""
    described = ArgumentParser(
        prog="convfactor",
        description="Make trained PyTorch models faster: large convolution kernels become cascades "
        "of 3x3 ones, within a tolerance and only where that is measured to be faster.",
    )
    described.add_argument("--version", action="version", version=convfactor.__version__)
    commands = described.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="optimize a small super-resolution network")
    demo.add_argument("--output", type=Path, default=Path("convfactor-demo"), metavar="FOLDER")
    demo.add_argument(
        "--max-drop", type=float, default=0.1, metavar="DB",
        help="by how much the network may get worse; default: %(default)s",
    )  # fmt: skip
    _describe_workers(demo)
    _describe_progress(demo)
    optimize = commands.add_parser(
        "optimize",
        help="optimize a model of your own",
        epilog="A run that was interrupted goes on when the same command is given again.",
    )
    _describe_model(optimize)
    _describe_settings(optimize)
    show = commands.add_parser("show", help="print the table of a saved plan")
    show.add_argument("folder", type=Path, metavar="FOLDER")
    for name, what in REPORTS.items():
        show.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what} as well")
    show.add_argument(
        "--model", metavar="MODULE:FACTORY|FILE.pt2",
        help="the original, for its kernels on the page",
    )  # fmt: skip
    show.add_argument("--weights", type=Path, metavar="FILE", help="the original's weights")
    return described


def _describe_model(optimize: ArgumentParser) -> None:
    """What is optimized, on what, and where the result goes."""
    optimize.add_argument(
        "model", metavar="MODULE:FACTORY|FILE.pt2",
        help="function that makes the model, or a program that torch.export has saved",
    )  # fmt: skip
    optimize.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors, .pt or .pth")
    optimize.add_argument(
        "--input", type=_shape, action="append", metavar="1x3x224x224",
        help="shape of an input; repeat it for several inputs; default: those of a program",
    )  # fmt: skip
    optimize.add_argument(
        "--call", type=_call, action="append", metavar="[TIMES*]1x3x224x224[,1x10]",
        help="shapes of the inputs of a call, in place of --input, and how often it counts; repeat "
        "it for several calls, whose times are summed",
    )  # fmt: skip
    optimize.add_argument(
        "--calibration", metavar="FILE.npz|MODULE:FUNCTION",
        help="arrays, each a batch as the model takes it, or a function that yields batches; "
        "without it the error is that of the weights",
    )  # fmt: skip
    optimize.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    optimize.add_argument(
        "--select", action="append", default=[], metavar="PATTERN",
        help="replace only the layers of this name, or inside the module of this name; * stands "
        "for anything; repeat it for several",
    )  # fmt: skip
    optimize.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN",
        help="keep the layers of this name, or inside the module of this name",
    )  # fmt: skip
    optimize.add_argument("--device", default=DEVICE, help="default: %(default)s")
    optimize.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16", "float64"), default=DTYPE
    )


def _describe_settings(optimize: ArgumentParser) -> None:
    """What is asked of the plan."""
    budget = optimize.add_argument_group("budget", "one of these; --tolerance 0.01 where none is")
    budget.add_argument("--tolerance", type=float, help="largest relative error of a layer")
    budget.add_argument(
        "--model-tolerance", type=float, help="largest relative error of the model's output"
    )
    budget.add_argument(
        "--evaluate", metavar="MODULE:FUNCTION",
        help="function of a model that says how good it is; with --max-drop",
    )  # fmt: skip
    budget.add_argument(
        "--max-drop", type=float, help="by how much the model may get worse in --evaluate"
    )
    budget.add_argument(
        "--lower-is-better", dest="higher_is_better", action="store_false",
        help="a good model has a low value in --evaluate",
    )  # fmt: skip
    optimize.add_argument(
        "--refine", action=argparse.BooleanOptionalAction,
        help="train what is replaced to match the original, without labels; default: with a "
        "budget for the model and --calibration",
    )  # fmt: skip
    optimize.add_argument(
        "--time-limit", type=float, metavar="SECONDS",
        help="then take the best plan so far, where the budget is the model's; default: none",
    )  # fmt: skip
    _describe_workers(optimize)
    for name, kind in (("min_kernel_size", int), ("min_speedup", float)):
        optimize.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=getattr(Settings, name),
            help="default: %(default)s",
        )  # fmt: skip
    optimize.add_argument("--objective", choices=OBJECTIVES, default=Settings.objective)
    optimize.add_argument("--structures", choices=STRUCTURES, default=Settings.structures)
    optimize.add_argument("--seed", type=int, default=Settings.seed)
    optimize.add_argument("--strict", action="store_true", help="fail where the budget is missed")
    _describe_progress(optimize)


def _describe_workers(command: ArgumentParser) -> None:
    """Where it is solved."""
    command.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N",
        help="processes that solve, where the budget is the model's; default: %(default)s",
    )  # fmt: skip


def _describe_progress(command: ArgumentParser) -> None:
    """What is told on stderr while it works."""
    command.add_argument(
        "--progress", choices=PROGRESS, default="auto",
        help="on stderr: a bar, a line every ten seconds, or auto: a bar on a terminal and lines "
        "elsewhere; default: %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--quiet", action="store_true", help="tell only what is wrong, and no progress but by "
        "--progress bar or lines",
    )  # fmt: skip


def asked(options: Namespace) -> dict[str, Any]:
    """What is asked of the plan, as far as it was given."""
    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: value for name, value in given.items() if value is not None}


def check(options: Namespace) -> None:
    """Refuse mistakes that can be told from the arguments alone.

    Raises:
        ValueError: An argument is out of range or of another form.
        FileNotFoundError: A file does not exist.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if "evaluate" in given:
        split("--evaluate", options.evaluate)
    judge = {"evaluate": "psnr"} if options.command == "demo" else {}
    Settings(**{**asked(options), **judge})
    if "model" in given:
        _check_model(options, given)
    if "weights" in given and not options.weights.is_file():
        raise FileNotFoundError(f"--weights must be a file, got {options.weights}")
    if "workers" in given and options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if given.get("refine") and "calibration" not in given:
        raise ValueError("--refine needs --calibration: batches for the model to be trained on")
    if "calibration" in given:
        if not options.calibration.endswith(ARCHIVE):
            split("--calibration", options.calibration)
        elif not Path(options.calibration).is_file():
            raise FileNotFoundError(
                f"--calibration must be a file or MODULE:FUNCTION, got {options.calibration}"
            )
    if "output" in given and options.output.is_file():
        raise ValueError(f"--output must be a folder, {options.output} is a file")


def _check_model(options: Namespace, given: dict[str, Any]) -> None:
    """Refuse a model that can't be read, and what does not belong to its kind."""
    is_program = options.model.endswith(PROGRAM)
    if not is_program:
        split("MODULE:FACTORY", options.model)
    elif not Path(options.model).is_file():
        raise FileNotFoundError(f"model must be a file or MODULE:FACTORY, got {options.model}")
    elif "weights" in given:
        raise ValueError(f"--weights is for MODULE:FACTORY, {options.model} holds its own")
    if options.command != "optimize":
        return
    if "input" in given and "call" in given:
        raise ValueError("--input is for one call and --call for each of several: give only one")
    if not is_program and not ("input" in given or "call" in given):
        raise ValueError("give the shapes of the inputs: --input for one call, or --call for each")
    if is_program and Path(options.model).resolve() == (options.output / EXPORTED).resolve():
        raise ValueError(f"--output must be another folder, the result would replace {EXPORTED}")
    if is_program and (options.device, options.dtype) != (DEVICE, DTYPE):
        raise ValueError(
            f"--device and --dtype are for MODULE:FACTORY, {options.model} has its own: export it "
            "anew for others"
        )


def split(what: str, text: str) -> tuple[str, str]:
    """Read MODULE:NAME.

    Raises:
        ValueError: It has another form.
    """
    module, _, name = text.partition(":")
    if not (module and name):
        raise ValueError(f"{what} must be given as MODULE:NAME, got {text!r}")
    return module, name


def _call(text: str) -> tuple[float, list[tuple[int, ...]]]:
    """Read the shapes of a call, such as 3*1x3x224x224,1x10, and how often it counts."""
    times, _, shapes = text.rpartition("*")
    try:
        count = float(times) if times else 1.0
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise argparse.ArgumentTypeError(f"{times!r} is not a number of times such as 3 or 0.5")
    return count, [_shape(shape) for shape in shapes.split(",")]


def _shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 1x3x224x224."""
    try:
        sizes = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1x3x224x224")
    return sizes
