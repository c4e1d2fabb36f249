"""What the command line tells the person."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
from argparse import Namespace
from pickle import UnpicklingError

# The arguments of Python in messages, as far as their names are no words of English.
ARGUMENTS = re.compile(
    r"(?<!-)\b(model_tolerance|max_drop|higher_is_better|min_speedup|min_kernel_size|time_limit"
    r"|preserve_dc)\b(?![(.'])"
)
POSITIONAL = {"model", "kernel", "shape", "folder", "command"}
LONGEST = 400  # of what others say


def say(text: str) -> None:
    """Tell the person; results alone go to stdout."""
    with contextlib.suppress(BrokenPipeError):  # nobody is left to be told
        print(f"convfactor: {text}", file=sys.stderr, flush=True)


def spoken(message: str, options: Namespace) -> str:
    """Say a message of the Python interface with the names of the options.

    Args:
        message: It may begin with the name of an argument.
        options: What the command takes.
    """
    message = re.sub(r"\bselect: '!([^']*)'", r"--skip '\1'", message)
    message = message.replace("select: '", "--select '")
    first = re.match(r"(\w+)(?= must |=)", message)
    if first and first[1] in vars(options).keys() - POSITIONAL:
        message = f"--{first[1].replace('_', '-')}{message[first.end() :]}"
    return ARGUMENTS.sub(lambda found: f"--{found[0].replace('_', '-')}", message)


def told(error: BaseException) -> str:
    """An error's kind and message on one line, whatever a library or a user's code raises."""
    if isinstance(error, UnpicklingError):
        return "it is no file of tensors, or holds more than these, which is not loaded for safety"
    text = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
