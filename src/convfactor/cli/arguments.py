"""What the commands for models take, and what is wrong with it whatever the model is."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import convfactor
from convfactor.cli import kernel_arguments
from convfactor.cli.examples import EXAMPLES
from convfactor.cli.parsing import STREAM, Parser, call, number, one_of, shape, whole
from convfactor.environment import usable_cores
from convfactor.plans.settings import OBJECTIVES, STRUCTURES, TOLERANCE, Settings

ARCHIVE = ".npz"
PROGRAM = ".pt2"
EXPORTED = f"model{PROGRAM}"
REPORTS = {
    "html": "a page with pictures of the kernels",
    "markdown": "the table for GitHub",
    "csv": "the figures for other programs",
    "json": "the whole record",
}
MODEL = "MODULE:NAME|FILE.pt2"


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Describe the program, and its commands by name."""
    program = Parser(
        prog="convfactor",
        description="Make trained PyTorch models faster: large convolution kernels become cascades "
        "of 3x3 ones, within a tolerance and only where that is measured to be faster.",
        epilog="'convfactor COMMAND --help' tells more of each, with examples.",
    )
    program.add_argument("--version", action="version", version=convfactor.__version__)
    kernel_arguments.describe_completion(program)
    group = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Parser] = {}
    for name, (summary, describe) in COMMANDS.items():
        command = group.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        describe(command)
        commands[name] = command
    return program, commands


def _describe_demo(demo: Parser) -> None:
    """The demo."""
    demo.add_argument(
        "--output", type=Path, default=Path("convfactor-demo"), metavar="FOLDER",
        help="where the plan, the page and the picture go; default: %(default)s",
    )  # fmt: skip
    demo.add_argument(
        "--max-drop", type=number, default=0.1, metavar="DB",
        help="by how many dB of PSNR the network may get worse; default: %(default)s",
    )  # fmt: skip
    _describe_workers(demo)
    kernel_arguments.describe_progress(demo)


def _describe_show(show: Parser) -> None:
    """A plan that was saved."""
    show.add_argument("folder", type=Path, metavar="FOLDER", help="where a plan was saved")
    for name, what in REPORTS.items():
        show.add_argument(
            f"--{name}", metavar="FILE", nargs="?", const=STREAM,
            help=f"write {what} as well; without FILE or with - to stdout, in place of the table; "
            "default: not written",
        )  # fmt: skip
    show.add_argument(
        "--model", metavar=MODEL,
        help="the original, for its kernels in --html; default: the pictures are without them",
    )  # fmt: skip
    show.add_argument(
        "--weights", metavar="FILE",
        help="weights of --model, .safetensors, .pt or .pth, - for stdin; default: those that it "
        "is made with",
    )  # fmt: skip


def _describe_optimize(optimize: Parser) -> None:
    """A user's model: what it is, what is asked, and where the result goes."""
    _describe_model(optimize)
    _describe_budget(optimize)
    _describe_settings(optimize)
    optimize.add_argument(
        "--json", action="store_true",
        help="print the outcome as JSON, times in seconds, in place of the table, which goes to "
        "stderr; default: the table",
    )  # fmt: skip


def _describe_model(optimize: Parser) -> None:
    """What is optimized, on what, and where the result goes."""
    optimize.add_argument(
        "model", metavar=MODEL,
        help="the model, or a class or function that makes it, in the current folder or installed; "
        "or a program that torch.export has saved",
    )  # fmt: skip
    optimize.add_argument(
        "--weights", metavar="FILE",
        help="weights to load, .safetensors, .pt or .pth, - for stdin; default: those that the "
        "model is made with",
    )  # fmt: skip
    optimize.add_argument(
        "--input", type=shape, action="append", metavar="1x3x224x224",
        help="shape of an input; repeat it for several inputs; default: those of a program",
    )  # fmt: skip
    optimize.add_argument(
        "--call", type=call, action="append", metavar="[TIMES*]1x3x224x224[,1x10]",
        help="shapes of the inputs of a call, in place of --input, and how often it counts (once "
        "unless said); repeat it for several calls, whose times are summed; default: one call",
    )  # fmt: skip
    optimize.add_argument(
        "--calibration", metavar="FILE.npz|MODULE:NAME",
        help="arrays, each a batch as the model takes it, - for stdin; or batches, or a function "
        "that yields them; default: none, the error is that of the weights",
    )  # fmt: skip
    optimize.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where everything is written"
    )
    optimize.add_argument(
        "--select", action="append", default=[], metavar="PATTERN",
        help="replace only the layers of this name, or inside the module of this name; * stands "
        "for anything; repeat it for several; default: all",
    )  # fmt: skip
    optimize.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN",
        help="keep the layers of this name, or inside the module of this name; default: none",
    )  # fmt: skip
    kernel_arguments.describe_place(optimize)


