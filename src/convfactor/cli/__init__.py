"""The command line."""

from __future__ import annotations

from collections.abc import Sequence

from convfactor.cli.arguments import check, parser
from convfactor.cli.messages import say
from convfactor.errors import ToleranceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 1 where ``--strict`` finds the tolerance missed, 2 for wrong usage.
    """
    options = parser().parse_args(arguments)
    try:
        check(options)
        from convfactor.cli import commands  # loads torch, which takes seconds

        commands.run(options)
    except ToleranceError as error:
        return _fail(error, 1)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        say("interrupted; what was decided is kept, run the same command again to go on")
        return 130
    return 0


def _fail(error: Exception, status: int) -> int:
    """Report a user's mistake."""
    say(f"error: {error}")
    return status
