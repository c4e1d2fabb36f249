"""Run a command: read its arguments, and tell mistakes, interruptions and closed pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from convfactor.cli import interrupts
from convfactor.cli.arguments import parsers
from convfactor.cli.messages import say, spoken
from convfactor.cli.parsing import parse
from convfactor.errors import ToleranceError

MISSED, WRONG, INTERRUPTED, CLOSED = 1, 2, 128 + signal.SIGINT, 128 + 13  # 13 is SIGPIPE


def run(arguments: Sequence[str], own: bool) -> int:
    """Run what the arguments ask for.

    Args:
        arguments: Without the program's name.
        own: Whether the process is the program's own, and ends after this.

    Returns:
        The exit status.
    """
    status = INTERRUPTED
    try:
        status = _run(arguments)
        _flush()
    except ToleranceError as error:
        status = _fail(error, MISSED)
    except BrokenPipeError as error:
        status = CLOSED if _is_closed() else _fail(error, WRONG)
    except (ValueError, TypeError, OSError, ImportError) as error:
        status = _fail(error, WRONG)
    except KeyboardInterrupt as stop:
        say(f"interrupted; {stop or interrupts.NOTHING}")
    if own:
        interrupts.ignore()  # what is left takes down Python
    return status


def _run(arguments: Sequence[str]) -> int:
    """Check the arguments, and run the command."""
    with interrupts.at_once():
        options = parse(*parsers(), arguments)
        from convfactor.cli.checks import check

        check(options)
        from convfactor.cli import commands  # loads torch, which takes seconds

        command = commands.find(options)
    command(options)
    return 0


def _fail(error: Exception, status: int) -> int:
    """Report a user's mistake."""
    say(f"error: {spoken(str(error))}")
    return status


def _flush() -> None:
    """Write what is left, so that it is known whether anybody reads it."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _is_closed() -> bool:
    """Whether nobody reads stdout any more; what is left is then dropped."""
    try:
        _flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return True
    return False
