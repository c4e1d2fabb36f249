"""What the command line tells the person."""

from __future__ import annotations

import contextlib
import re
import sys

# The arguments of Python in messages, as far as their names are no words of English.
ARGUMENTS = re.compile(
    r"\b(model_tolerance|max_drop|higher_is_better|min_speedup|min_kernel_size|time_limit"
    r"|preserve_dc)\b(?![(.'])"
)


def say(text: str) -> None:
    """Tell the person; results alone go to stdout."""
    with contextlib.suppress(BrokenPipeError):  # nobody is left to be told
        print(f"convfactor: {text}", file=sys.stderr, flush=True)


def spoken(message: str) -> str:
    """Say a message of the Python interface with the names of the options."""
    message = re.sub(r"\bselect: '!([^']*)'", r"--skip '\1'", message)
    message = message.replace("select: '", "--select '")
    return ARGUMENTS.sub(lambda found: f"--{found[0].replace('_', '-')}", message)
