"""Solve structures for one layer, and measure them on data that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.accuracy import OutputErrors, layer_errors
from convfactor.conv.calls import convolution
from convfactor.conv.cascade import Cascade
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import Structure
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.solvers.request import Effort
from convfactor.model.sites import Site


@dataclass(frozen=True, eq=False)
class Trial:
    """A solved structure and its error on data that the fit did not see."""

    factorization: Factorization
    errors: OutputErrors | None

    @property
    def cascade(self) -> Cascade:
        """The cascade, its taps on the kernel's own grid."""
        return self.factorization.cascade

    @property
    def structure(self) -> Structure:
        """The cascade without its weights, on the same grid."""
        return self.cascade.structure

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

    def solve(self, structure: Structure, effort: Effort, starts: Sequence[Cascade]) -> Trial:
        """Solve, round to the layer's dtype, and measure on full outputs."""
        factorization = self._factorizer.attempt(structure, effort, starts)
        if not self._pairs:
            return Trial(factorization, None)
        site, geometry = self._site, self._site.geometry
        pixels = replace(factorization, cascade=factorization.cascade.dilated(geometry.dilation))
        layer = CascadeConv2d.from_weight(site.weight, site.bias, pixels, geometry)
        return Trial(factorization, layer_errors(layer, self._pairs, geometry))
