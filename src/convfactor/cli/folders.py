"""Folders that results are written to."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def made(folder: Path, *inner: str) -> Iterator[Callable[[], list[str]]]:
    """Make a folder that can be written to, and take it away where nothing came into it.

    Args:
        folder: The folder.
        *inner: Folders in it that may be left empty.

    Yields:
        What lists the files in it that were written since.

    Raises:
        OSError: It can't be made, or not be written to.
    """
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            start = os.fstat(probe.fileno()).st_mtime_ns

        def written() -> list[str]:
            files = [path for path in folder.iterdir() if path.is_file()]
            return sorted(path.name for path in files if path.stat().st_mtime_ns >= start)

        yield written
    except BaseException:
        for path in (*(folder / name for name in inner), *fresh):
            with contextlib.suppress(OSError):  # it was not made, or is not empty
                path.rmdir()
        raise
