"""Factorize one kernel."""

from __future__ import annotations

import io
import json
import textwrap
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import convfactor
from convfactor import Factorization, Stage
from convfactor.cli.kernels import read_kernel
from convfactor.cli.notes import shown
from convfactor.cli.parsing import STREAM
from convfactor.cli.streams import writing
from convfactor.plans.settings import TOLERANCE
from convfactor.plans.words import sides
from convfactor.terminal import width

convfactor.factorize  # noqa: B018 - loads what takes long, which can't be interrupted halfway
MOST_TAPS = 9  # on a line


def run(options: Namespace) -> None:
    """Print the stages and the error, and write them and their picture."""
    weight = read_kernel(options.kernel, options.tensor)
    is_open = options.stages is None and options.widths is None
    tolerance = TOLERANCE if options.tolerance is None and is_open else options.tolerance
    found = convfactor.factorize(
        weight,
        tolerance,
        stages=options.stages,
        widths=options.widths,
        stride=options.stride,
        dilation=options.dilation,
        groups=options.groups,
        preserve_dc=options.preserve_dc,
        seed=options.seed,
        strict=options.strict,
        progress=shown(options),
        time_limit=options.time_limit,
    )
    with writing() as write:
        if options.output is not None:
            write("--output", options.output, _weights(options.output, found))
        if options.plot is not None:
            write("--plot", options.plot, _picture(options, weight, found))
    if options.json:
        print(json.dumps(_record(options.kernel, tolerance, found), indent=2))
    elif STREAM not in (options.plot, options.output):
        for line in _lines(options.kernel, tolerance, found):
            print(textwrap.fill(line, width(), subsequent_indent="    "))


def _picture(options: Namespace, weight: Any, found: Factorization) -> bytes:
    """Draw the kernel, the stages and the error."""
    figure = convfactor.plots.plot_kernels(weight, found, dilation=options.dilation)
    ending = "png" if options.plot == STREAM else Path(options.plot).suffix[1:].lower()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, dpi=110)
    return buffer.getvalue()


def _weights(target: str, found: Factorization) -> bytes:
    """The stages by number, and where the composed kernel lies."""
    tensors = {}
    for i, stage in enumerate(found.stages, 1):
        tensors[f"stage{i}"] = stage.weight.contiguous()
        tensors[f"stage{i}.stride"] = torch.tensor(stage.stride)
        tensors[f"stage{i}.dilation"] = torch.tensor(stage.dilation)
        tensors[f"stage{i}.groups"] = torch.tensor(stage.groups)
    tensors["offset"] = torch.tensor(found.offset)
    if target.lower().endswith(".safetensors"):
        return safetensors.torch.save(tensors)
    plain = {n: (t.float() if t.dtype == torch.bfloat16 else t) for n, t in tensors.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in plain.items()})
    return buffer.getvalue()


def _lines(name: str, tolerance: float | None, found: Factorization) -> list[str]:
    """The stages and the error, for a person."""
    kernel = found.geometry
    lone = kernel.in_channels == kernel.out_channels == 1
    size = "x".join(map(str, kernel.kernel_size if lone else kernel.weight_shape))
    met = ""
    if tolerance is not None:
        met = f", tolerance {tolerance:g} {'met' if found.met else 'missed'}"
    ratio = kernel.macs / found.macs
    fewer = (
        f", {ratio:.2f}x fewer than {kernel.macs}" if ratio > 1 else f" as against {kernel.macs}"
    )
    lines = [
        f"{name}, {size}: {found.structure}",
        f"relative error {found.error:.3g}{met}",
        f"{found.macs} multiplies per output pixel{fewer}",
    ]
    if found.offset != (0, 0):
        lines.append(f"its corner lies at (row, column) {found.offset} of the kernel")
    for i, stage in enumerate(found.stages, 1):
        lines += _stage(i, stage)
    return [*lines, *([found.message] if found.message else [])]


def _stage(number: int, stage: Stage) -> list[str]:
    """A stage, with its taps where there are few."""
    outputs, inputs, *taps = stage.weight.shape
    lone = outputs == inputs == 1
    more = "" if lone else f", {inputs * stage.groups} -> {outputs} channels"
    for what, sizes in (("stride", stage.stride), ("dilation", stage.dilation)):
        more += f", {what} {sides(sizes)}" if max(sizes) > 1 else ""
    more += f", {stage.groups} groups" if stage.groups > 1 else ""
    lines = [f"stage {number}: {'x'.join(map(str, taps))}{more}"]
    if lone and taps[1] <= MOST_TAPS:
        rows = stage.weight[0, 0].double().tolist()
        lines += ["  " + " ".join(f"{tap:8.4g}" for tap in row) for row in rows]
    return lines


def _record(name: str, tolerance: float | None, found: Factorization) -> dict[str, Any]:
    """The same for programs."""
    return {
        "kernel": name,
        "shape": list(found.geometry.weight_shape),
        "structure": str(found.structure),
        "tolerance": tolerance,
        "met": found.met,
        "error": found.error,
        "multiplies_before": found.geometry.macs,
        "multiplies_after": found.macs,
        "offset": list(found.offset),
        "exact": found.exact,
        "timed_out": found.timed_out,
        "message": found.message,
        "stages": [
            {
                "shape": list(stage.weight.shape),
                "stride": list(stage.stride),
                "dilation": list(stage.dilation),
                "groups": stage.groups,
                "weight": stage.weight.tolist(),
            }
            for stage in found.stages
        ],
    }
