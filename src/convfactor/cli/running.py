"""Run a command: read its arguments, and tell mistakes, interruptions and closed pipes."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

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
    if own and sys.stderr is None:  # closed before the start; print would take stdout for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    status, options = INTERRUPTED, Namespace()
    try:
        try:
            with interrupts.at_once():
                options = parse(*parsers(), arguments)
                command = _loaded(options)
        except SystemExit as stop:  # argparse has printed its help, or said what is wrong
            command, status = None, int(stop.code or 0)
        if command is not None:
            command(options)
            status = 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        status = CLOSED
    except ToleranceError as error:
        status = _fail(error, options, MISSED)
    except (ValueError, TypeError, OSError, ImportError) as error:
        status = _fail(error, options, WRONG)
    except SystemExit as stop:  # of the user's code
        say(f"error: the model or evaluate ended the program: SystemExit {stop.code!r}")
        status = WRONG
    except KeyboardInterrupt as stop:
        status = INTERRUPTED
        say(f"interrupted; {str(stop) or interrupts.NOTHING}")
    if own:
        interrupts.ignore()  # what is left takes down Python
        _drop()
    return status


def _loaded(options: Namespace) -> Callable[[Namespace], None]:
    """Check the arguments, and load the command."""
    from convfactor.cli.checks import check

    check(options)
    from convfactor.cli import commands  # loads torch, which takes seconds

    return commands.find(options)


def _fail(error: Exception, options: Namespace, status: int) -> int:
    """Report a user's mistake."""
    say(f"error: {spoken(str(error), options)}")
    return status


def _drop() -> None:
    """Drop what can't be written, of which Python would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
        except AttributeError:  # it was closed before the start
            continue
