"""What the commands for one kernel and for this machine take, and what is wrong with it."""

from __future__ import annotations

import argparse
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from convfactor.cli.parsing import (
    DEVICE,
    DTYPE,
    DTYPES,
    STREAM,
    Parser,
    kernel_shape,
    number,
    one_of,
    pair,
    whole,
    widths,
)
from convfactor.plans.settings import OBJECTIVES, TOLERANCE, Settings
from convfactor.scalars import check_fraction

PICTURES = (".png", ".svg", ".pdf")
ARCHIVES = (".npz", ".safetensors")
PROGRESS = ("auto", "bar", "lines")
SHELLS = ("bash", "zsh", "tcsh")


class Completion(argparse.Action):
    """Prints a script that completes commands and options in a shell."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print it and end."""
        try:
            import shtab  # an extra that nothing else needs
        except ImportError:
            parser.error(
                "--print-completion needs shtab, which is not installed: "
                "pip install 'convfactor[completion]'"
            )
        print(shtab.complete(parser, shell=values))
        parser.exit()


def describe_completion(program: Parser) -> None:
    """The option that belongs to no command."""
    program.add_argument(
        "--print-completion", action=Completion, type=one_of(*SHELLS),
        metavar=f"{{{','.join(SHELLS)}}}",
        help="print a script that completes commands and options in a shell; needs the extra "
        "'completion'",
    )  # fmt: skip


def _describe_factorize(factorize: Parser) -> None:
    """One kernel."""
    factorize.add_argument(
        "kernel", metavar="FILE|FILTER",
        help="a file, .npy, .npz, .pt, .safetensors or an image, - for stdin; or one of the "
        "filters below",
    )  # fmt: skip
    factorize.add_argument(
        "--tensor", metavar="NAME",
        help="which of the tensors in the file; default: the only one that may be a kernel",
    )  # fmt: skip
    asked = factorize.add_argument_group(
        "what is asked", f"--stages or --widths; --tolerance {TOLERANCE:g} where nothing is"
    )
    asked.add_argument(
        "--tolerance", type=number, metavar="FRACTION",
        help="largest relative error, such as 0.01 for 1 %%; the cheapest cascade within it is "
        "taken, and beside --stages or --widths it is only checked",
    )  # fmt: skip
    asked.add_argument(
        "--stages", type=whole, metavar="N", help="the best cascade of so many stages"
    )
    asked.add_argument(
        "--widths", type=widths, metavar="8,16",
        help="the best cascade with these hidden channel counts, one stage more",
    )  # fmt: skip
    asked.add_argument(
        "--strict", action="store_true",
        help="end with status 1 where --tolerance is missed; default: print what comes nearest",
    )  # fmt: skip
    _describe_convolution(factorize)
    factorize.add_argument(
        "--preserve-dc", action="store_true",
        help="keep the sum of every kernel exactly; default: it may change within the error",
    )  # fmt: skip
    factorize.add_argument(
        "--seed", type=whole, default=0, metavar="N",
        help="of the random starts; default: %(default)s",
    )  # fmt: skip
    factorize.add_argument(
        "--time-limit", type=number, default=10.0, metavar="SECONDS",
        help="processor time after which the best so far is taken; default: %(default)g",
    )  # fmt: skip
    _describe_files(factorize)
    describe_progress(factorize)
    _describe_json(factorize)


def _describe_files(factorize: Parser) -> None:
    """Where a picture and weights go."""
    factorize.add_argument(
        "--plot", metavar="FILE",
        help="draw kernel, stages and error, .png, .svg or .pdf, - for PNG on stdout in place of "
        "the text; needs the extra 'plots'; default: not drawn",
    )  # fmt: skip
    factorize.add_argument(
        "--output", metavar="FILE",
        help="write the weights of the stages, .npz or .safetensors, - for .npz on stdout in place "
        "of the text; default: not written",
    )  # fmt: skip


def _describe_bench(bench: Parser) -> None:
    """The prices of a kernel's structures."""
    bench.add_argument(
        "shape", type=kernel_shape, metavar="SHAPE",
        help="of the weight as torch stores it, outputs x inputs of a group x height x width, such "
        "as 64x32x9x9",
    )  # fmt: skip
    bench.add_argument(
        "--size", type=pair, default=(256, 256), metavar="PIXELS",
        help="of the input image, one number or HEIGHTxWIDTH; default: 256",
    )  # fmt: skip
    bench.add_argument(
        "--batch", type=whole, default=1, metavar="N", help="images at a time; default: %(default)s"
    )
    _describe_convolution(bench)
    describe_place(bench)
    bench.add_argument(
        "--objective", type=one_of(*OBJECTIVES), default=Settings.objective,
        metavar=f"{{{','.join(OBJECTIVES)}}}",
        help="measured time, or multiplies, which are counted; default: %(default)s",
    )  # fmt: skip
    bench.add_argument(
        "--min-speedup", type=number, default=Settings.min_speedup, metavar="FACTOR",
        help="how many times as fast it must be to pay; default: %(default)s",
    )  # fmt: skip
    describe_progress(bench)
    _describe_json(bench)


