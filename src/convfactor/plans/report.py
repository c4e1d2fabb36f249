"""A plan as text that a person can read, and as a table for other programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from convfactor.conv.geometry import Pair
from convfactor.latency import Timing

if TYPE_CHECKING:
    from convfactor.plans.plan import Entry, Plan, WholeModel

WIDTH = 200  # more than the columns can take together, so that nothing is cut off


class Row(NamedTuple):
    """Cells of one entry."""

    layer: str
    kernel: str
    decision: str
    structure: str
    error: str
    worst_batch: str
    worst_channel: str
    border: str
    before: str
    after: str
    reason: str


HEADINGS = Row(
    layer="layer",
    kernel="kernel",
    decision="decision",
    structure="stages (hidden widths)",
    error="error",
    worst_batch="worst\nbatch",
    worst_channel="worst\nchannel",
    border="border",
    before="before\n(ms)",
    after="after\n(ms)",
    reason="reason",
)
FIGURES = ("error", "worst_batch", "worst_channel", "border", "before", "after")
MOST_WIDTH = {"layer": 24, "structure": 24, "reason": 30}

COLUMNS = {
    "layer": "name",
    "kind": "kind",
    "owners": "owners",
    "weight": "weight_name",
    "weight_sha256": "fingerprint",
    "dtype": "dtype",
    "kernel_size": "kernel_size",
    "in_channels": "geometry.in_channels",
    "out_channels": "geometry.out_channels",
    "stride": "geometry.stride",
    "dilation": "geometry.dilation",
    "groups": "geometry.groups",
    "padding_left_right_top_bottom": "geometry.padding",
    "padding_mode": "geometry.padding_mode",
    "decision": "decision",
    "reason": "reason",
    "missed_tolerance": "missed",
    "stages": "structure",
    "memory_format": "memory_format",
    "relative_error": "error",
    "relative_error_worst_batch": "errors.worst_batch",
    "relative_error_worst_channel": "errors.worst_channel",
    "relative_error_border": "errors.border",
    "relative_weight_error": "weight_error",
    "bound_l_inf": "bounds.l_inf",
    "bound_spectral": "bounds.spectral",
    "before_median_s": "before.median",
    "before_lower_quartile_s": "before.low",
    "before_upper_quartile_s": "before.high",
    "after_median_s": "after.median",
    "after_lower_quartile_s": "after.low",
    "after_upper_quartile_s": "after.high",
    "multiplies_per_output_pixel_before": "macs_before",
    "multiplies_per_output_pixel_after": "macs_after",
}


def to_text(plan: Plan) -> str:
    """Table of the decisions, what they were measured on, and the whole model."""
    if not plan.entries:
        return nothing(plan)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, heading in HEADINGS._asdict().items():
        width = MOST_WIDTH.get(name)
        table.add_column(
            heading,
            justify="right" if name in FIGURES else "left",
            max_width=width,
            overflow="fold" if name in ("layer", "structure") else "ellipsis",
            no_wrap=width is None,
        )
    for entry in plan.entries:
        table.add_row(*row(entry))
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=WIDTH,
        color_system=None,
        legacy_windows=False,
        markup=False,
        emoji=False,
        force_jupyter=False,  # there the table would be shown, not written
    )
    console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*_header(plan), *lines, *_footer(plan)])


def to_markdown(plan: Plan) -> str:
    """The same as a table of GitHub's Markdown."""
    if not plan.entries:
        return nothing(plan) + "\n"
    rules = ["---:" if name in FIGURES else "---" for name in Row._fields]
    headings = [heading.replace("\n", " ") for heading in HEADINGS]
    lines = [_piped(headings), _piped(rules)]
    for entry in plan.entries:
        cells = row(entry)
        lines.append(
            _piped(
                cells._replace(
                    layer=_literal(cells.layer),
                    kernel=f"`{cells.kernel}`",  # elsewhere @2 would call a person of that name
                    reason=_literal(cells.reason),
                )
            )
        )
    return "\n\n".join([*_header(plan), "\n".join(lines), *_footer(plan)]) + "\n"


