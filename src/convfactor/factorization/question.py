"""Read the kernel that ``factorize`` is given, and refuse arguments before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.moments import Moments
from convfactor.conv.structure import Structure
from convfactor.scalars import check_fraction, is_count, is_real

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# No image is larger, nor does torch accept it.
LARGEST_STEP = 2**31 - 1


@dataclass(frozen=True)
class Question:
    """What ``factorize`` is asked, apart from the kernel.

    Attributes:
        tolerance: Largest relative error allowed.
        stages: Number of stages.
        widths: Hidden channel counts.
        structure: The whole structure.
        solver: "auto" or "alternating".
    """

    tolerance: float | None
    stages: int | None
    widths: Sequence[int] | None
    structure: Structure | None
    solver: str

    @property
    def is_open(self) -> bool:
        """Whether nothing says what the cascade is."""
        return self.stages is None and self.widths is None and self.structure is None


def read_weight(weight: Tensor | NDArray[Any] | Sequence[Any]) -> Tensor:
    """Bring a weight to four dimensions and to a dtype that can be solved.

    Args:
        weight: (kH, kW) or (C_out, C_in/groups, kH, kW); integers, booleans and lists become
            float64.

    Raises:
        TypeError: It is of another type, dtype or layout.
        ValueError: It has another shape, no values, or such that are not finite.
    """
    array = _dense(weight) if isinstance(weight, Tensor) else _from_numpy(weight)
    if array.dim() == 2:
        array = array[None, None]
    if array.dim() != 4 or array.numel() == 0:
        raise ValueError(
            "weight must have shape (kH, kW) or (C_out, C_in/groups, kH, kW), "
            f"got {tuple(array.shape)}"
        )
    if not array.isfinite().all():
        raise ValueError("weight must be finite, got Inf or NaN in it")
    return array


def _dense(weight: Tensor) -> Tensor:
    """Refuse tensors that hold no plain real numbers."""
    ways = (
        (weight.is_nested, "a nested tensor; give one kernel at a time"),
        (weight.is_quantized, f"a quantized {weight.dtype} one; give weight.dequantize()"),
        (weight.layout != torch.strided, f"layout {weight.layout}; give weight.to_dense()"),
        (weight.is_complex(), f"{weight.dtype}; factorize its real and imaginary parts"),
        (
            weight.is_floating_point() and weight.dtype not in FLOATS,
            f"{weight.dtype}; convert it, for instance to float32",
        ),
    )
    for refused, found in ways:
        if refused:
            raise TypeError(f"weight must be a dense tensor of real numbers, got {found}")
    if weight.is_meta:
        raise ValueError("weight must have values, got a tensor on the meta device; load it first")
    array = weight.detach()
    return array if array.is_floating_point() else array.to(torch.float64)


def _from_numpy(weight: object) -> Tensor:
    """Read an array, or lists as NumPy does; float64 unless torch has its dtype."""
    try:
        array = np.asarray(weight)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"weight must be a tensor or an array, got {_type(weight)}; give conv.weight ({error})"
        ) from error
    if array.dtype.kind not in "fiub":
        found = f"{array.dtype} array" if isinstance(weight, np.ndarray) else _type(weight)
        raise TypeError(
            f"weight must be a tensor or an array, got {found}; give conv.weight, real numbers"
        )
    kept = array.dtype.kind == "f" and array.dtype.itemsize <= 8 and isinstance(weight, np.ndarray)
    dtype = array.dtype.newbyteorder("=") if kept else np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))  # torch reads no others


def read_kernel(
    weight: Tensor, groups: int, stride: int | Pair, dilation: int | Pair
) -> ConvGeometry:
    """Read the integers of the kernel.

    Raises:
        ValueError: One is out of range.
    """
    if not is_count(groups) or len(weight) % groups:
        raise ValueError(
            f"groups must divide the {len(weight)} output channels, got {groups!r}; "
            "give the groups of the convolution"
        )
    kernel = ConvGeometry.from_shape(
        weight.shape, stride=stride, dilation=dilation, groups=int(groups)
    )
    for name, value in (("stride", kernel.stride), ("dilation", kernel.dilation)):
        if max(value) > LARGEST_STEP:
            raise ValueError(f"{name} must be at most {LARGEST_STEP} pixels, got {value}")
    return kernel


def check_question(question: Question, kernel: ConvGeometry) -> None:
    """Refuse a question that is none, or that does not fit the kernel.

    Raises:
        TypeError: An argument is of another type.
        ValueError: One is out of range, or they do not fit together.
    """
    stages, widths, structure = question.stages, question.widths, question.structure
    if question.tolerance is not None:
        check_fraction("tolerance", question.tolerance)
    shapes = {"stages": stages, "widths": widths, "structure": structure}
    given = [name for name, value in shapes.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)}, not both: each says what the cascade is")
    if question.tolerance is None and not given:
        raise ValueError("give a tolerance, the number of stages, the widths, or a structure")
    if question.solver not in ("auto", "alternating"):
        raise ValueError(f"solver must be 'auto' or 'alternating', got {question.solver!r}")
    if structure is not None:
        _check_structure(structure, kernel, question.solver)
    if stages is not None and not is_count(stages):
        raise ValueError(f"stages must be an int of at least 1, got {stages!r}")
    if widths is not None and not (
        isinstance(widths, Sequence) and all(is_count(w) and w % kernel.groups == 0 for w in widths)
    ):
        raise ValueError(
            "widths must be a sequence of ints such as (4, 8), all positive multiples of the "
            f"{kernel.groups} groups, got {widths!r}"
        )
    most = max(4, *kernel.kernel_size)
    for name, count in (
        ("stages", stages),
        ("widths", None if widths is None else len(widths) + 1),
    ):
        if count is not None and count > most:
            raise ValueError(
                f"{name} must make at most {most} stages, twice what a {size_name(kernel)} kernel "
                f"needs, got {count}"
            )


def check_numbers(ridge: float, seed: int, time_limit: float) -> None:
    """Refuse numbers that are out of range.

    Raises:
        TypeError: ``seed`` is no int.
        ValueError: One is out of range.
    """
    if not (is_real(ridge) and ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a number >= 0, got {ridge!r}")
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {_type(seed)} {seed!r}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be an int of 64 bits, got {seed!r}")
    if not (is_real(time_limit) and time_limit > 0):
        raise ValueError(
            f"time_limit must be a number of seconds above 0, math.inf for none, got {time_limit!r}"
        )


def check_moments(moments: Moments | None, kernel: ConvGeometry) -> None:
    """Refuse moments of another layer.

    Raises:
        TypeError: They are something else.
        ValueError: They are of other patches.
    """
    if moments is None:
        return
    if not isinstance(moments, Moments):
        raise TypeError(
            f"moments must be a convfactor.Moments, got {_type(moments)}; measure them with "
            "Moments.from_inputs(conv, inputs)"
        )
    in_per_group = kernel.in_channels // kernel.groups
    size = in_per_group * math.prod(moments.window)
    if moments.kernel_size != kernel.kernel_size or moments.mean.shape != (kernel.groups, size):
        raise ValueError(
            f"moments must be of the layer's own patches ({kernel.groups} groups of "
            f"{in_per_group} channels, {size_name(kernel)} taps), got {moments.mean.shape[0]} "
            f"groups of {moments.mean.shape[1]} values for "
            f"{moments.kernel_size[0]}x{moments.kernel_size[1]} taps"
        )


def _check_structure(structure: Structure, kernel: ConvGeometry, solver: str) -> None:
    """Refuse a structure that can't stand in for a kernel."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"structure must be a convfactor.Structure, got {_type(structure)}; make one of "
            "stages, as in Structure((StageShape(1, 1, (5, 1)), StageShape(1, 1, (1, 5))))"
        )
    first, last = structure.stages[0], structure.stages[-1]
    wanted = (kernel.in_channels, kernel.out_channels, kernel.groups, kernel.stride)
    found = (first.in_channels, last.out_channels, structure.groups, structure.stride)
    if found != wanted:
        raise ValueError(
            "structure must have the kernel's (in_channels, out_channels, groups, stride) = "
            f"{wanted}, got {found}"
        )
    if solver != "auto":
        raise ValueError("structure is for solver='auto' only; drop one of them")


def size_name(kernel: ConvGeometry) -> str:
    """Name a kernel's size."""
    return "x".join(map(str, kernel.kernel_size))


def _type(value: object) -> str:
    """Name a value's type."""
    return type(value).__name__
