"""Processes that solve, which Ctrl-C ends with the run."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Collection, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess

from convfactor.cli.interrupts import held_back


class Worker(SpawnProcess):
    """A process that does not hear of Ctrl-C, for which it would print a traceback."""

    def start(self) -> None:
        """Start it."""
        with held_back():
            super().start()


class Workers(SpawnContext):
    """Starts such processes; forked, they would share the threads of torch, which are gone."""

    Process = Worker


@contextlib.contextmanager
def workers(count: int, wanted: Collection[str]) -> Iterator[Executor | None]:
    """Processes to solve in, where they are used.

    Args:
        count: How many.
        wanted: Names of what is asked of the plan.
    """
    if count == 1 or not {"model_tolerance", "max_drop"}.intersection(wanted):
        yield None
        return
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, Workers()) as executor:
        try:
            yield executor
        except BrokenExecutor as error:
            raise ChildProcessError(
                "a process that solves was ended, often for want of memory: give fewer --workers"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # what they solve is of no use any more
            raise
