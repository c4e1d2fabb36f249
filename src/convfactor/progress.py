"""Progress on stderr while long work runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def reporting(show: bool | None) -> Iterator[Progress]:
    """Open a progress display.

    Args:
        show: Whether to show it; None shows it on a terminal only.
    """
    console = Console(stderr=True)
    hidden = not (console.is_terminal if show is None else show)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        disable=hidden,
        transient=console.is_terminal,  # elsewhere, as in a log, the last state is all there is
    ) as progress:
        yield progress
