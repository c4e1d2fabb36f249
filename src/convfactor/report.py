"""A plan as text that a person can read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from convfactor.geometry import Pair
from convfactor.latency import Timing

if TYPE_CHECKING:
    from convfactor.plans import Entry, Plan, WholeModel

WIDTH = 200  # more than the columns can take together, so that nothing is cut off


def render(plan: Plan) -> str:
    """Table of the decisions, what they were measured on, and the whole model."""
    if not plan.entries:
        least = plan.settings.min_kernel_size
        return (
            f"no convolution with a kernel of {least} or more taps on a side; "
            "the model is unchanged"
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", max_width=24)
    table.add_column("kernel", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    table.add_column("stages (hidden widths)", overflow="fold", max_width=24)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("worst\nbatch", justify="right", no_wrap=True)
    table.add_column("worst\nchannel", justify="right", no_wrap=True)
    table.add_column("border", justify="right", no_wrap=True)
    table.add_column("before\n(ms)", justify="right", no_wrap=True)
    table.add_column("after\n(ms)", justify="right", no_wrap=True)
    table.add_column("reason", max_width=30)
    for entry in plan.entries:
        table.add_row(*_row(entry))
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=WIDTH, color_system=None, legacy_windows=False, markup=False, emoji=False
    )
    console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([_header(plan), *lines, _footer(plan)])


def _header(plan: Plan) -> str:
    """What the figures mean and where they hold."""
    settings, environment = plan.settings, plan.environment
    measured = "relative output error" if plan.metric != "white noise" else "weight error"
    parts = [f"tolerance {settings.tolerance:g} ({measured}; {plan.metric})"]
    if settings.objective == "macs":
        parts.append("objective: multiplies, nothing was timed")
    parts.append(
        f"torch {environment.torch_version}, {environment.device}, {environment.machine}, "
        f"{environment.threads} threads"
    )
    return "\n".join(parts)


def _row(entry: Entry) -> tuple[str, ...]:
    """Cells of one entry."""
    kernel = "x".join(map(str, entry.kernel_size)) or entry.kind
    if entry.geometry is not None:
        geometry = entry.geometry
        kernel += f" {geometry.in_channels}->{geometry.out_channels}"
        kernel += f" /{_sides(geometry.stride)}" if geometry.stride != (1, 1) else ""
        kernel += f" @{_sides(geometry.dilation)}" if geometry.dilation != (1, 1) else ""
        kernel += f" g{geometry.groups}" if geometry.groups > 1 else ""
    errors = entry.errors
    structure = "" if entry.structure is None else str(entry.structure)
    if entry.memory_format == "channels_last":
        structure += ", channels_last"
    return (
        entry.name,
        kernel,
        entry.decision,
        structure,
        _percent(entry.error),
        _percent(None if errors is None else errors.worst_batch),
        _percent(None if errors is None else errors.worst_channel),
        _percent(None if errors is None else errors.border),
        _milliseconds(entry.before),
        _milliseconds(entry.after),
        entry.reason,
    )


def _sides(pair: Pair) -> str:
    """One number, or two where they differ."""
    return "x".join(map(str, dict.fromkeys(pair)))


def _footer(plan: Plan) -> str:
    """The whole model."""
    replaced = sum(entry.replaced for entry in plan.entries)
    count = len(plan.entries)
    text = f"{replaced} of {count} large-kernel {'layer' if count == 1 else 'layers'} replaced"
    return text if plan.whole is None else f"{text}\n{_whole(plan.whole)}"


def _whole(whole: WholeModel) -> str:
    """Errors and times of the whole model."""
    errors = ", ".join(f"{error:.2%}" for error in whole.errors) or "no floating-point output"
    text = f"whole model: output error {errors}"
    if whole.before is None or whole.after is None:
        return text
    speedup = whole.before.median / whole.after.median
    text += f"; {_spread(whole.before)} -> {_spread(whole.after)} ({speedup:.2f}x"
    return text + (", in channels_last)" if whole.memory_format == "channels_last" else ")")


def _spread(timing: Timing) -> str:
    """Median with its quartiles."""
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} ms [{low:.3g}..{high:.3g}]"


def _percent(value: float | None) -> str:
    """A relative error."""
    return "" if value is None else f"{value:.2%}"


def _milliseconds(timing: Timing | None) -> str:
    """A time."""
    return "" if timing is None else f"{1e3 * timing.median:.3g}"
