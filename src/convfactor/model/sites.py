"""What a model calls that may be made faster: values that no later step changes."""

from __future__ import annotations

import contextlib
import operator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from convfactor.conv.geometry import ConvGeometry
from convfactor.errors import PlanMismatchError
from convfactor.model.inputs import ModelInputs
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
        geometry: The convolution's integers, None where it is not a 2-D convolution.
        shapes: Input shapes of the calls, with their numbers in one run of the model.
        fingerprint: Digest of the weight, or of the transform's filters and arguments.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    dtype: str
    kernel_size: tuple[int, ...]
    geometry: ConvGeometry | None
    shapes: tuple[tuple[InputShape, int], ...]
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution that can be replaced.

    Attributes:
        subject: What it is.
        geometry: The convolution's integers.
        weight: The weight, as torch stores it.
        bias: The bias, or None.
    """

    subject: Subject
    geometry: ConvGeometry
    weight: Tensor
    bias: Tensor | None

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


def kernel(model: nn.Module, subject: Subject) -> Tensor:
    """The weight of a layer; a graph may know the module by one of its names only."""
    names = [subject.weight_name, *(f"{owner}.weight" for owner in subject.owners)]
    for name in names:
        with contextlib.suppress(AttributeError):
            weight: Tensor = operator.attrgetter(name)(model)
            return weight
    raise PlanMismatchError(f"layer {subject.name}: the model has none of {', '.join(names)}")
