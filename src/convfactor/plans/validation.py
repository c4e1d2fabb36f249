"""What the values of a plan may be, wherever it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from convfactor.conv.fitting import check_fit
from convfactor.conv.forms import is_consistent
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.structure import Structure
from convfactor.latency import Timing
from convfactor.model.sites import Subject
from convfactor.plans.circumstances import HeldOut
from convfactor.plans.decisions import Decision, Decisions, Entry, Replaced, Swapped
from convfactor.plans.spending import Spending

DTYPES = ("float64", "float32", "float16", "bfloat16")
LARGEST_KERNEL = 1 << 27  # values of a composed kernel: a gigabyte in float64
_MODULE = nn.Module()


def check_plan(plan: Decisions) -> None:
    """Refuse values that no planner makes.

    Args:
        plan: A plan whose values have the right types.

    Raises:
        ValueError: One is out of range, or does not fit the others.
    """
    _demand(plan.environment.threads >= 1, "environment", "threads must be >= 1")
    if isinstance(plan.calibration, HeldOut):
        data = plan.calibration
        measured = data.held_out if data.measured is None else data.measured
        counts = _are_counts((data.fit, data.held_out, measured)) and measured <= data.held_out
        _demand(counts, "calibration", "numbers of batches must be >= 1, measured of held_out")
        digests = is_sha256(data.sha256) and (not data.model or is_sha256(data.model))
        _demand(digests, "calibration", "sha256 and model must be digests")
    for call in plan.calls:
        sizes = (size for shape in call.shapes for size in shape)
        fine = 0 < call.weight < math.inf and min(sizes, default=0) >= 0
        _demand(fine, "calls", f"weights must be positive and shapes counts, got {call}")
    if plan.whole is not None:
        _demand(_are_errors(plan.whole.errors), "whole", "errors must be >= 0")
        _check_timings("whole", plan.whole.before, plan.whole.after)
    if plan.spending is not None:
        _check_spending(plan.spending)
    for entry in plan.entries:
        _check_entry(entry)


def check_weights(structure: Structure, weights: Sequence[Tensor]) -> None:
    """Refuse tensors that are not the weights of a structure.

    Args:
        structure: The cascade.
        weights: One per stage.

    Raises:
        ValueError: There are more or fewer, or a shape is another one.
    """
    _check_structure("cascade", structure)
    found = [tuple(weight.shape) for weight in weights]
    wanted = [stage.weight_shape for stage in structure.stages]
    _demand(found == wanted, "weights", f"must have the shapes {wanted}, got {found}")


def is_sha256(value: object) -> bool:
    """Whether a value is a digest in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _demand(fine: bool, where: str, message: str) -> None:
    """Refuse a value."""
    if not fine:
        raise ValueError(f"{where}: {message}")


def _check_spending(spending: Spending) -> None:
    """Refuse what no budget becomes."""
    figures = (spending.limit, spending.samples, spending.seconds)
    offers = (spending.chosen, *spending.offers)
    shares = (share.part for share in spending.shares)
    fine = _are_errors((*figures, *shares)) and all(0 < o.cost <= 1 for o in offers)
    _demand(fine, "spending", "figures must be >= 0, and costs at most those of the original")


def _check_entry(entry: Entry) -> None:
    """Refuse what is wrong with an entry."""
    subject, decision = entry.subject, entry.decision
    where = f"layer {subject.name[:80]!r}"
    _check_subject(where, subject)
    _check_figures(where, decision)
    structure = decision.tried.structure if decision.tried is not None else None
    if structure is not None:
        _check_structure(where, structure)
    if isinstance(decision, Replaced):
        _check_replaced(where, subject, decision)
    elif isinstance(decision, Swapped):
        _demand(subject.kind == "transform", where, "only a transform is swapped")
        _demand(is_sha256(subject.fingerprint), where, "fingerprint must be a digest")


