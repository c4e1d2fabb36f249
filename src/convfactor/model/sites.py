"""What a model calls that may be made faster: values that no later step changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from convfactor.conv.forms import PLAIN, Form
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.same import Same
from convfactor.conv.scales import Scales
from convfactor.model.inputs import ModelInputs
from convfactor.model.pads import Pads
from convfactor.model.reasons import Reason

Kind = Literal["module", "functional", "transform"]


@dataclass(frozen=True)
class InputShape:
    """Shape and memory format of one call's input."""

    size: tuple[int, ...]
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor) -> InputShape:
        """Read it off an input."""
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(x.shape), last and not x.is_contiguous())

    def padded(self, same: Same) -> InputShape:
        """The shape with as many zeros around it as it needs."""
        *outer, height, width = self.size
        left, right, top, bottom = same.pads(height, width)
        return replace(self, size=(*outer, height + top + bottom, width + left + right))


@dataclass(frozen=True)
class Subject:
    """A large kernel or a transform of a model: its names, and what tells it from others.

    Attributes:
        name: What it is called in the table.
        kind: A module, a functional call in a module's forward, or a wavelet transform.
        owners: Qualified names of the module, or of the modules whose forwards make the call.
        weight_name: Qualified name of the weight; empty where it is computed.
        dtype: Dtype of the weight.
        kernel_size: Taps per side.
        geometry: The integers of the plain convolution of images that it is, or None.
        shapes: Shapes of the images that this one reads, with their numbers in one run of the
            workload, in which a call of the model counts as often as its weight says.
        fingerprint: Digest of the weight, of what it is computed from, or of the filters and
            arguments of a transform.
        calls: Numbers of calls in each call of the model.
        form: How the convolution is a plain one.
        computed: Whether the module computes its weight, which is read off a call.
        norm: Qualified name of the batch normalization that is folded into it; empty for none.
        pad: Qualified name of the module in front that pads with zeros, which what takes its place
            adds by itself; empty for none.
        pads: Zeros that it adds (left, right, top, bottom).
        scaled_by: Names of the parameters and buffers that scale its output, as far as that counts
            in its error.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    dtype: str
    kernel_size: tuple[int, ...]
    geometry: ConvGeometry | None
    shapes: tuple[tuple[InputShape, float], ...]
    fingerprint: str
    calls: tuple[int, ...] = ()
    form: Form = PLAIN
    computed: bool = False
    norm: str = ""
    pad: str = ""
    pads: Pads = (0, 0, 0, 0)
    scaled_by: tuple[str, ...] = ()

    @property
    def laid(self) -> ConvGeometry | None:
        """The integers of what takes its place, with the padding in front of it; or None."""
        return None if self.geometry is None else self.geometry.padded(self.pads)

    @property
    def out_channels(self) -> int | None:
        """Channels of the output; None where it is no convolution of images or sequences."""
        return None if self.geometry is None else self.form.out_channels(self.geometry)


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution that can be replaced.

    Attributes:
        subject: What it is.
        geometry: The integers of the plain convolution of images that it is.
        weight: The weight of that one, with the normalization behind it folded in.
        bias: Its bias, or None.
        held: The weight as the model holds it.
        scales: How much the channels of the plain one count: of the output by what they are scaled
            with before anybody sees them, of the input where data does not tell.
    """

    subject: Subject
    geometry: ConvGeometry
    weight: Tensor
    bias: Tensor | None
    held: Tensor
    scales: Scales

    @property
    def form(self) -> Form:
        """How it is a plain convolution."""
        return self.subject.form

    @property
    def kind(self) -> Kind:
        """A module or a functional call."""
        return self.subject.kind

    @property
    def owners(self) -> tuple[str, ...]:
        """Qualified names of the modules."""
        return self.subject.owners


@dataclass(frozen=True, eq=False)
class TransformSite:
    """A wavelet transform that has a faster equal.

    Attributes:
        subject: What it is.
        module: The transform.
        calls: The arguments of its calls in one run of the model.
    """

    subject: Subject
    module: nn.Module
    calls: tuple[ModelInputs, ...]


@dataclass(frozen=True)
class TurnedAway:
    """What can't be replaced."""

    subject: Subject
    reason: Reason


Found = Site | TransformSite | TurnedAway


def inside(owner: str, what: str) -> str:
    """Name a thing inside a module."""
    return f"{owner}.{what}" if owner else what
