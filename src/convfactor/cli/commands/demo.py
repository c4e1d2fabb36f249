"""Run the demo."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import convfactor
from convfactor.cli.folders import made
from convfactor.cli.interrupts import NOTHING, saying
from convfactor.cli.notes import shown
from convfactor.cli.workers import workers
from convfactor.demo import run as demonstration

convfactor.optimize  # noqa: B018 - loads what takes long, which can't be interrupted halfway


def run(options: Namespace) -> None:
    """Run the demo where its packages are and its folder can be written to."""
    output: Path = options.output
    demonstration.check_packages()
    with (
        made(output) as written,
        saying(lambda: _said(output, written())),
        workers(options.workers, {"max_drop"}) as executor,
    ):
        demonstration.demo(output, options.max_drop, executor, shown(options))


def _said(output: Path, written: list[str]) -> str:
    """What an interrupted demo leaves."""
    return f"{', '.join(written)} in {output} is all that was written" if written else NOTHING
