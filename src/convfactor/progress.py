"""Progress on stderr while long work runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Called with what is being solved, the share of the work done and the error reached.
Told = Callable[[object, float, float], None]


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
