"""One pass over calibration data: moments to fit on, inputs to verify on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convfactor.conv.geometry import Pair
from convfactor.conv.moments import Moments, MomentsCollector, patch_budget
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.model.watching import watch
from convfactor.plans.circumstances import HeldOut

HELD_OUT_FRACTION = 0.25
HELD_OUT_BYTES = 2 << 30
MOMENTS_BYTES = 4 << 30
NOT_BATCHES = (Tensor, np.ndarray, str, bytes, os.PathLike, Mapping)


@dataclass(frozen=True)
class Split:
    """Calibration batches, part to fit on and part to verify on."""

    fit: tuple[ModelInputs, ...]
    held_out: tuple[ModelInputs, ...]

    @property
    def identity(self) -> HeldOut:
        """How much there is, and a digest that tells data apart."""
        digest = hashlib.sha256()
        for batch in (*self.fit, *self.held_out):
            for tensor in batch.tensors:
                plain = tensor.detach().cpu().contiguous().flatten()
                digest.update(plain.view(torch.uint8).numpy().tobytes())
        return HeldOut(len(self.fit), len(self.held_out), digest.hexdigest())


@dataclass(eq=False)
class SiteData:
    """What the calibration knows of one site.

    Attributes:
        moments: Moments of the patches of the fitting batches.
        held_out: Inputs of the site in the verification batches, one list per batch.
    """

    moments: Moments
    held_out: list[list[Tensor]] = field(default_factory=list)


def split(calibration: Iterable[Any], example: ModelInputs) -> Split:
    """Read calibration batches and keep a quarter of them, at least one, for verification.

    A single batch is split along its first dimension.

    Args:
        calibration: Batches as the model takes them; an iterable is read once and kept.
        example: The example inputs, whose shapes the batches must have but for the first
            dimension and the image size.

    Raises:
        TypeError: ``calibration`` is not an iterable of batches, or a batch holds no tensor.
        ValueError: It is empty, holds one sample only, or a batch does not fit the example.
    """
    if isinstance(calibration, NOT_BATCHES) or not isinstance(calibration, Iterable):
        raise TypeError(
            "calibration must be an iterable of batches, for instance a list of tensors, "
            f"got {_described(calibration)}{_way_out(calibration)}"
        )
    batches = []
    for i, value in enumerate(calibration):
        batches.append(read_inputs(f"calibration batch {i}", value))
        _check(i, batches[-1], example)
    if not batches:
        raise ValueError(
            "calibration must hold at least one batch, got none; leave it out for white noise"
        )
    if len(batches) == 1:
        batches = _samples(batches[0])
    held = max(1, round(HELD_OUT_FRACTION * len(batches)))
    # Evenly spread, so that sorted data is not split into different kinds of picture.
    chosen = {round((i + 0.5) * len(batches) / held - 0.5) for i in range(held)}
    return Split(
        tuple(b for i, b in enumerate(batches) if i not in chosen),
        tuple(b for i, b in enumerate(batches) if i in chosen),
    )


def read_inputs(argument: str, value: Any) -> ModelInputs:
    """Read what a model is to be called with, which must hold a tensor.

    Args:
        argument: What the user calls it.
        value: A tensor, a tuple or list of arguments, or a mapping of keyword arguments.

    Raises:
        TypeError: There is no tensor in it.
        ValueError: All tensors in it are empty.
    """
    inputs = ModelInputs.read(value)
    if not inputs.tensors:
        leaves = tree_leaves((inputs.args, dict(inputs.kwargs)))
        arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves)
        raise TypeError(
            f"{argument} must hold a tensor, such as torch.rand(1, 3, 24, 24), "
            f"got {_described(value)}" + ("; use torch.from_numpy" if arrays else "")
        )
    if not any(tensor.numel() for tensor in inputs.tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"{argument} must hold values, got nothing but empty tensors of shape {shapes}; "
            "leave it out, or give one with samples"
        )
    return inputs


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    margins: Sequence[Pair],
    batches: Split,
    seed: int = 0,
    step: Callable[[int], object] = lambda done: None,
) -> dict[Site, SiteData]:
    """Run the batches once and collect every site's moments and verification inputs.

    Where the covariances of all sites together would take more than a bound of memory, the sites
    are taken in several passes.

    Args:
        model: The model; it is left as it was.
        sites: What to collect for; those that the data does not reach are left out.
        margins: Taps to add around each site's kernel.
        batches: What to run.
        seed: Seed of the sampling.
        step: Told how many batches are done.
    """
    result: dict[Site, SiteData] = {}
    done = 0
    for part in _parts(sites, margins):
        collectors = {}
        for site, margin in part:
            collectors[site] = MomentsCollector(site.geometry, margin, seed)
        quotas = {
            site: _quota(collector, site, len(batches.fit))
            for site, collector in collectors.items()
        }

        def fit(site: Site, x: Tensor) -> None:
            collectors[site].add(x, quotas[site])  # noqa: B023 - called in this iteration only

        with watch(model, [site for site, _ in part], fit):
            for batch in batches.fit:
                batch.run(model)
                step(done := done + 1)
        for site, collector in collectors.items():
            if collector.count:
                result[site] = SiteData(collector.moments())
    _keep_held_out(model, result, batches.held_out)
    return {site: data for site, data in result.items() if any(data.held_out)}


def _keep_held_out(
    model: nn.Module, data: dict[Site, SiteData], batches: Sequence[ModelInputs]
) -> None:
    """Record the sites' inputs in the verification batches, as many as memory allows."""
    used = 0

    def keep(site: Site, x: Tensor) -> None:
        nonlocal used
        used += x.numel() * x.element_size()
        data[site].held_out[-1].append(x.detach().clone())

    with watch(model, list(data), keep):
        for batch in batches:
            if used > HELD_OUT_BYTES:
                return
            for site_data in data.values():
                site_data.held_out.append([])
            batch.run(model)


