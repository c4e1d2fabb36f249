"""What a structure costs in place of a layer: measured seconds, or multiplies."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.formats import FORMATS, MemoryFormat
from convfactor.conv.forms import PLAIN, Form
from convfactor.conv.framed import framed
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import Structure
from convfactor.latency import FEWEST_ROUNDS, Clock, Timing, compare, weighted
from convfactor.model.sites import InputShape
from convfactor.plans.decisions import Cost

# One call of a layer on every shape.
Run = Sequence[Callable[[], object]]

QUICK, CAREFUL = 0.12, 0.6
QUICK_ROUNDS = 3
# Random numbers that an input repeats: its values do not count, and drawing them takes long.
DRAWN = 1 << 16


@dataclass(frozen=True)
class Price:
    """What a structure costs.

    Attributes:
        cost: Before and after.
        memory_format: The format that gives this cost.
    """

    cost: Cost
    memory_format: MemoryFormat = "as given"

    @property
    def relative(self) -> float:
        """Cost over the original's; below 1 is cheaper."""
        return self.cost.relative


class Pricing(Protocol):
    """Prices structures for one layer."""

    def quick(self, structure: Structure) -> Price:
        """A price good enough to search with."""

    def careful(self, structure: Structure, patience: float = 1.0) -> Price:
        """A price to decide on, for which a patient one is measured longer."""


@dataclass(frozen=True)
class Multiplies:
    """Counts multiplies; needs no clock and is deterministic."""

    geometry: ConvGeometry
    form: Form = PLAIN

    def quick(self, structure: Structure) -> Price:
        """Multiplies relative to the original's."""
        before = self.form.macs(self.geometry)
        return Price(Cost(macs_before=before, macs_after=structure.macs))

    def careful(self, structure: Structure, patience: float = 1.0) -> Price:
        """The same, which is certain."""
        return self.quick(structure)


