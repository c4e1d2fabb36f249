"""What the command line tells the person."""

from __future__ import annotations

import logging
import sys

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


def say(text: str) -> None:
    """Tell the person; results alone go to stdout."""
    print(f"convfactor: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Tell the person what went well, unless they want quiet."""
    logger.info(text)