def _quota(collector: MomentsCollector, site: Site, batches: int) -> int:
    """Patches to take per call."""
    calls = max(1, sum(count for _, count in site.subject.shapes))
    return math.ceil(patch_budget(collector.geometry, collector.margin) / (batches * calls))


def _parts(sites: Sequence[Site], margins: Sequence[Pair]) -> list[list[tuple[Site, Pair]]]:
    """Cut the sites into parts whose covariances fit into memory together."""
    parts: list[list[tuple[Site, Pair]]] = []
    used = MOMENTS_BYTES
    for site, margin in zip(sites, margins, strict=True):
        _, in_per_group, height, width = site.geometry.weight_shape
        size = in_per_group * (height + 2 * margin[0]) * (width + 2 * margin[1])
        need = 2 * 8 * site.geometry.groups * size**2
        if used + need > MOMENTS_BYTES:
            parts.append([])
            used = 0
        parts[-1].append((site, margin))
        used += need
    return parts


def _described(value: Any) -> str:
    """Name the type of a value, and of what it holds."""
    name = type(value).__name__
    held = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, tuple, list)) or not held:
        return "None" if value is None else name
    return f"{name} of {' and '.join(sorted({type(leaf).__name__ for leaf in held}))}"


def _way_out(calibration: Any) -> str:
    """Say how to make batches of what is none."""
    if isinstance(calibration, (str, bytes, os.PathLike)):
        return "; load the file and give a list of batches"
    if isinstance(calibration, np.ndarray):
        return "; use torch.from_numpy and put a single batch in a list"
    if callable(calibration):
        return "; call it and give what it returns"
    return "; put a single batch in a list"


def _check(index: int, batch: ModelInputs, example: ModelInputs) -> None:
    """Refuse a batch that does not look like the example inputs."""
    mine, wanted = batch.tensors, example.tensors
    shapes = [tuple(t.shape) for t in mine], [tuple(t.shape) for t in wanted]
    fits = len(mine) == len(wanted) and all(
        a.dim() == b.dim() and a.dtype == b.dtype and (a.dim() < 2 or a.shape[1] == b.shape[1])
        for a, b in zip(mine, wanted, strict=True)
    )
    if not fits:
        dtypes = [str(t.dtype) for t in mine], [str(t.dtype) for t in wanted]
        way_out = ""
        if len(mine) > len(wanted):
            way_out = "; give only what the model takes and drop the labels"
        elif len(mine) == len(wanted) and dtypes[0] != dtypes[1]:
            way_out = "; convert it to the dtype of the example inputs"
        raise ValueError(
            f"calibration batch {index} must look like the example inputs (shapes {shapes[1]}, "
            f"dtypes {dtypes[1]}; first and image sizes may differ), got "
            f"shapes {shapes[0]}, dtypes {dtypes[0]}{way_out}"
        )
    for t in mine:
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise ValueError(
                f"calibration batch {index} must be finite, got Inf or NaN in it; leave it out"
            )


def _samples(batch: ModelInputs) -> list[ModelInputs]:
    """Split one batch along its first dimension."""
    sizes = {t.shape[0] for t in batch.tensors if t.dim() > 0}
    count = sizes.pop() if len(sizes) == 1 else 0
    if count < 2:
        raise ValueError(
            "calibration must hold at least two samples, got one; give more, as a part of them is "
            "kept to verify the error on data that the fit did not see"
        )

    return [
        batch.map(lambda t, i=i: t[i : i + 1] if t.dim() > 0 else t)  # type: ignore[misc]
        for i in range(count)
    ]
