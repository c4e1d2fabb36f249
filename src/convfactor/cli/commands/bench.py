"""Time what could take a kernel's place."""

from __future__ import annotations

import json
from argparse import Namespace

import torch

from convfactor.cli.given import read_device
from convfactor.cli.notes import shown
from convfactor.planning.worth import bench


def run(options: Namespace) -> None:
    """Print the prices of every family."""
    found = bench(
        options.shape,
        options.size,
        batch=options.batch,
        stride=options.stride,
        dilation=options.dilation,
        groups=options.groups,
        dtype=getattr(torch, options.dtype),
        device=read_device(options.device),
        objective=options.objective,
        min_speedup=options.min_speedup,
        progress=shown(options),
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
