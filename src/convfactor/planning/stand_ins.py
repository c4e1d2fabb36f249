"""Layers that compute what a convolution does, and watch while they do."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import StageShape, Structure

C = TypeVar("C", bound=CascadeConv2d)


def exact_layer(kind: type[C], geometry: ConvGeometry, weight: Tensor, bias: Tensor | None) -> C:
    """Make a layer that computes what a convolution does.

    Args:
        kind: Its class.
        geometry: The convolution.
        weight: Its weight.
        bias: Its bias, or None.
    """
    stage = StageShape(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        geometry.stride,
        geometry.dilation,
        geometry.groups,
    )
    cascade = Cascade.of(Structure((stage,)), [weight])
    return kind.from_weight(weight, bias, cascade, geometry)
