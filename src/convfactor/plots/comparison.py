"""A kernel and what its cascade composes to, read for drawing."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair, pair
from convfactor.factorization.factorization import Factorization
from convfactor.plans.decisions import Entry, Replaced
from convfactor.plans.words import percent

Kernel: TypeAlias = Tensor | NDArray[Any]
Source: TypeAlias = Cascade | Factorization | Entry
Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One output and input channel of a weight and of its cascade, on one window of taps.

    Attributes:
        cascade: The cascade.
        channel: (output, input within its group) that is compared.
        channels: How many there are of both.
        target: (height, width) of the weight.
        composed: (height, width) of the cascade.
        error: Relative error of the weights, over all channels.
        measured: Relative error of the output for the data of a calibration; None without one.
    """

    cascade: Cascade
    channel: Pair
    channels: Pair
    target: Array
    composed: Array
    error: float
    measured: float | None

    @classmethod
    def read(
        cls, target: Kernel, source: Source, channel: Pair | None, dilation: int | Pair | None
    ) -> Comparison:
        """Check the arguments, and extend both kernels with zeros to the window of both."""
        cascade, own, measured = _told(source)
        weight = _four_dimensional(_plain(target, source))
        composed = as_array(cascade.compose())
        channels = (weight.shape[0], weight.shape[1])
        if channels != composed.shape[:2]:
            raise ValueError(
                "target must have the cascade's channels (C_out, C_in/groups) = "
                f"{tuple(composed.shape[:2])}, got {channels}"
            )
        weight = _spread(weight, own if dilation is None else pair(dilation, "dilation"))
        if channel is None:
            energy = np.square(weight).sum((2, 3))
            channel = divmod(int(energy.argmax()), channels[1])
        channel = _read_channel(channel)
        if not (0 <= channel[0] < channels[0] and 0 <= channel[1] < channels[1]):
            raise ValueError(
                f"channel must be (output below {channels[0]}, input below {channels[1]}), "
                f"got {channel}"
            )
        (top, left) = cascade.offset
        wanted = _extended(weight, composed, (top, left))
        made = _extended(composed, weight, (-top, -left))
        power = float(np.linalg.norm(wanted))
        wrong = float(np.linalg.norm(made - wanted))
        error = wrong / power if power else math.inf if wrong else 0.0
        return cls(cascade, channel, channels, wanted[channel], made[channel], error, measured)

    def __str__(self) -> str:
        """Name the channel where there are several, and the errors of all of them."""
        text = f"relative error {self.error:.2g}"
        if self.measured is not None:
            text = f"output error {percent(self.measured)}, of the weights {percent(self.error)}"
        if self.channels == (1, 1):
            return text
        return (
            f"output {self.channel[0]}, input {self.channel[1]} "
            f"of {self.channels[0]} x {self.channels[1]}; {text} over all"
        )


def as_array(tensor: Tensor) -> Array:
    """A tensor of any device and dtype as float64."""
    return tensor.detach().cpu().double().numpy()


def largest_magnitude(*arrays: Array) -> float:
    """Where to end a colour scale: 1 where everything is zero."""
    return max(float(np.abs(array).max()) for array in arrays) or 1.0


def _told(source: Source) -> tuple[Cascade, Pair, float | None]:
    """The cascade, its dilation, and the calibrated error where there is one."""
    if isinstance(source, Cascade):
        return source, (1, 1), None
    if isinstance(source, Factorization):
        measured = source.error if source.calibrated else None
        return source.cascade, source.geometry.dilation, measured
    if not isinstance(source, Entry):
        raise TypeError(
            "cascade must be a convfactor.Cascade or Factorization, or an entry of a plan, got "
            f"{type(source).__name__}; the target comes first, then the cascade"
        )
    decision, geometry = source.decision, source.subject.geometry
    if not isinstance(decision, Replaced) or geometry is None:
        raise ValueError(
            f"cascade must be an entry of a plan with a cascade in the layer's place, but "
            f"{source.name!r} has none ({source.reason}); plan.replaced has the indices of those "
            "that were replaced"
        )
    return decision.cascade, geometry.dilation, None if decision.errors is None else decision.error


def _plain(target: Kernel, source: Source) -> Kernel:
    """The weight of the plain convolution that a planned layer is.

    A normalization that a plan has folded into a layer is not in the layer's weight.
    """
    if not isinstance(source, Entry) or source.subject.geometry is None:
        return target
    subject = source.subject
    if subject.norm:
        raise ValueError(
            f"target can't be compared with {source.name!r}, into which {subject.norm!r} is "
            "folded; plan.to_html(path, model) draws both"
        )
    if subject.form.is_plain or not isinstance(target, Tensor):
        return target
    return subject.form.weight(target, source.subject.geometry.groups)


def _four_dimensional(target: Kernel) -> Array:
    """A kernel as float64 (C_out, C_in/groups, kH, kW)."""
    try:
        array = as_array(target) if isinstance(target, Tensor) else np.asarray(target, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"target must be a tensor or an array, got {type(target).__name__}; "
            "give the kernel that was factorized, such as conv.weight"
        ) from error
    if array.ndim not in (2, 4) or not array.size:
        raise ValueError(
            "target must have shape (kH, kW) or (C_out, C_in/groups, kH, kW), "
            f"got {tuple(array.shape)}"
        )
    return array if array.ndim == 4 else array[None, None]


def _read_channel(channel: Pair) -> Pair:
    """Two ints, whatever holds them."""
    try:
        output, into = map(operator.index, channel)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"channel must be two ints (output, input within its group), got {channel!r}; "
            "leave it out for the pair of most energy"
        ) from error
    return output, into


def _spread(weight: Array, dilation: Pair) -> Array:
    """Put zeros between the taps."""
    (height, width), (dy, dx) = weight.shape[2:], dilation
    spread = np.zeros((*weight.shape[:2], (height - 1) * dy + 1, (width - 1) * dx + 1))
    spread[:, :, ::dy, ::dx] = weight
    return spread


def _extended(kernel: Array, other: Array, offset: Pair) -> Array:
    """Extend a kernel with zeros to the smallest window that holds another at an offset too."""
    margins = [
        (max(0, -start), max(0, start + reach - size))
        for size, reach, start in zip(kernel.shape[2:], other.shape[2:], offset, strict=True)
    ]
    return np.pad(kernel, [(0, 0), (0, 0), *margins])
