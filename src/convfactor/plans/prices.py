"""What may take a kernel's place, and what that costs: prices without weights."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from convfactor import terminal
from convfactor.conv.geometry import ConvGeometry
from convfactor.plans.circumstances import Environment
from convfactor.plans.decisions import Cost, Tried
from convfactor.plans.words import counted, sides, spread


@dataclass(frozen=True)
class FamilyPrice:
    """The prices of structures that differ in their widths.

    Attributes:
        name: The stages without their widths.
        fastest: The fastest of those that were priced.
        widest: For each speed-up that is told, the widest that reaches it; None where none does.
    """

    name: str
    fastest: Tried
    widest: tuple[Tried | None, ...]


@dataclass(frozen=True)
class Worth:
    """The prices of what may take a kernel's place.

    Attributes:
        kernel: The convolution.
        size: Of the input, (N, C, H, W).
        dtype: In which it computes.
        environment: Where it was measured.
        speedups: For which widths are told; from the first on it pays.
        prices: Of every family, fastest first.
    """

    kernel: ConvGeometry
    size: tuple[int, int, int, int]
    dtype: str
    environment: Environment
    speedups: tuple[float, ...]
    prices: tuple[FamilyPrice, ...]

    @property
    def best(self) -> FamilyPrice | None:
        """The fastest family; None where no structure has fewer multiplies."""
        return self.prices[0] if self.prices else None

    @property
    def pays(self) -> bool:
        """Whether one is fast enough."""
        return any(price.widest[0] is not None for price in self.prices)

    def __str__(self) -> str:
        """Table of the families with the verdict under it."""
        return "\n".join([*self._header(), *self._table(), *self._verdict(), *self._doubt()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for other programs, of which JSON has all; seconds, and None for unknown."""
        return {
            "shape": list(self.kernel.weight_shape),
            "stride": list(self.kernel.stride),
            "dilation": list(self.kernel.dilation),
            "groups": self.kernel.groups,
            "input": list(self.size),
            "dtype": self.dtype,
            **self.environment.to_dict(),
            "pays": self.pays,
            "families": [
                {
                    "structure": price.name,
                    "fastest": _offer(price.fastest),
                    "widest": [
                        {"from_speedup": speedup, **_offer(tried)}
                        for speedup, tried in zip(self.speedups, price.widest, strict=True)
                        if tried is not None
                    ],
                }
                for price in self.prices
            ],
        }

    def _header(self) -> list[str]:
        """The kernel, and where it runs."""
        kernel, environment = self.kernel, self.environment
        integers = {"stride": kernel.stride, "dilation": kernel.dilation}
        more = [f", {name} {sides(value)}" for name, value in integers.items() if max(value) > 1]
        more += [f", {kernel.groups} groups"] if kernel.groups > 1 else []
        batch, _, height, width = self.size
        return [
            f"{'x'.join(map(str, kernel.weight_shape))}{''.join(more)} on {batch} x "
            f"{height}x{width}, {self.dtype}",
            f"torch {environment.torch_version}, {environment.device}, {environment.machine}, "
            f"{counted(environment.threads, 'thread')}",
            f"original: {self._original()}",
        ]

    def _original(self) -> str:
        """What the kernel costs."""
        before = None if self.best is None else self.best.fastest.cost.before
        macs = f"{self.kernel.macs} multiplies per output pixel"
        return macs if before is None else f"{spread(before)}, {macs}"

    def _table(self) -> list[str]:
        """The families, as lines."""
        if not self.prices:
            return []
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("stages", overflow="fold")
        table.add_column("at best", justify="right", no_wrap=True)
        for speedup in self.speedups:
            table.add_column(f"widest at {speedup:g}x", overflow="fold")
        for price in self.prices:
            table.add_row(price.name, _times(price.fastest.cost), *map(_widths, price.widest))
        buffer = io.StringIO()
        Console(file=buffer, width=terminal.width(), color_system=None, force_jupyter=False).print(
            table
        )
        return [line.rstrip() for line in buffer.getvalue().splitlines()]

    def _verdict(self) -> list[str]:
        """Whether it is worth it."""
        if self.best is None:
            return ["not worth it: no structure has fewer multiplies"]
        fastest = self.best.fastest
        best = f"at best {fastest.cost}, by {fastest.structure}"
        if not self.pays:
            return textwrap.wrap(f"not worth it here: {best}", terminal.width())
        text = f"worth it here where the widths are enough for the error: {best}"
        more = "which they are depends on the weights: convfactor factorize and optimize tell"
        return [*textwrap.wrap(text, terminal.width()), more]

    def _doubt(self) -> list[str]:
        """That other work ran beside this."""
        if not self.environment.busy:
            return []
        return [f"the machine was busy ({self.environment.crowd}): time again when it is quiet"]


def _times(cost: Cost) -> str:
    """A speed-up."""
    return f"{1 / cost.relative:.3g}x" if cost.relative > 1e-3 else f"{1 / cost.relative:.0f}x"


def _widths(tried: Tried | None) -> str:
    """The widths of a structure."""
    if tried is None or tried.structure is None:
        return "-"
    return ", ".join(map(str, tried.structure.widths)) or "any"


def _offer(tried: Tried) -> dict[str, Any]:
    """One structure."""
    cost, structure = tried.cost, tried.structure
    return {
        "widths": [] if structure is None else list(structure.widths),
        "before_s": None if cost.before is None else cost.before.median,
        "after_s": None if cost.after is None else cost.after.median,
        "multiplies_before": cost.macs_before,
        "multiplies_after": cost.macs_after,
        "speedup": 1 / cost.relative,
    }
