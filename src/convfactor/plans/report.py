"""What a plan says, in cells and lines; as Markdown, and as a table for other programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from convfactor.plans.decisions import Decisions, Entry, Replaced
from convfactor.plans.hints import hints
from convfactor.plans.outcome import budget, called, totals
from convfactor.plans.words import counted, milliseconds, percent, sides


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
    structure="stages\n(hidden widths)",
    error="error",
    worst_batch="worst\nbatch",
    worst_channel="worst\nchannel",
    border="border",
    before="before\n(ms)",
    after="after\n(ms)",
    reason="reason",
)
FIGURES = ("error", "worst_batch", "worst_channel", "border", "before", "after")

COLUMNS = {
    "layer": "subject.name",
    "kind": "subject.kind",
    "owners": "subject.owners",
    "weight": "subject.weight_name",
    "weight_sha256": "subject.fingerprint",
    "dtype": "subject.dtype",
    "kernel_size": "subject.kernel_size",
    "in_channels": "subject.geometry.in_channels",
    "out_channels": "subject.out_channels",
    "transposed_stride": "subject.form.transposed.stride",
    "stride": "subject.geometry.stride",
    "dilation": "subject.geometry.dilation",
    "groups": "subject.geometry.groups",
    "padding_left_right_top_bottom": "subject.geometry.padding",
    "padding_mode": "subject.geometry.padding_mode",
    "decision": "decision.label",
    "reason": "decision.why",
    "missed_tolerance": "missed",
    "structure": "decision.structure",
    "memory_format": "decision.memory_format",
    "relative_error": "decision.error",
    "relative_error_worst_batch": "decision.errors.worst_batch",
    "relative_error_worst_channel": "decision.errors.worst_channel",
    "relative_error_border": "decision.errors.border",
    "relative_weight_error": "decision.weight_error",
    "bound_l_inf": "decision.bounds.l_inf",
    "bound_spectral": "decision.bounds.spectral",
    "before_median_s": "decision.cost.before.median",
    "before_lower_quartile_s": "decision.cost.before.low",
    "before_upper_quartile_s": "decision.cost.before.high",
    "after_median_s": "decision.cost.after.median",
    "after_lower_quartile_s": "decision.cost.after.low",
    "after_upper_quartile_s": "decision.cost.after.high",
    "multiplies_per_output_pixel_before": "decision.cost.macs_before",
    "multiplies_per_output_pixel_after": "decision.cost.macs_after",
}


def to_markdown(plan: Decisions) -> str:
    """The decisions as a table of GitHub's Markdown, with what ``print`` shows around it."""
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
    around = [map(_literal, texts(plan)) for texts in (header, footer)]
    return "\n\n".join([*around[0], "\n".join(lines), *around[1]]) + "\n"


def to_csv(plan: Decisions) -> str:
    """One line per decision for other programs: full precision, seconds, empty where unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in plan.entries:
        writer.writerow([_value(entry, path) for path in COLUMNS.values()])
    return buffer.getvalue()


def row(entry: Entry) -> Row:
    """Cells of one entry."""
    subject, decision = entry.subject, entry.decision
    kernel = "x".join(map(str, subject.kernel_size)) or subject.kind
    geometry = subject.geometry
    if geometry is not None:
        stride, up = geometry.stride, subject.form.transposed
        kernel += f" {geometry.in_channels}->{subject.out_channels}"
        kernel += f" /{sides(stride)}" if stride != (1, 1) else ""
        kernel += f" transposed *{sides(up.stride)}" if up is not None else ""
        kernel += f" @{sides(geometry.dilation)}" if geometry.dilation != (1, 1) else ""
        kernel += f" g{geometry.groups}" if geometry.groups > 1 else ""
    structure = "" if decision.structure is None else str(decision.structure)
    if isinstance(decision, Replaced) and decision.memory_format == "channels_last":
        structure += ", channels_last"
    errors, cost = decision.errors, decision.cost
    return Row(
        layer=subject.name,
        kernel=kernel,
        decision=decision.label,
        structure=structure,
        error=percent(decision.error),
        worst_batch=percent(None if errors is None else errors.worst_batch),
        worst_channel=percent(None if errors is None else errors.worst_channel),
        border=percent(None if errors is None else errors.border),
        before=milliseconds(None if cost is None else cost.before),
        after=milliseconds(None if cost is None else cost.after),
        reason=decision.why,
    )


def nothing(plan: Decisions) -> str:
    """Why there is no table."""
    least = plan.settings.min_kernel_size
    return f"no convolution with a kernel of {least} or more taps on a side; the model is unchanged"


def replaced(plan: Decisions) -> str:
    """How many layers of how many are replaced."""
    return f"{len(plan.replaced)} of {len(plan.entries)} {subjects(plan)} replaced"


def subjects(plan: Decisions) -> str:
    """What the entries of a plan are."""
    transforms = sum(entry.subject.kind == "transform" for entry in plan.entries)
    name = "wavelet transform" if transforms == len(plan.entries) else "large-kernel layer"
    if 0 < transforms < len(plan.entries):
        return "large-kernel layers and wavelet transforms"
    return name if len(plan.entries) == 1 else f"{name}s"


def header(plan: Decisions) -> list[str]:
    """What the figures mean and where they hold."""
    settings, environment = plan.settings, plan.environment
    measured = "relative output error" if plan.calibrated else "weight error"
    lines = [f"{budget(settings)} ({measured}; {plan.calibration})"]
    if settings.objective == "macs":
        lines.append("objective: multiplies, nothing was timed")
    lines.append(
        f"torch {environment.torch_version}, {environment.device}, {environment.machine}, "
        f"{counted(environment.threads, 'thread')}"
    )
    return [*lines, *called(plan)]


def footer(plan: Decisions) -> list[str]:
    """The whole model, and what to do next."""
    return [replaced(plan), *totals(plan), *(f"hint: {hint}" for hint in hints(plan))]


def _piped(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _literal(text: str) -> str:
    """A user's text, on one line, none of it taken for Markdown."""
    return re.sub(r"([\\`*_<>\[\]|~&#])", r"\\\1", " ".join(text.split()))


def _value(entry: Entry, path: str) -> Any:
    """An attribute for a CSV cell, None where something on the way to it is unknown."""
    value: Any = entry
    for name in path.split("."):
        value = getattr(value, name, None)
    if isinstance(value, tuple):
        return (";" if path.endswith("owners") else "x").join(map(str, value))
    return value if value is None or isinstance(value, (float, int)) else str(value)