def to_csv(plan: Plan) -> str:
    """One line per decision for other programs: full precision, seconds, empty where unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in plan.entries:
        writer.writerow([_value(entry, path) for path in COLUMNS.values()])
    return buffer.getvalue()


def row(entry: Entry) -> Row:
    """Cells of one entry."""
    kernel = "x".join(map(str, entry.kernel_size)) or entry.kind
    if entry.geometry is not None:
        geometry = entry.geometry
        kernel += f" {geometry.in_channels}->{geometry.out_channels}"
        kernel += f" /{sides(geometry.stride)}" if geometry.stride != (1, 1) else ""
        kernel += f" @{sides(geometry.dilation)}" if geometry.dilation != (1, 1) else ""
        kernel += f" g{geometry.groups}" if geometry.groups > 1 else ""
    errors = entry.errors
    structure = "" if entry.structure is None else str(entry.structure)
    if entry.memory_format == "channels_last":
        structure += ", channels_last"
    return Row(
        layer=entry.name,
        kernel=kernel,
        decision=entry.decision,
        structure=structure,
        error=percent(entry.error),
        worst_batch=percent(None if errors is None else errors.worst_batch),
        worst_channel=percent(None if errors is None else errors.worst_channel),
        border=percent(None if errors is None else errors.border),
        before=_milliseconds(entry.before),
        after=_milliseconds(entry.after),
        reason=entry.reason,
    )


def sides(pair: Pair) -> str:
    """One number, or two where they differ."""
    return "x".join(map(str, dict.fromkeys(pair)))


def nothing(plan: Plan) -> str:
    """Why there is no table."""
    least = plan.settings.min_kernel_size
    return f"no convolution with a kernel of {least} or more taps on a side; the model is unchanged"


def replaced(plan: Plan) -> str:
    """How many layers of how many are replaced."""
    return f"{len(plan.replaced)} of {len(plan.entries)} {subjects(plan)} replaced"


def subjects(plan: Plan) -> str:
    """What the entries of a plan are."""
    transforms = sum(entry.kind == "transform" for entry in plan.entries)
    name = "wavelet transform" if transforms == len(plan.entries) else "large-kernel layer"
    if 0 < transforms < len(plan.entries):
        return "large-kernel layers and wavelet transforms"
    return name if len(plan.entries) == 1 else f"{name}s"


def output_error(whole: WholeModel) -> str:
    """Errors of the model's outputs."""
    return ", ".join(percent(error) for error in whole.errors) or "no floating-point output"


def spread(timing: Timing) -> str:
    """Median with its quartiles."""
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} ms [{low:.3g}..{high:.3g}]"


def _header(plan: Plan) -> list[str]:
    """What the figures mean and where they hold."""
    settings, environment = plan.settings, plan.environment
    measured = "relative output error" if plan.metric != "white noise" else "weight error"
    lines = [f"tolerance {settings.tolerance:g} ({measured}; {plan.metric})"]
    if settings.objective == "macs":
        lines.append("objective: multiplies, nothing was timed")
    lines.append(
        f"torch {environment.torch_version}, {environment.device}, {environment.machine}, "
        f"{environment.threads} threads"
    )
    return lines


def _footer(plan: Plan) -> list[str]:
    """The whole model."""
    lines = [replaced(plan)]
    if plan.whole is not None:
        lines.append(_whole(plan.whole, plan.metric))
    return lines


def _whole(whole: WholeModel, metric: str) -> str:
    """Errors and times of the whole model."""
    text = f"whole model: output error {output_error(whole)}"
    if metric == "white noise":
        text += " on the example inputs"
    if whole.before is None or whole.after is None:
        return text
    speedup = whole.before.median / whole.after.median
    text += f"; {spread(whole.before)} -> {spread(whole.after)} ({speedup:.2f}x"
    return text + (", in channels_last)" if whole.memory_format == "channels_last" else ")")


def percent(value: float | None) -> str:
    """A relative error; those that are only rounding as a power of ten."""
    if value is None:
        return ""
    return f"{value:.0e}" if 0 < value < 5e-5 else f"{value:.2%}"


def _milliseconds(timing: Timing | None) -> str:
    """A time."""
    return "" if timing is None else f"{1e3 * timing.median:.3g}"


def _piped(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _literal(text: str) -> str:
    """A user's text, on one line, none of it taken for Markdown."""
    return re.sub(r"([\\`*_<>\[\]|~&#])", r"\\\1", " ".join(text.split()))


def _value(entry: Entry, path: str) -> Any:
    """An attribute for a CSV cell, None where something on the way to it is unknown."""
    value: Any = reduce(
        lambda owner, name: None if owner is None else getattr(owner, name), path.split("."), entry
    )
    if isinstance(value, tuple):
        return (";" if path == "owners" else "x").join(map(str, value))
    return value if value is None or isinstance(value, (float, int)) else str(value)
