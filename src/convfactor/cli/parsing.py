"""How arguments are read: an error is one line that names the way out, help ends in examples."""

from __future__ import annotations

import argparse
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from convfactor.cli.messages import say
from convfactor.errors import did_you_mean

STREAM = "-"  # stdin where a file is read, stdout where one is written
DEVICE, DTYPE = "cpu", "float32"
DTYPES = ("float32", "float16", "bfloat16", "float64")


def piped() -> bytes:
    """Read stdin to its end.

    Raises:
        ValueError: It is closed.
    """
    if sys.stdin is None:
        raise ValueError("stdin is closed, and - stands for it: give a file or a pipe")
    return sys.stdin.buffer.read()


class Parser(argparse.ArgumentParser):
    """Reads the arguments of the program, or of one of its commands."""

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse would not say that nobody reads it, or that the disk is full."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and end."""
        say(f"error: {message}; see {self.prog} --help")
        sys.exit(2)


def parse(
    parser: Parser, commands: dict[str, Parser], arguments: Sequence[str]
) -> argparse.Namespace:
    """Read the arguments; names that are not there are told with those that are alike.

    Args:
        parser: Of the program.
        commands: Of each command.
        arguments: Without the program's name.
    """
    command = arguments[0] if arguments else ""
    reader = commands.get(command, parser)
    if reader is parser and not command.startswith("-"):
        got = f", got {command!r}" if command else ""
        parser.error(
            f"COMMAND must be one of {', '.join(commands)}{got}{did_you_mean(command, commands)}"
        )
    if "--" not in arguments:
        _check_options(reader, parser, arguments)
    return parser.parse_args(arguments)


def _check_options(reader: Parser, parser: Parser, arguments: Sequence[str]) -> None:
    """Refuse an option that is not there, before one that is missing for its sake is asked for."""
    known = [
        name
        for action in (*reader._actions, *parser._actions)
        for name in action.option_strings
        if name.startswith("--")
    ]
    for given in arguments:
        name = given.split("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in known):
            reader.error(f"there is no option {name}{did_you_mean(name, known)}")


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number such as 0.05") from None


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number such as 3") from None


def one_of(*names: str) -> Callable[[str], str]:
    """Read one of some names."""

    def read(text: str) -> str:
        if text in names:
            return text
        raise ArgumentTypeError(
            f"{text!r} is none of {', '.join(names)}{did_you_mean(text, names)}"
        )

    return read


def call(text: str) -> tuple[float, list[tuple[int, ...]]]:
    """Read the shapes of a call, such as 3*1x3x224x224,1x10, and how often it counts."""
    times, _, shapes = text.rpartition("*")
    try:
        count = float(times) if times else 1.0
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise ArgumentTypeError(f"{times!r} is not a number of times such as 3 or 0.5")
    return count, [shape(part) for part in shapes.split(",")]


def shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 1x3x224x224."""
    return _sizes(text, "x", "a shape such as 1x3x224x224")


def kernel_shape(text: str) -> tuple[int, int, int, int]:
    """Read the shape of a weight."""
    what = "the shape of a weight, C_OUTxC_INxHEIGHTxWIDTH such as 64x32x9x9"
    outputs, inputs, height, width = _sizes(text, "x", what, {4})
    return outputs, inputs, height, width


def pair(text: str) -> tuple[int, int]:
    """Read one number for both sides, or two."""
    sides = _sizes(text, "x", "a number such as 2, or two, vertical and horizontal, as 2x1", {1, 2})
    return sides[0], sides[-1]


def widths(text: str) -> tuple[int, ...]:
    """Read channel counts."""
    return _sizes(text, ",", "hidden channel counts such as 8,16")


def _sizes(text: str, mark: str, what: str, counts: set[int] | None = None) -> tuple[int, ...]:
    """Read some positive whole numbers."""
    try:
        sizes = tuple(int(part) for part in text.split(mark))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or (counts is not None and len(sizes) not in counts):
        raise ArgumentTypeError(f"{text!r} is not {what}")
    return sizes