def _describe_convolution(command: Parser) -> None:
    """The integers of a convolution beside its kernel."""
    for name, what in (
        ("stride", "step of the output in pixels"),
        ("dilation", "distance of neighbouring taps in pixels"),
    ):
        command.add_argument(
            f"--{name}", type=pair, default=(1, 1), metavar="N",
            help=f"{what}, or two as 2x1 (vertical, horizontal); default: 1",
        )  # fmt: skip
    command.add_argument(
        "--groups", type=whole, default=1, metavar="N",
        help="of channels; those of the outputs for a depthwise kernel; default: %(default)s",
    )  # fmt: skip


def describe_place(command: Parser) -> None:
    """Where it runs, and in what it computes."""
    command.add_argument(
        "--device", default=DEVICE, help="where it runs, as torch names it; default: %(default)s"
    )
    command.add_argument(
        "--dtype", type=one_of(*DTYPES), default=DTYPE, metavar=f"{{{','.join(DTYPES)}}}",
        help="in what it computes; default: %(default)s",
    )  # fmt: skip


def describe_progress(command: Parser) -> None:
    """What is told on stderr while it works."""
    command.add_argument(
        "--progress", type=one_of(*PROGRESS), default="auto", metavar=f"{{{','.join(PROGRESS)}}}",
        help="on stderr: a bar, a line every ten seconds, or auto: a bar on a terminal and lines "
        "elsewhere; default: %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--quiet", action="store_true",
        help="tell only what is wrong, and no progress but by --progress bar or lines; default: "
        "tell also what was written",
    )  # fmt: skip


def _describe_env(env: Parser) -> None:
    """This machine."""
    _describe_json(env)


def _describe_json(command: Parser) -> None:
    """Print for programs."""
    command.add_argument(
        "--json", action="store_true", help="print JSON in place of the text; default: the text"
    )


COMMANDS = {
    "factorize": (
        "factorize one kernel, and show the stages and the error", _describe_factorize
    ),
    "bench": (
        "time what could replace a kernel: whether a cascade is worth it on this machine",
        _describe_bench,
    ),
    "env": ("print versions, processor and threads, for reports of bugs", _describe_env),
}  # fmt: skip


def check_kernel(options: Namespace) -> None:
    """Refuse what can't be asked of a kernel, and a file or a filter that is not there.

    Raises:
        ValueError: An argument is out of range, or arguments do not fit together.
        FileNotFoundError: There is neither such a file nor such a filter.
    """
    if options.stages is not None and options.widths is not None:
        raise ValueError("--stages and --widths both say what the cascade is: give one of them")
    if options.tolerance is not None:
        check_fraction("--tolerance", options.tolerance)
    _check_counts(options, "groups", *(["stages"] if options.stages is not None else []))
    if not options.time_limit > 0:
        raise ValueError(f"--time-limit must be above 0 seconds, got {options.time_limit:g}")
    if options.strict and options.tolerance is None and (options.stages or options.widths):
        raise ValueError("--strict needs --tolerance, of which it says whether it was missed")
    for name, endings in (("plot", PICTURES), ("output", ARCHIVES)):
        given = getattr(options, name)
        if given not in (None, STREAM) and Path(given).suffix.lower() not in endings:
            raise ValueError(f"--{name} must end in {', '.join(endings)}, or be -, got {given}")
    streams = [f"--{name}" for name in ("plot", "output") if getattr(options, name) == STREAM]
    streams += ["--json"] if options.json else []
    if len(streams) > 1:
        raise ValueError(f"{' and '.join(streams)} can't both write to stdout: give one a file")
    from convfactor.cli.kernels import check_source  # loads NumPy

    check_source(options.kernel, options.tensor)


def check_bench(options: Namespace) -> None:
    """Refuse what can't be timed.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_counts(options, "batch", "groups")
    if options.shape[0] % options.groups:
        raise ValueError(
            f"--groups must divide the {options.shape[0]} outputs, got {options.groups}"
        )
    if not 1 <= options.min_speedup < math.inf:
        raise ValueError(f"--min-speedup must be at least 1, got {options.min_speedup:g}")


def _check_counts(options: Namespace, *names: str) -> None:
    """Refuse numbers below 1."""
    for name in names:
        value = getattr(options, name)
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
