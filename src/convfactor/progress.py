"""Progress while long work runs: a bar on a terminal, and elsewhere a line every so often."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from convfactor import terminal

# Called with what is being solved, the share of the work done and the error reached.
Told = Callable[[object, float, float], None]
# How progress is shown: see ``reporting``.
Show = bool | Literal["bar", "lines"] | None

EVERY = 10.0  # seconds from one line to the next
logger = logging.getLogger(__name__)


def check_progress(show: object) -> None:
    """Refuse what does not say how progress is shown.

    Raises:
        ValueError: It does not.
    """
    if not (show is None or isinstance(show, bool) or show in ("bar", "lines")):
        raise ValueError(f"progress must be True, False, None, 'bar' or 'lines', got {show!r}")


@contextmanager
def reporting(show: Show) -> Iterator[Progress]:
    """Open a progress display.

    Args:
        show: "bar" draws bars on stderr, "lines" writes a line there every so often, True does the
            one on a terminal and the other elsewhere, and False does neither. None draws bars on a
            terminal, and elsewhere gives the lines to ``logging``, at level INFO.

    Raises:
        ValueError: ``show`` is none of these.
    """
    check_progress(show)
    console = terminal.console(sys.stderr)
    # rich takes a pipe for a terminal where colours are forced, as in logs of CI.
    live = terminal.is_terminal(sys.stderr) and not console.is_dumb_terminal
    live = live or (show is True and console.is_jupyter)
    bars = show == "bar" or (show in (True, None) and live)
    tell: Callable[[str], object] | None = None
    if show == "lines" or (show is True and not bars):
        tell = _write
    elif show is None and not bars and logger.isEnabledFor(logging.INFO):
        tell = logger.info
    with _bars(console, not bars) as progress, _telling(progress, tell):
        yield progress


def steps(progress: Progress, description: str, names: Sequence[str]) -> Iterator[Told]:
    """Go through steps, naming each, and what is solved in it, on the display.

    Args:
        progress: The display.
        description: What is done.
        names: Of the steps.

    Yields:
        For each step, what to tell of its solves.
    """
    task = progress.add_task(description, total=len(names), detail="")
    for name in names:

        def tell(what: object, share: float, error: float, name: str = name) -> None:
            detail = f"{name}: {what}, {share:.0%} done, error {error:.2%}"
            progress.update(task, detail=detail)

        progress.update(task, detail=name)
        yield tell
        progress.advance(task)
    progress.update(task, detail="")


@contextmanager
def step(progress: Progress, description: str) -> Iterator[None]:
    """Do something of which nobody knows how long it takes.

    Args:
        progress: The display.
        description: What is done.
    """
    task = progress.add_task(description, total=None, detail="")
    yield
    progress.update(task, total=1, completed=1)


def tell_regularly(
    progress: Progress, tell: Callable[[str], object], wait: Callable[[], bool]
) -> None:
    """Tell where work is, again and again, until it is over.

    Args:
        progress: The display of the work.
        tell: Takes a line.
        wait: Waits until it is time for the next line; whether the work is over then.
    """
    start = progress.get_time()
    with contextlib.suppress(OSError, ValueError):  # nobody reads the lines any more
        while not wait():
            tell(_state(progress, progress.get_time() - start))


def _bars(console: Console, hidden: bool) -> Progress:
    """The display; what is hidden still knows where the work is."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[detail]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        expand=True,  # so that what does not fit is cut off the last column
        disable=hidden,
        transient=console.is_terminal,  # elsewhere, as in a log, the last state is all there is
    )


@contextmanager
def _telling(progress: Progress, tell: Callable[[str], object] | None) -> Iterator[None]:
    """Tell where work is while it runs, also while it is busy with one thing; None tells nobody."""
    if tell is None:
        yield
        return
    over = threading.Event()
    wait = functools.partial(over.wait, EVERY)
    thread = threading.Thread(target=tell_regularly, args=(progress, tell, wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(line: str) -> None:
    """Write a line to stderr."""
    print(f"convfactor: {line}", file=sys.stderr, flush=True)


def _state(progress: Progress, seconds: float) -> str:
    """Time, stage and layer in a line."""
    time = str(datetime.timedelta(seconds=int(seconds)))
    tasks = progress.tasks
    if not tasks:
        return time
    now = next((task for task in reversed(tasks) if not task.finished), tasks[-1])
    count = "" if now.total is None else f" {now.completed:.0f}/{now.total:.0f}"
    detail = f", {now.fields['detail']}" if now.fields["detail"] else ""
    return f"{time} {now.description}{count}{detail}"
