"""Results that go to a file, or to stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from convfactor.cli.interrupts import NOTHING, saying
from convfactor.cli.notes import note
from convfactor.cli.parsing import STREAM
from convfactor.plans.storage import replace_file
from convfactor.terminal import is_terminal


def _write(option: str, target: str, data: bytes | str) -> None:
    """Write a file as a whole or not at all; or to stdout.

    Args:
        option: That asks for it.
        target: The file, or "-".
        data: What to write.

    Raises:
        ValueError: Bytes are for a terminal.
        OSError: The file can't be written.
    """
    if target == STREAM:
        if sys.stdout is None:
            raise ValueError(f"{option} -: stdout is closed, give a file or a pipe")
        if isinstance(data, str):
            print(data, end="")
        elif is_terminal(sys.stdout):
            raise ValueError(f"{option} -: a terminal does not show this, give a file or a pipe")
        else:
            sys.stdout.buffer.write(data)
        return
    try:
        data = data.encode() if isinstance(data, str) else data
        path = Path(target)
        if path.exists() and not path.is_file():  # a pipe or a device keeps its place
            path.write_bytes(data)
        else:
            replace_file(path.resolve(), data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OSError(f"{option} {target} can't be written: {reason}") from error
    note(f"wrote {target}")


@contextlib.contextmanager
def writing() -> Iterator[Callable[[str, str, bytes | str], None]]:
    """Write results, each as a whole or not at all, and say at Ctrl-C which files are there.

    Yields:
        What writes one, given the option that asks for it, the file or "-", and what to write;
        ``ValueError`` where bytes are for a terminal, ``OSError`` where a file can't be written.
    """
    names: list[str] = []

    def write(option: str, target: str, data: bytes | str) -> None:
        _write(option, target, data)
        if target != STREAM:
            names.append(target)

    with saying(lambda: f"{', '.join(names)} is all that was written" if names else NOTHING):
        yield write
