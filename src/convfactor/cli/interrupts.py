"""What Ctrl-C does: it ends a run with what is true, and never with a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NOTHING = "nothing was written"


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """End the process at Ctrl-C, while modules are loaded: halfway some raise, some hang."""
    if not _is_usual():
        yield
        return
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def saying(what: Callable[[], str]) -> Iterator[None]:
    """Say at Ctrl-C what is true.

    Args:
        what: Finds out what is kept, or written.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or what()) from None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let a process that is started inside never hear of Ctrl-C: this one ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore Ctrl-C from now on."""
    if _is_usual():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_usual() -> bool:
    """Whether Ctrl-C is answered here, and as Python does; a job in the background ignores it."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _end(number: int, frame: FrameType | None) -> None:
    """End, past everything that would be in a state to complain."""
    with contextlib.suppress(OSError):
        os.write(2, f"convfactor: interrupted; {NOTHING}\n".encode())
    os._exit(128 + number)
