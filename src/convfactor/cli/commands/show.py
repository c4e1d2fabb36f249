"""Show a saved plan."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from convfactor.cli.arguments import PROGRAM, REPORTS
from convfactor.cli.given import read_model, read_program
from convfactor.cli.parsing import STREAM
from convfactor.cli.streams import writing
from convfactor.errors import did_you_mean
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE
from convfactor.plans.tables import show


def run(options: Namespace) -> None:
    """Print a saved plan, or write it in other forms."""
    plan = _loaded(options)
    model: Any = None
    if options.model is not None and options.model.endswith(PROGRAM):
        model = read_program(options.model)
    elif options.model is not None:
        model = read_model(options.model, options.weights)
    targets = {name: getattr(options, name) for name in REPORTS}
    if STREAM not in targets.values():
        show(plan)
    with writing() as write:
        for name, target in targets.items():
            if target is not None:
                extra = {"model": model} if name == "html" else {}
                write(f"--{name}", target, getattr(plan, f"to_{name}")(**extra))


def _loaded(options: Namespace) -> Plan:
    """Read the plan, or say where there are others."""
    folder = options.folder
    if not (folder / PLAN_FILE).is_file():
        beside = [str(path.parent) for path in folder.parent.glob(f"*/{PLAN_FILE}")]
        near = did_you_mean(str(folder), beside) or (
            f"; there are plans in {', '.join(sorted(beside)[:9])}" if beside else ""
        )
        kind = "no plan" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"FOLDER must hold a plan, {folder}: {kind}{near}")
    return Plan.load(folder)
