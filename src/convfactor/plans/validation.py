"""What the values of a plan may be, wherever it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from convfactor.conv.cascade import Structure
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import check_fit
from convfactor.latency import Timing

if TYPE_CHECKING:
    from convfactor.plans.plan import Entry, Plan

DTYPES = ("float64", "float32", "float16", "bfloat16")
LARGEST_KERNEL = 1 << 27  # values of a composed kernel: a gigabyte in float64
_MODULE = nn.Module()


def check_plan(plan: Plan) -> None:
    """Refuse values that no planner makes.

    Args:
        plan: A plan whose values have the right types; its tensors are not looked at.

    Raises:
        ValueError: One is out of range, or does not fit the others.
    """
    _demand(plan.environment.threads >= 1, "environment", "threads must be >= 1")
    if plan.whole is not None:
        _demand(_are_errors(plan.whole.errors), "whole", "errors must be >= 0")
        _check_timings("whole", plan.whole.before, plan.whole.after)
    for entry in plan.entries:
        _check_entry(entry)


def check_tensors(structure: Structure, dtype: str, weights: list[Tensor], shift: Tensor) -> None:
    """Refuse tensors that are not the weights of a cascade.

    Args:
        structure: The cascade.
        dtype: Name of the weights' dtype.
        weights: One per stage.
        shift: Change of the bias, float64 (C_out,).

    Raises:
        ValueError: A dtype or shape is another one, or a value is not finite.
    """
    wanted: list[tuple[tuple[int, ...], str]]
    wanted = [(stage.weight_shape, dtype) for stage in structure.stages]
    wanted.append(((structure.stages[-1].out_channels,), "float64"))
    for tensor, (shape, name) in zip([*weights, shift], wanted, strict=True):
        found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        _demand(found == (shape, name), "tensors", f"must be {shape} {name}, got {found}")
        _demand(bool(tensor.isfinite().all()), "tensors", "must be finite, got Inf or NaN")


def is_sha256(value: object) -> bool:
    """Whether a value is a digest in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _demand(fine: bool, where: str, message: str) -> None:
    """Refuse a value."""
    if not fine:
        raise ValueError(f"{where}: {message}")


def _check_entry(entry: Entry) -> None:
    """Refuse what is wrong with an entry."""
    where = f"layer {entry.name[:80]!r}"
    _demand(
        bool(entry.owners) and all(map(_names_module, entry.owners)),
        where,
        f"owners must be qualified names of modules, got {entry.owners}",
    )
    owner, _, last = entry.weight_name.rpartition(".")
    _demand(
        not entry.weight_name or (_names_module(owner) and _names_module(last) and bool(last)),
        where,
        f"weight_name must be the qualified name of a tensor, got {entry.weight_name!r}",
    )
    _demand(_are_counts(entry.kernel_size), where, f"kernel_size has {entry.kernel_size}")
    for shape, calls in entry.shapes:
        _demand(calls >= 1 and min(shape.size, default=0) >= 0, where, "shapes must be counts")
    _check_figures(where, entry)
    if entry.geometry is not None:
        _check_geometry(where, entry.geometry)
        same = entry.geometry.kernel_size == entry.kernel_size
        _demand(same, where, "kernel_size is not that of its geometry")
    if entry.structure is not None:
        _check_structure(where, entry.structure)
    if entry.replaced:
        _check_replaced(where, entry)


def _check_figures(where: str, entry: Entry) -> None:
    """Refuse impossible errors, times and multiplies."""
    errors = [entry.error, entry.weight_error]
    if entry.errors is not None:
        errors += [entry.errors.pooled, entry.errors.worst_batch]
        errors += [entry.errors.worst_channel, entry.errors.border]
    if entry.bounds is not None:
        errors += [entry.bounds.l_inf, entry.bounds.spectral]
    _demand(_are_errors(errors), where, "errors and bounds must be >= 0")
    _check_timings(where, entry.before, entry.after)
    macs = [count for count in (entry.macs_before, entry.macs_after) if count is not None]
    _demand(_are_counts(macs), where, "multiplies must be >= 1")


def _check_timings(where: str, *timings: Timing | None) -> None:
    """Refuse times that no clock measures."""
    for timing in timings:
        if timing is not None:
            ordered = 0 < timing.low <= timing.median <= timing.high < math.inf
            _demand(ordered, where, f"times must be positive and in order, got {timing}")


def _check_geometry(where: str, geometry: ConvGeometry) -> None:
    """Refuse integers that are not a convolution's."""
    channels = (geometry.in_channels, geometry.out_channels)
    counts = (*channels, geometry.groups, *geometry.kernel_size)
    _demand(
        _are_counts((*counts, *geometry.stride, *geometry.dilation)) and min(geometry.padding) >= 0,
        where,
        f"geometry holds a number that is too small: {geometry}",
    )
    divides = not any(count % geometry.groups for count in channels)
    _demand(divides, where, "groups of the geometry must divide its channels")


def _check_structure(where: str, structure: Structure) -> None:
    """Refuse stages that can't be run."""
    for stage in structure.stages:
        channels = (stage.in_channels, stage.out_channels)
        _demand(_are_counts((*channels, stage.groups)), where, f"no stage has {stage}")
        divides = not any(count % stage.groups for count in channels)
        _demand(divides, where, f"groups of a stage must divide its channels, got {stage}")


def _check_replaced(where: str, entry: Entry) -> None:
    """Refuse a replacement that does not take the layer's place."""
    _demand(is_sha256(entry.fingerprint), where, "fingerprint must be a digest")
    if entry.kind == "transform":
        _demand(entry.structure is None, where, "a transform has no structure")
        return
    geometry, structure = entry.geometry, entry.structure
    if geometry is None or structure is None:
        raise ValueError(f"{where}: what is replaced must have a geometry and a structure")
    _demand(bool(entry.weight_name), where, "what is replaced must have a weight_name")
    _demand(entry.dtype in DTYPES, where, f"dtype must be one of {DTYPES}, got {entry.dtype!r}")
    check_fit(geometry, structure)
    channels = structure.stages[0].in_channels // structure.groups * geometry.out_channels
    for sides in (structure.span, geometry.extent):
        size = channels * math.prod(sides)
        _demand(size <= LARGEST_KERNEL, where, f"a kernel of {size} values is too large")
    most = 4 * max(geometry.extent)
    _demand(max(structure.span) <= most, where, f"a span of more than {most} pixels is too large")
    apart = any(
        not -span < offset < extent
        for span, offset, extent in zip(
            structure.span, structure.offset, geometry.extent, strict=True
        )
    )
    _demand(not apart, where, "the cascade must overlap the kernel")


def _names_module(name: str) -> bool:
    """Whether a qualified name can be that of a module, the root's empty one included."""
    return not name or all(part and not hasattr(_MODULE, part) for part in name.split("."))


def _are_counts(values: Iterable[int]) -> bool:
    """Whether all are at least 1."""
    return all(value >= 1 for value in values)


def _are_errors(values: Iterable[float | None]) -> bool:
    """Whether none is negative; unknown, infinite and NaN ones may be."""
    return not any(value is not None and value < 0 for value in values)
