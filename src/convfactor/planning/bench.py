"""Solve structures for one layer, and measure them on data that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.accuracy import OutputErrors, layer_errors
from convfactor.conv.cascade import Cascade
from convfactor.conv.forms import convolution
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import Structure
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.solvers.request import Effort
from convfactor.model.sites import Site


@dataclass(frozen=True)
class Candidate:
    """One structure in both its frames.

    Attributes:
        taps: On the kernel's own taps, where it is solved.
        pixels: On the pixels of the input, where it is priced, kept and run.
    """

    taps: Structure
    pixels: Structure

    @classmethod
    def of(cls, taps: Structure, kernel: ConvGeometry) -> Candidate:
        """Lay a structure for a kernel out on pixels."""
        return cls(taps, taps.dilated(kernel.dilation))

    @property
    def macs(self) -> int:
        """Multiplies per output pixel, in either frame."""
        return self.taps.macs

    @property
    def is_chain(self) -> bool:
        """Whether every stage keeps its channels apart."""
        return self.taps.is_chain


@dataclass(frozen=True, eq=False)
class Trial:
    """A solved candidate and its error on data that the fit did not see."""

    candidate: Candidate
    factorization: Factorization
    errors: OutputErrors | None

    @property
    def cascade(self) -> Cascade:
        """The cascade on the kernel's own taps, for later solves to start from."""
        return self.factorization.cascade

    @property
    def exact(self) -> bool:
        """Whether only rounding is left."""
        return self.factorization.exact

    @property
    def error(self) -> float:
        """What the tolerance bounds."""
        return self.factorization.error if self.errors is None else self.errors.pooled


class Bench:
    """Solves structures for one site and measures them on its held-out inputs."""

    def __init__(
        self, factorizer: Factorizer, site: Site, held_out: Sequence[Sequence[Tensor]]
    ) -> None:
        """Run the original on its held-out inputs, so that it is there to compare with."""
        self._factorizer = factorizer
        self._site = site
        with torch.no_grad():
            self._pairs = [
                (x, convolution(x, site.weight, site.bias, site.geometry))
                for batch in held_out
                for x in batch
            ]

    def solve(
        self, candidate: Candidate, effort: Effort, starts: Sequence[Cascade], needed: float
    ) -> Trial:
        """Solve, round to the layer's dtype, and measure on full outputs."""
        found = self._factorizer.attempt(candidate.taps, effort, starts, needed)
        return self.measured(candidate, found)

    def measured(self, candidate: Candidate, factorization: Factorization) -> Trial:
        """Measure a solution on full outputs."""
        if not self._pairs:
            return Trial(candidate, factorization, None)
        site, geometry = self._site, self._site.geometry
        pixels = replace(factorization, cascade=factorization.cascade.dilated(geometry.dilation))
        layer = CascadeConv2d.from_weight(site.weight, site.bias, pixels, geometry)
        errors = layer_errors(layer, self._pairs, geometry, site.scales.outputs)
        return Trial(candidate, factorization, errors)
