"""Load what the command line names: a device, a model with its weights, calibration batches."""

from __future__ import annotations

import functools
import importlib
import io
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.export import ExportedProgram

from convfactor.cli.arguments import ARCHIVE
from convfactor.cli.checks import split
from convfactor.cli.kernels import suffix_of
from convfactor.cli.messages import told
from convfactor.cli.parsing import STREAM, piped
from convfactor.errors import did_you_mean

LIBRARY = sys.stdlib_module_names


def read_device(text: str) -> torch.device:
    """Read a device that is there.

    Raises:
        ValueError: It is not.
    """
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {text} can't be used: {first}") from error
    return device


def _named(text: str, what: str) -> Any:
    """Find MODULE:NAME in the current folder or the installed packages."""
    module_name, name = split(what, text)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        absent = f"{module_name}.".startswith(f"{error.name}.")  # not what the module imports
        near = did_you_mean(module_name, _modules(module_name)) if absent else ""
        raise ValueError(f"{what} {text!r} can't be imported: {told(error)}{near}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise ValueError(f"{what} {text!r} can't be imported: {told(error)}") from error
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        known = [other for other in dir(module) if not other.startswith("__")]
        raise ValueError(
            f"{what} {text!r}: there is no {name} in {module_name}{did_you_mean(name, known)}"
        ) from None


def _modules(name: str) -> list[str]:
    """The modules beside one that is not there; in Python's own library is no model."""
    package, _, _ = name.rpartition(".")
    try:
        path = importlib.import_module(package).__path__ if package else None
    except Exception:  # the package is what is not there
        return []
    names = (m.name for m in pkgutil.iter_modules(path) if path or m.name not in LIBRARY)
    return [f"{package}.{name}" if package else name for name in names]


def _function(text: str, what: str) -> Callable[..., Any]:
    """Find a function."""
    value = _named(text, what)
    if not callable(value):
        raise ValueError(f"{what} {text!r} must be a function, got {type(value).__name__}")
    function: Callable[..., Any] = value
    return function


def _made(text: str, what: str, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Find a thing of some kind, or call what makes it."""
    value = _named(text, what)
    try:
        if isinstance(value, kind) and not isinstance(value, type):
            return convert(value)
        if callable(value):
            return convert(value())
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise ValueError(f"{what} {text!r} raised {told(error)}") from error
    return value


def read_program(file: str) -> ExportedProgram:
    """Load an exported program.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return torch.export.load(file)
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"{file} can't be read as an exported program: {told(error)}") from error


def read_model(text: str, weights: str | None) -> nn.Module:
    """Take or make the model, and load its weights.

    Args:
        text: MODULE:NAME of a module, or of a class or function that makes one.
        weights: File of its weights, "-" for stdin; None for those it is made with.

    Raises:
        TypeError: It is, or makes, something else.
        ValueError: It fails, or the weights are damaged or do not fit.
    """
    model = _made(text, "the model", nn.Module, lambda value: value)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model {text} must be a torch.nn.Module, or return one, got {type(model).__name__}"
        )
    if weights is None:
        return model
    try:
        if weights == STREAM:
            data = piped()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"weights{suffix_of(data)}"
                file.write_bytes(data)
                _load_weights(model, file)
        else:
            _load_weights(model, Path(weights))
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(
            f"--weights {weights} can't be read, or does not fit {text}: {told(error)}"
        ) from error
    return model


def _load_weights(model: nn.Module, file: Path) -> None:
    """Load weights into a model."""
    if file.suffix == ".safetensors":
        load_model(model, file)  # knows of tied weights, which the file holds once
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))  # as training frameworks nest it


def read_calibration(text: str) -> list[Any]:
    """Read calibration batches.

    Args:
        text: An archive of arrays, "-" for one on stdin, or MODULE:NAME.

    Raises:
        ValueError: The file is damaged, or the function fails.
    """
    if text != STREAM and not text.endswith(ARCHIVE):
        batches = _made(text, "--calibration", Iterable, list)
        if not isinstance(batches, list):
            raise ValueError(
                f"--calibration {text!r} must be batches, or a function that yields them, got "
                f"{type(batches).__name__}"
            )
        return batches
    try:
        data = piped() if text == STREAM else Path(text).read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [torch.from_numpy(arrays[name]) for name in arrays.files]
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"--calibration {text} can't be read: {told(error)}") from error


def read_evaluation(text: str) -> Callable[[nn.Module], float]:
    """Find the function that says how good a model is.

    Args:
        text: MODULE:NAME.

    Raises:
        ValueError: It is not there.
    """
    return _function(text, "--evaluate")


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring a batch to the model's device and dtype."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(moved(v, device, dtype) for v in value)
    if isinstance(value, Mapping):
        return {key: moved(v, device, dtype) for key, v in value.items()}
    return value
