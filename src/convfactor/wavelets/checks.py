"""What a transform takes: one clear error for everything else, before any work."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

MODES = (
    "symmetric",
    "zero",
    "per",
    "periodization",
    "constant",
    "reflect",
    "replicate",
    "periodic",
)
LOW_PRECISION = (torch.float16, torch.bfloat16, torch.float32)


def integer(name: str, given: Any) -> int:
    """An integer argument.

    Raises:
        TypeError: If it is something else.
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {given!r}") from None


def levels(name: str, given: Any) -> int:
    """A number of levels.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is negative.
    """
    count = integer(name, given)
    if count < 0:
        raise ValueError(f"{name} must be 0 or more levels, got {count}")
    return count


def dimensions(o_dim: Any, ri_dim: Any) -> None:
    """Check where the orientations and the real and imaginary parts are.

    Raises:
        TypeError: If one is no integer.
        ValueError: If one is not among six dimensions, or both are the same.
    """
    for name, dim in (("o_dim", o_dim), ("ri_dim", ri_dim)):
        if not -6 <= integer(name, dim) < 6:
            raise ValueError(f"{name} must lie in -6..5, got {dim}")
    if o_dim % 6 == ri_dim % 6:
        raise ValueError(f"o_dim and ri_dim must differ, got {o_dim} and {ri_dim}")


def extension(mode: Any) -> None:
    """Check the extension at the border.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def tensor(name: str, given: Any, like: Tensor) -> None:
    """Check that an argument is a dense tensor of the filters' dtype, on their device.

    Under autocast the lower precisions go together.

    Args:
        name: Name of the argument.
        given: What came.
        like: A filter.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is on another device.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    dense = given.layout == torch.strided and not given.is_nested
    if dense and given.dtype == like.dtype and given.device == like.device:
        return
    if not dense:
        layout = "nested" if given.is_nested else given.layout
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one: use {name}.to_dense()")
    if given.device != like.device:
        raise ValueError(
            f"{name} is on {given.device}, but the filters are on {like.device}: "
            f"move one, by {name}.to({str(like.device)!r}) or module.to({str(given.device)!r})"
        )
    low = given.dtype in LOW_PRECISION and like.dtype in LOW_PRECISION
    if low and torch.is_autocast_enabled(given.device.type):
        return
    other = f" or module.to({given.dtype})" if given.is_floating_point() else ""
    raise TypeError(
        f"{name} is {given.dtype}, but the filters are {like.dtype}: "
        f"convert by {name}.to({like.dtype}){other}"
    )


def image(given: Any, like: Tensor) -> None:
    """Check images (N, C, H, W), see `tensor`.

    Raises:
        TypeError: If they are no dense tensor of the filters' dtype.
        ValueError: If they have another shape, or are on another device.
    """
    tensor("x", given, like)
    if given.ndim != 4:
        add = ": add the batch by x.unsqueeze(0)" if given.ndim == 3 else ""
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got {tuple(given.shape)}{add}")
    if given.shape[2] == 0 or given.shape[3] == 0:
        raise ValueError(f"x must have at least one pixel, got {tuple(given.shape)}")
