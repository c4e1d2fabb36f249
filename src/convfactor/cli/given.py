"""Load what the command line names: a device, a model with its weights, calibration batches."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.export import ExportedProgram

from convfactor.cli.arguments import ARCHIVE, split


def read_device(text: str) -> torch.device:
    """Read a device that is there.

    Raises:
        ValueError: It is not.
    """
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {text} can't be used: {error}") from error
    return device


def _function(text: str, what: str) -> Callable[..., Any]:
    """Find MODULE:NAME in the current folder or the installed packages."""
    module_name, name = split(what, text)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{what} {text!r} can't be imported: {_words(error)}") from error
    value = getattr(module, name, None)
    if not callable(value):
        raise ValueError(f"{what} {text!r}: {module_name} has no function {name}")
    function: Callable[..., Any] = value
    return function


def _call(text: str, what: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """Call MODULE:NAME."""
    function = _function(text, what)
    try:
        return convert(function())
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{what} {text!r} raised {_words(error)}") from error


def read_program(file: str) -> ExportedProgram:
    """Load an exported program.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return torch.export.load(file)
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"{file} can't be read as an exported program: {_words(error)}") from error


def read_model(text: str, weights: Path | None) -> nn.Module:
    """Make the model and load its weights.

    Args:
        text: MODULE:FACTORY.
        weights: File of its weights; None for those it is made with.

    Raises:
        TypeError: The factory makes something else.
        ValueError: The factory fails, or the weights are damaged or do not fit.
    """
    model = _call(text, "MODULE:FACTORY")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{text} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is None:
        return model
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


def read_calibration(text: str) -> list[Any]:
    """Read calibration batches.

    Args:
        text: An archive of arrays, or MODULE:FUNCTION.

    Raises:
        ValueError: The file is damaged, or the function fails.
    """
    if not text.endswith(ARCHIVE):
        batches: list[Any] = _call(text, "--calibration", list)
        return batches
    try:
        with open(text, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [torch.from_numpy(arrays[name]) for name in arrays.files]
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"--calibration {text} can't be read: {_words(error)}") from error


def read_evaluation(text: str) -> Callable[[nn.Module], float]:
    """Find the function that says how good a model is.

    Args:
        text: MODULE:FUNCTION.

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


def _words(error: Exception) -> str:
    """An error's kind and message."""
    return f"{type(error).__name__}: {error}"
