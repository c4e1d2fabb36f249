"""One pass over calibration data: moments to fit on, inputs to verify on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.moments import Moments, MomentsCollector, patch_budget
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.model.watching import watch
from convfactor.planning.batches import Split

HELD_OUT_BYTES = 2 << 30
MOMENTS_BYTES = 4 << 30


@dataclass(eq=False)
class SiteData:
    """What the calibration knows of one site.

    Attributes:
        moments: Moments of the patches of the fitting batches.
        held_out: Inputs of the site in the verification batches, one list per batch.
    """

    moments: Moments
    held_out: list[list[Tensor]] = field(default_factory=list)


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    margins: Sequence[Pair],
    batches: Split,
    seed: int = 0,
    step: Callable[[int], object] = lambda done: None,
) -> dict[Site, SiteData]:
    """Run the batches once and collect every site's moments and verification inputs.

    Where the sums of all sites together would take more than a bound of memory, beside the moments
    that are made of them, the sites are taken in several passes.

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
            if is_functorch_wrapped_tensor(x):
                return  # under torch.vmap no values can be read
            collectors[site].add(x, quotas[site])  # noqa: B023 - called in this iteration only

        with watch(model, [site for site, _ in part], fit):
            for batch in batches.fit:
                batch.run(model)
                step(done := done + 1)
        for site, _ in part:
            collector = collectors.pop(site)  # its sums are as large as the moments
            if collector.count:
                result[site] = SiteData(collector.moments())
    _keep_held_out(model, result, batches.held_out)
    return {site: data for site, data in result.items() if any(data.held_out)}


def _keep_held_out(
    model: nn.Module, data: dict[Site, SiteData], batches: Sequence[ModelInputs]
) -> None:
    """Record the sites' inputs in the verification batches, in as many as memory allows.

    The first batch tells how many that are; the others are spread evenly.
    """
    used = 0

    def keep(site: Site, x: Tensor) -> None:
        nonlocal used
        used += x.numel() * x.element_size()
        data[site].held_out[-1].append(x.detach().clone())

    def record(batch: ModelInputs) -> None:
        for site_data in data.values():
            site_data.held_out.append([])
        batch.run(model)

    with watch(model, list(data), keep):
        first, *others = batches
        record(first)
        count = min(len(others), HELD_OUT_BYTES // max(used, 1) - 1)
        for i in range(count):
            if used > HELD_OUT_BYTES:
                return
            record(others[(2 * i + 1) * len(others) // (2 * count)])


def _quota(collector: MomentsCollector, site: Site, batches: int) -> int:
    """Patches to take per call."""
    calls = max(site.subject.calls, default=1)
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
