"""What is wrong with arguments whatever the model is, found before anything is loaded."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from convfactor.cli.arguments import ARCHIVE, EXPORTED, PROGRAM, REPORTS, asked
from convfactor.cli.kernel_arguments import check_bench, check_kernel
from convfactor.cli.parsing import DEVICE, DTYPE, STREAM
from convfactor.errors import did_you_mean
from convfactor.plans.settings import Settings

# Words of English, but for what is said of a budget.
BUDGETS = re.compile(r"(?<![-\w])(tolerance|evaluate|refine)\b(?![(])")


def check(options: Namespace) -> None:
    """Refuse mistakes that can be told from the arguments alone.

    Raises:
        ValueError: An argument is out of range or of another form.
        FileNotFoundError: A file does not exist.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.command in ("optimize", "demo"):
        _check_plan(options, given)
    if options.command == "show":
        _check_show(options, given)
    if options.command == "factorize":
        check_kernel(options)
    if options.command == "bench":
        check_bench(options)
    if "model" in given:
        _check_model(options, given)
    if "weights" in given and options.weights != STREAM:
        _check_file("--weights", options.weights)


def _check_plan(options: Namespace, given: dict[str, Any]) -> None:
    """Refuse what no plan can be asked for."""
    if "evaluate" in given:
        split("--evaluate", options.evaluate)
    judge = {"evaluate": "psnr"} if options.command == "demo" else {}
    try:
        Settings(**{**asked(options), **judge})
    except ValueError as error:
        raise ValueError(BUDGETS.sub(r"--\1", str(error))) from error
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if given.get("refine") and "calibration" not in given:
        raise ValueError("--refine needs --calibration: batches for the model to be trained on")
    if "calibration" in given and options.calibration != STREAM:
        if options.calibration.endswith(ARCHIVE):
            _check_file("--calibration", options.calibration, " or MODULE:NAME")
        else:
            split("--calibration", options.calibration)
    if given.get("calibration") == given.get("weights") == STREAM:
        raise ValueError("--weights and --calibration can't both be -: stdin holds one file")
    if str(options.output) == STREAM:
        instead = "; --json prints the outcome" if "json" in options else ""
        raise ValueError(f"--output must be a folder, got -{instead}")
    if options.output.is_file():
        raise ValueError(f"--output must be a folder, {options.output} is a file")


def _check_show(options: Namespace, given: dict[str, Any]) -> None:
    """Refuse what can't be shown."""
    if "weights" in given and "model" not in given:
        raise ValueError("--weights are those of --model: give --model as well")
    if "model" in given and "html" not in given:
        raise ValueError("--model is for the page: give --html as well")
    streams = [f"--{name}" for name in REPORTS if given.get(name) == STREAM]
    if len(streams) > 1:
        raise ValueError(f"{' and '.join(streams)} can't both be -: stdout takes one of them")


def _check_model(options: Namespace, given: dict[str, Any]) -> None:
    """Refuse a model that can't be read, and what does not belong to its kind."""
    is_program = options.model.endswith(PROGRAM)
    if not is_program:
        split("the model", options.model)
    else:
        _check_file("the model", options.model, " or MODULE:NAME")
        if "weights" in given:
            raise ValueError(f"--weights is for MODULE:NAME, {options.model} holds its own")
    if options.command != "optimize":
        return
    if "input" in given and "call" in given:
        raise ValueError("--input is for one call and --call for each of several: give only one")
    if not is_program and not ("input" in given or "call" in given):
        raise ValueError("give the shapes of the inputs: --input for one call, or --call for each")
    if is_program and Path(options.model).resolve() == (options.output / EXPORTED).resolve():
        raise ValueError(f"--output must be another folder, the result would replace {EXPORTED}")
    if is_program and (options.device, options.dtype) != (DEVICE, DTYPE):
        raise ValueError(
            f"--device and --dtype are for MODULE:NAME, {options.model} has its own: export it "
            "anew for others"
        )


def _check_file(what: str, name: str, other: str = "") -> None:
    """Refuse a file that is not there, and name those that are called alike."""
    path = Path(name)
    if path.is_file():
        return
    near = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
    raise FileNotFoundError(f"{what} must be a file{other}, got {name}{did_you_mean(name, near)}")


def split(what: str, text: str) -> tuple[str, str]:
    """Read MODULE:NAME.

    Raises:
        ValueError: It has another form.
    """
    module, _, name = text.partition(":")
    if not (module and name):
        raise ValueError(f"{what} must be given as MODULE:NAME, got {text!r}")
    return module, name
