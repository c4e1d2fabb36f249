"""The command line."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import convfactor
from convfactor.errors import ToleranceError
from convfactor.plans.plan import Plan
from convfactor.plans.storage import PLAN_FILE, WEIGHTS_FILE

PARTIAL = "partial"
REPORTS = {
    "html": "a page with pictures of the kernels",
    "markdown": "the table for GitHub",
    "csv": "the figures for other programs",
    "json": "the whole record",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 1 where ``--strict`` finds the tolerance missed, 2 for wrong usage.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except ToleranceError as error:
        return _fail(error, 1)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        _say("interrupted; what was decided is kept, run the same command again to go on")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="convfactor",
        description="Make trained PyTorch models faster: large convolution kernels become cascades "
        "of 3x3 ones, within a tolerance and only where that is measured to be faster.",
    )
    parser.add_argument("--version", action="version", version=convfactor.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="optimize a small super-resolution network")
    demo.add_argument("--output", type=Path, default=Path("convfactor-demo"), metavar="FOLDER")
    demo.add_argument("--tolerance", type=float, default=0.05)
    demo.set_defaults(run=_demo)

    optimize = commands.add_parser(
        "optimize",
        help="optimize a model of your own",
        epilog="A run that was interrupted goes on when the same command is given again.",
    )
    optimize.add_argument("model", metavar="MODULE:FACTORY", help="function that makes the model")
    optimize.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors, .pt or .pth")
    optimize.add_argument(
        "--input", type=_shape, action="append", required=True, metavar="1x3x224x224",
        help="shape of an input; repeat it for several inputs",
    )  # fmt: skip
    optimize.add_argument("--tolerance", type=float, default=0.01, help="default: %(default)s")
    optimize.add_argument(
        "--calibration", metavar="FILE.npz|MODULE:FUNCTION",
        help="arrays, each a batch as the model takes it, or a function that yields batches; "
        "without it the error is that of the weights",
    )  # fmt: skip
    optimize.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    optimize.add_argument("--device", default="cpu", help="default: %(default)s")
    optimize.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16", "float64"), default="float32"
    )
    optimize.add_argument("--min-kernel-size", type=int, default=5, help="default: %(default)s")
    optimize.add_argument("--objective", choices=("latency", "macs"), default="latency")
    optimize.add_argument("--min-speedup", type=float, default=1.05, help="default: %(default)s")
    optimize.add_argument("--structures", choices=("auto", "cascade"), default="auto")
    optimize.add_argument("--seed", type=int, default=0)
    optimize.add_argument("--strict", action="store_true", help="fail where a layer misses it")
    optimize.set_defaults(run=_optimize)

    show = commands.add_parser("show", help="print the table of a saved plan")
    show.add_argument("folder", type=Path, metavar="FOLDER")
    for name, what in REPORTS.items():
        show.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what} as well")
    show.add_argument(
        "--model", metavar="MODULE:FACTORY", help="the original, for its kernels on the page"
    )
    show.add_argument("--weights", type=Path, metavar="FILE", help="the original's weights")
    show.set_defaults(run=_show)
    return parser


def _demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from convfactor.demo import run  # needs the extra packages of the demo

    run.demo(options.output, options.tolerance)


def _optimize(options: argparse.Namespace) -> None:
    """Optimize a user's model and write everything about it."""
    dtype: torch.dtype = getattr(torch, options.dtype)
    device = _device(options.device)
    calibration = None if options.calibration is None else _calibration(options.calibration)
    model = _model(options.model, options.weights).to(device, dtype)
    generator = torch.Generator().manual_seed(options.seed)
    inputs = tuple(torch.rand(s, generator=generator).to(device, dtype) for s in options.input)
    output: Path = options.output
    if output.is_file():
        raise ValueError(f"--output must be a folder, {output} is a file")
    output.mkdir(parents=True, exist_ok=True)
    fast, plan = convfactor.optimize(
        model,
        inputs,
        options.tolerance,
        calibration=None if calibration is None else [_to(b, device, dtype) for b in calibration],
        min_kernel_size=options.min_kernel_size,
        objective=options.objective,
        min_speedup=options.min_speedup,
        structures=options.structures,
        strict=options.strict,
        seed=options.seed,
        checkpoint=output / PARTIAL,
    )
    plan.save(output)
    (output / "table.txt").write_text(f"{plan}\n", encoding="utf-8")
    plan.to_html(output / "report.html", model)
    save_model(fast, str(output / "model.safetensors"))
    written = [PLAN_FILE, WEIGHTS_FILE, "table.txt", "report.html", "model.safetensors"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(fast.eval(), inputs), output / "model.pt2")
        written.append("model.pt2")
    except Exception as error:  # a model that torch can't export is still optimized
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        _say(f"model.pt2 was not written: torch.export does not take this model ({reason})")
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    print(plan)
    _say(f"wrote {', '.join(written)} to {output}")


def _show(options: argparse.Namespace) -> None:
    """Print a saved plan, and write it in other forms."""
    plan = Plan.load(options.folder)
    print(plan)
    model = None if options.model is None else _model(options.model, options.weights)
    for name in REPORTS:
        path: Path | None = getattr(options, name)
        if path is not None:
            extra = {"model": model} if name == "html" else {}
            getattr(plan, f"to_{name}")(path, **extra)
            _say(f"wrote {path}")


def _device(text: str) -> torch.device:
    """Read a device that is there."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {text} can't be used: {error}") from error
    return device


def _shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 1x3x224x224."""
    try:
        sizes = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1x3x224x224")
    return sizes


def _call(text: str, what: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """Call MODULE:NAME from the current folder or the installed packages."""
    module_name, _, name = text.partition(":")
    if not (module_name and name):
        raise ValueError(f"{what} must be given as MODULE:NAME, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{what} {text!r} can't be imported: {_words(error)}") from error
    value = getattr(module, name, None)
    if not callable(value):
        raise ValueError(f"{what} {text!r}: {module_name} has no function {name}")
    try:
        return convert(value())
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{what} {text!r} raised {_words(error)}") from error


def _words(error: Exception) -> str:
    """An error's kind and message."""
    return f"{type(error).__name__}: {error}"


def _model(text: str, weights: Path | None) -> nn.Module:
    """Make the model and load its weights."""
    model = _call(text, "MODULE:FACTORY")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{text} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is None:
        return model
    if not weights.is_file():
        raise FileNotFoundError(f"--weights must be a file, got {weights}")
    try:
        if weights.suffix == ".safetensors":
            load_model(model, weights)  # knows of tied weights, which the file holds once
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state.get("state_dict", state))  # as training frameworks nest it
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(
            f"--weights {weights} can't be read, or does not fit {text}: {_words(error)}"
        ) from error
    return model


def _calibration(text: str) -> list[Any]:
    """Read calibration batches."""
    if not text.endswith(".npz"):
        batches: list[Any] = _call(text, "--calibration", list)
        return batches
    if not Path(text).is_file():
        raise FileNotFoundError(f"--calibration must be a file or MODULE:FUNCTION, got {text}")
    try:
        with open(text, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [torch.from_numpy(arrays[name]) for name in arrays.files]
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"--calibration {text} can't be read: {_words(error)}") from error


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring a batch to the model's device and dtype."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_to(v, device, dtype) for v in value)
    if isinstance(value, dict):
        return {key: _to(v, device, dtype) for key, v in value.items()}
    return value


def _fail(error: Exception, status: int) -> int:
    """Report a user's mistake."""
    _say(f"error: {error}")
    return status


def _say(text: str) -> None:
    """Tell the person; results alone go to stdout."""
    print(f"convfactor: {text}", file=sys.stderr)
