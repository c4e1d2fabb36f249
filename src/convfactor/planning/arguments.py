"""Refuse wrong arguments of ``plan`` and ``optimize`` before any work."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn


def check_model(model: nn.Module) -> None:
    """Refuse a model whose layers can't be seen or solved."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be a torch.nn.Module or a torch.export.ExportedProgram, got "
            f"{type(model).__name__}"
        )
    modules = list(model.modules())
    checks = (
        (
            any("_orig_mod" in module._modules for module in modules),
            TypeError,
            "must not be compiled yet; optimize it first, then torch.compile the result",
        ),
        (
            isinstance(model, torch.jit.ScriptModule) or any(map(_is_scripted_conv, modules)),
            TypeError,
            "must not be scripted or traced by torch.jit: optimize the nn.Module first, then "
            "torch.export or torch.jit.trace the result",
        ),
        (
            any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())),
            ValueError,
            "must have its weights, got tensors on the meta device: load the weights first",
        ),
    )
    for refused, error, message in checks:
        if refused:
            raise error(f"model {message}")


def _is_scripted_conv(module: nn.Module) -> bool:
    """Whether a part that torch.jit made may hide a 2-D convolution; an activation may stay."""
    return isinstance(module, torch.jit.ScriptModule) and any(
        weight.dim() == 4 for weight in module.parameters()
    )


def check_budget(evaluate: object, executor: object) -> None:
    """Refuse what can't be called, and what can't solve."""
    if not (evaluate is None or callable(evaluate)):
        raise TypeError(
            f"evaluate must be a function (model) -> float, got {type(evaluate).__name__}"
        )
    if not (executor is None or callable(getattr(executor, "map", None))):
        raise TypeError(
            "executor must be a concurrent.futures.Executor or the like, with a map, "
            f"got {type(executor).__name__}"
        )


def check_checkpoint(checkpoint: object) -> None:
    """Refuse what can't be a folder."""
    path = Path(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else Path()
    file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    checks = (
        (
            checkpoint is None or isinstance(checkpoint, (str, os.PathLike)),
            TypeError,
            f"checkpoint must be the path of a folder, got {type(checkpoint).__name__}",
        ),
        (file is None, ValueError, f"checkpoint must be a folder, got the file {str(file)!r}"),
    )
    for fine, error, message in checks:
        if not fine:
            raise error(message)