class Stopwatch:
    """Times a layer's structures, filled with random weights, on the shapes that it sees.

    The original is timed in both memory formats and the faster one counts, on inputs that already
    have it. A structure is timed on inputs of that same format, with the conversion that its own
    format needs: the whole model is compared in both formats later, and runs in the better one.
    Every shape is timed by itself and counts as often as it is called. Inputs are made for each
    comparison, as those of all layers of a model may not fit into memory.
    """

    def __init__(
        self,
        geometry: ConvGeometry,
        shapes: Sequence[tuple[InputShape, float]],
        dtype: torch.dtype,
        device: torch.device,
        known: dict[object, Price],
        clock: Clock = compare,
        form: Form = PLAIN,
    ) -> None:
        """Say what is timed.

        Args:
            geometry: The plain convolution that the layer is.
            shapes: Shapes of the images that this one reads, with their numbers of calls.
            dtype: Dtype it runs in.
            device: Device it runs on.
            known: Prices already measured, shared between layers of one model.
            clock: Times calls.
            form: How the layer is a plain convolution.
        """
        self._geometry = geometry
        self._form = form
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._known = known
        self._clock = clock
        self._key = (form, geometry, tuple(sorted(shapes, key=repr)), dtype, device)

    def quick(self, structure: Structure) -> Price:
        """Time a structure briefly, once; what is known better counts."""
        key = (self._key, structure)
        if key not in self._known:
            self._known[key] = self._price(
                structure, [self._better], self._formats, QUICK, QUICK_ROUNDS
            )
        return self._known.get((*key, 1.0), self._known[key])

    def careful(self, structure: Structure, patience: float = 1.0) -> Price:
        """Time a structure at length, once, in its better format."""
        key = (self._key, structure, patience)
        if key not in self._known:
            formats = (self.quick(structure).memory_format,)
            originals = self._own_formats
            rounds = round(patience * FEWEST_ROUNDS)
            self._known[key] = self._price(
                structure, originals, formats, patience * CAREFUL, rounds
            )
        return self._known[key]

    @functools.cached_property
    def _better(self) -> torch.memory_format:
        """The format in which the original is faster."""
        formats = self._own_formats
        if len(formats) == 1:
            return formats[0]
        runs = [self._original(self._weight(), self._inputs(f), f) for f in formats]
        timings = self._time(runs, QUICK, FEWEST_ROUNDS)
        return formats[timings[0].median > timings[1].median]

    @property
    def _own_formats(self) -> tuple[torch.memory_format, ...]:
        """The formats that the original's inputs may have."""
        if self._form.dims == 1:
            return (torch.contiguous_format,)
        return (torch.contiguous_format, torch.channels_last)

    @property
    def _formats(self) -> tuple[MemoryFormat, ...]:
        """The formats to time a structure in.

        On inputs in channels_last, "as given" is the same, but does not hold the layer to it: the
        demo's 5x5 layer then ran on what the layer before gave, and the model took 109 ms, not 69.
        """
        if self._better == torch.channels_last:
            return ("channels_last",)
        return FORMATS

    def _price(
        self,
        structure: Structure,
        originals: Sequence[torch.memory_format],
        formats: Sequence[MemoryFormat],
        seconds: float = CAREFUL,
        rounds: int = FEWEST_ROUNDS,
    ) -> Price:
        """Compare the original in some formats with a structure in some."""
        inputs = {f: self._inputs(f) for f in {*originals, self._better}}
        weight = self._weight()
        runs = [self._original(weight, inputs[f], f) for f in originals]
        weights = Cascade.random(structure, dtype=self._dtype)
        for name in formats:
            memory_format = torch.channels_last if name == "channels_last" else None
            like = self._form.weight(weight, self._geometry.groups)
            layer = CascadeConv2d.from_weight(like, None, weights, self._geometry, memory_format)
            whole = framed(layer, self._form)
            runs.append([functools.partial(whole, x) for x in inputs[self._better]])
        timings = self._time(runs, seconds, rounds)
        before = min(timings[: len(originals)], key=lambda t: t.median)
        after, name = min(
            zip(timings[len(originals) :], formats, strict=True), key=lambda pair: pair[0].median
        )
        cost = Cost(before, after, self._form.macs(self._geometry), structure.macs)
        return Price(cost, name)

    def _time(self, runs: Sequence[Run], seconds: float, rounds: int) -> list[Timing]:
        """Time all calls of some runs of the layer in turn, and sum up those of each."""
        calls = [call for run in runs for call in run]
        timings = self._clock(calls, self._device, seconds, rounds)
        size = len(self._shapes)
        counts = [count for _, count in self._shapes]
        return [weighted(timings[i : i + size], counts) for i in range(0, len(timings), size)]

    def _original(
        self, weight: Tensor, inputs: Sequence[Tensor], memory_format: torch.memory_format
    ) -> Run:
        """The original convolution on inputs of one format."""
        if weight.dim() == 4:
            weight = weight.to(memory_format=memory_format)  # also strides of one channel
        form, geometry = self._form, self._geometry
        return [functools.partial(form.convolve, x, weight, None, geometry) for x in inputs]

    def _weight(self) -> Tensor:
        """A weight of the layer."""
        shape = self._form.weight_shape(self._geometry)
        return _random(shape).to(self._device, self._dtype)

    def _inputs(self, memory_format: torch.memory_format) -> list[Tensor]:
        """An input of the layer of every shape in a format, where it has one."""
        made = (_random(shape.size).to(self._device, self._dtype) for shape, _ in self._shapes)
        images = [x.to(memory_format=memory_format) if x.dim() == 4 else x for x in made]
        return [x.squeeze(-2) if self._form.dims == 1 else x for x in images]


def _random(size: Sequence[int]) -> Tensor:
    """Fill a tensor with random numbers, which repeat."""
    count = math.prod(size)
    drawn = torch.randn(min(count, DRAWN), generator=torch.Generator().manual_seed(0))
    return drawn.repeat(-(-count // DRAWN))[:count].view(*size)
