"""The command line."""

# Whatever is imported here can't be interrupted without a traceback: see `interrupts`.
from __future__ import annotations

import sys


def main(arguments: list[str] | tuple[str, ...] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 1 where ``--strict`` finds the tolerance missed, 2 for wrong usage, 130
        where it was interrupted, and 141 where nobody reads what it prints.
    """
    try:
        from convfactor.cli.running import run

        return run(sys.argv[1:] if arguments is None else arguments, own=arguments is None)
    except KeyboardInterrupt:  # before anything was done
        print("convfactor: interrupted; nothing was written", file=sys.stderr)
        return 130
