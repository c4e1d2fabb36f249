"""What the commands do, one file for each."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable

from convfactor.cli.notes import listen


def find(options: Namespace) -> Callable[[Namespace], None]:
    """Load a command with all that it needs; results go to stdout, and to the files it says."""
    module = importlib.import_module(f"convfactor.cli.commands.{options.command}")
    listen(quiet="quiet" in options and options.quiet)
    run: Callable[[Namespace], None] = module.run
    return run
