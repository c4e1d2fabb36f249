"""What the terminal is like, and what is there in its place in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from rich.console import Console

# Columns where there is no terminal: as wide as logs and code are read.
WIDTH = 120


def width(file: TextIO | None = None) -> int:
    """Columns: what ``COLUMNS`` says, those of a terminal, a fixed number in a pipe.

    Args:
        file: The stream; None for stdout.
    """
    file = file or sys.stdout
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    if file is None or not is_terminal(file):
        return WIDTH
    with contextlib.suppress(ValueError, OSError):  # no terminal after all
        return os.get_terminal_size(file.fileno()).columns or WIDTH
    return WIDTH


def is_terminal(file: TextIO | None) -> bool:
    """Whether a stream is a terminal; one that is closed or absent is none."""
    with contextlib.suppress(AttributeError, ValueError):
        return file is not None and file.isatty()
    return False


def console(file: TextIO, columns: int | None = None) -> Console:
    """A console of rich that writes no escape sequence in a pipe, and none for ``NO_COLOR``.

    Args:
        file: Where it writes.
        columns: How wide it is; None for as wide as rich finds it.
    """
    if os.environ.get("NO_COLOR"):  # which to rich still allows bold letters
        return Console(file=file, width=columns, color_system=None, highlight=False)
    return Console(file=file, width=columns, highlight=False)


def has_colours(file: TextIO | None = None) -> bool:
    """Whether a stream shows colours, and they are wanted; None for stdout."""
    file = file or sys.stdout
    return file is not None and console(file).color_system not in (None, "windows")