def _check_subject(where: str, subject: Subject) -> None:
    """Refuse what can't be found in a model."""
    _demand(
        bool(subject.owners) and all(map(_names_module, subject.owners)),
        where,
        f"owners must be qualified names of modules, got {subject.owners}",
    )
    owner, _, last = subject.weight_name.rpartition(".")
    _demand(
        not subject.weight_name or (_names_module(owner) and _names_module(last) and bool(last)),
        where,
        f"weight_name must be the qualified name of a tensor, got {subject.weight_name!r}",
    )
    _demand(_are_counts(subject.kernel_size), where, f"kernel_size has {subject.kernel_size}")
    for shape, calls in subject.shapes:
        fine = 0 < calls < math.inf and min(shape.size, default=0) >= 0
        _demand(fine, where, "shapes must be counts")
    _demand(min(subject.calls, default=0) >= 0, where, "calls must be counts")
    apart = subject.pad or any(subject.pads)
    _demand(
        not apart or (_names_module(subject.pad) and bool(subject.pad) and min(subject.pads) >= 0),
        where,
        f"pads must be counts and those of a module, got {subject.pads} of {subject.pad!r}",
    )
    if subject.geometry is not None and subject.laid is not None:
        _check_geometry(where, subject.geometry)
        _check_geometry(where, subject.laid)
        _demand(
            is_consistent(subject.form, subject.geometry), where, "form is not that of its geometry"
        )
        same = subject.form.kernel_size(subject.geometry) == subject.kernel_size
        _demand(same, where, "kernel_size is not that of its geometry")


def _check_figures(where: str, decision: Decision) -> None:
    """Refuse impossible errors, times and multiplies."""
    errors = [decision.error]
    if decision.errors is not None:
        errors += [decision.errors.pooled, decision.errors.worst_batch]
        errors += [decision.errors.worst_channel, decision.errors.border]
    if isinstance(decision, Replaced):
        errors += [decision.weight_error, decision.bounds.l_inf, decision.bounds.spectral]
    _demand(_are_errors(errors), where, "errors and bounds must be >= 0")
    cost = decision.cost
    if cost is not None:
        _check_timings(where, cost.before, cost.after)
        macs = [count for count in (cost.macs_before, cost.macs_after) if count is not None]
        _demand(_are_counts(macs), where, "multiplies must be >= 1")
        pairs = ((cost.before, cost.after), (cost.macs_before, cost.macs_after))
        paired = all((before is None) == (after is None) for before, after in pairs)
        _demand(paired and any(before for before, _ in pairs), where, "a cost has two sides")


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


def _check_replaced(where: str, subject: Subject, decision: Replaced) -> None:
    """Refuse a replacement that does not take the layer's place."""
    _demand(is_sha256(subject.fingerprint), where, "fingerprint must be a digest")
    geometry, structure = subject.geometry, decision.structure
    if geometry is None or subject.kind == "transform":
        raise ValueError(f"{where}: what a cascade replaces must be a 2-D convolution")
    _demand(bool(subject.weight_name), where, "what is replaced must have a weight_name")
    _demand(subject.dtype in DTYPES, where, f"dtype must be one of {DTYPES}, got {subject.dtype!r}")
    tensors = [(stage.weight, subject.dtype) for stage in decision.cascade.stages]
    counts = [] if decision.gains is None else [decision.gains]
    for tensor, dtype in (*tensors, *((own, "float64") for own in (decision.bias_shift, *counts))):
        found = str(tensor.dtype).removeprefix("torch.")
        _demand(found == dtype, where, f"tensors must be {dtype}, got {found}")
        _demand(bool(tensor.isfinite().all()), where, "tensors must be finite, got Inf or NaN")
    for name, own in (("bias_shift", decision.bias_shift), *(("gains", own) for own in counts)):
        wanted, shape = (geometry.out_channels,), tuple(own.shape)
        _demand(shape == wanted, where, f"{name} must have the shape {wanted}, got {shape}")
    _demand(all(bool((own > 0).all()) for own in counts), where, "gains must be positive")
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