def _describe_budget(optimize: Parser) -> None:
    """By how much the model may get worse."""
    budget = optimize.add_argument_group(
        "budget", f"one of these; --tolerance {TOLERANCE:g} where none is"
    )
    budget.add_argument(
        "--tolerance", type=number, metavar="FRACTION",
        help="largest relative error of a layer, such as 0.02 for 2 %%",
    )  # fmt: skip
    budget.add_argument(
        "--model-tolerance", type=number, metavar="FRACTION",
        help="largest relative error of the model's output, such as 0.02 for 2 %%",
    )  # fmt: skip
    budget.add_argument(
        "--evaluate", metavar="MODULE:NAME",
        help="function of a model that says how good it is; with --max-drop",
    )  # fmt: skip
    budget.add_argument(
        "--max-drop", type=number, metavar="AMOUNT",
        help="by how much the model may get worse in --evaluate, in its unit",
    )  # fmt: skip
    budget.add_argument(
        "--lower-is-better", dest="higher_is_better", action="store_false",
        help="a good model has a low value in --evaluate; default: a high one",
    )  # fmt: skip
    budget.add_argument(
        "--refine", action=argparse.BooleanOptionalAction,
        help="train what is replaced to match the original, without labels; default: with a "
        "budget for the model and --calibration",
    )  # fmt: skip
    budget.add_argument(
        "--time-limit", type=number, metavar="SECONDS",
        help="then take the best plan so far, where the budget is the model's; default: none",
    )  # fmt: skip
    budget.add_argument(
        "--strict", action="store_true",
        help="end with status 1 and without a result where the budget is missed; default: keep "
        "what misses it",
    )  # fmt: skip
    _describe_workers(budget)


def _describe_settings(optimize: Parser) -> None:
    """What else is asked of the plan."""
    optimize.add_argument(
        "--min-kernel-size", type=whole, default=Settings.min_kernel_size, metavar="TAPS",
        help="longer side from which a kernel is large; default: %(default)s",
    )  # fmt: skip
    optimize.add_argument(
        "--min-speedup", type=number, default=Settings.min_speedup, metavar="FACTOR",
        help="how many times as fast a layer must get; default: %(default)s",
    )  # fmt: skip
    for name, known, what in (
        ("objective", OBJECTIVES, "what counts: measured time, or multiplies"),
        ("structures", STRUCTURES, "what is tried: all forms, or dense stages up to 3x3 alone"),
    ):
        optimize.add_argument(
            f"--{name}", type=one_of(*known), default=getattr(Settings, name),
            metavar=f"{{{','.join(known)}}}", help=f"{what}; default: %(default)s",
        )  # fmt: skip
    optimize.add_argument(
        "--seed", type=whole, default=Settings.seed, metavar="N",
        help="of everything drawn at random; default: %(default)s",
    )  # fmt: skip
    kernel_arguments.describe_progress(optimize)


def _describe_workers(command: Any) -> None:
    """Where it is solved."""
    command.add_argument(
        "--workers", type=whole, default=usable_cores(), metavar="N",
        help="processes that solve, where the budget is the model's; default: all %(default)s "
        "cores",
    )  # fmt: skip


COMMANDS = {
    "demo": ("optimize a small super-resolution network", _describe_demo),
    "optimize": ("optimize a model of your own", _describe_optimize),
    "show": ("print the table of a saved plan", _describe_show),
    **kernel_arguments.COMMANDS,
}


def asked(options: Namespace) -> dict[str, Any]:
    """What is asked of the plan, as far as it was given."""
    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: value for name, value in given.items() if value is not None}
