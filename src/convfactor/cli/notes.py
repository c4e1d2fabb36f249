"""What the person is told while a command works, and after it went well."""

from __future__ import annotations

import logging
from argparse import Namespace

from convfactor.cli.messages import say
from convfactor.progress import Show

logger = logging.getLogger("convfactor")


class Spoken(logging.Handler):
    """Writes records of the package to stderr, whatever that is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            say(record.getMessage())
        except Exception:
            self.handleError(record)


SPOKEN = Spoken()


def listen(quiet: bool) -> None:
    """Tell the person what the package logs.

    Args:
        quiet: Whether only what is wrong is told.
    """
    logger.addHandler(SPOKEN)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def note(text: str) -> None:
    """Tell the person what went well, unless they want quiet."""
    logger.info(text)


def shown(options: Namespace) -> Show:
    """How progress is shown; in a pipe by ``logging``, as everything else that is told."""
    if options.progress == "auto":
        return False if options.quiet else None
    chosen: Show = options.progress
    return chosen
