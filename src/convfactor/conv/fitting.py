"""How a cascade stands in the place of a convolution: what it pads, and its kernel on the taps."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.blocks import block_diagonal
from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.structure import Structure


@dataclass(frozen=True)
class Zeros:
    """The zeros that give a cascade's output the size and the borders of the convolution's.

    Those that a stage can add by itself are left to it, which saves a copy of the input: the hidden
    stages have no bias, so a window of zeros stays zero and its padding may as well be added behind
    the stage.

    Attributes:
        before: Amounts for ``F.pad`` to add, or to crop, one after the other before the stages.
        stages: Padding (vertical, horizontal) of each stage.
    """

    before: list[list[int]]
    stages: list[Pair]

    @classmethod
    def of(cls, geometry: ConvGeometry, structure: Structure) -> Zeros:
        """Leave to the stages what they can add by themselves."""
        left, right, top, bottom = geometry.padding
        vertical, horizontal = _extension(geometry, structure)
        if geometry.padding_mode == "zeros":
            vertical = (vertical[0] + top, vertical[1] + bottom)
            horizontal = (horizontal[0] + left, horizontal[1] + right)
        rows = _share(vertical, structure, axis=0)
        cols = _share(horizontal, structure, axis=1)
        zeros = ((0, 0) if cols else horizontal) + ((0, 0) if rows else vertical)
        extend, crop = [max(n, 0) for n in zeros], [min(n, 0) for n in zeros]
        none = [0] * len(structure.stages)
        return cls(
            # In this order: what is cropped may reach into what is added.
            [amounts for amounts in (extend, crop) if any(amounts)],
            list(zip(rows or none, cols or none, strict=True)),
        )


def check_fit(geometry: ConvGeometry, structure: Structure) -> None:
    """Refuse a structure that computes something else than the convolution.

    Raises:
        ValueError: The channels, strides or groups are not the convolution's.
    """
    first, last = structure.stages[0], structure.stages[-1]
    channels = (first.in_channels, last.out_channels)
    if channels != (geometry.in_channels, geometry.out_channels):
        raise ValueError(
            f"structure maps {channels[0]} to {channels[1]} channels, but the convolution maps "
            f"{geometry.in_channels} to {geometry.out_channels}"
        )
    if structure.stride != geometry.stride:
        raise ValueError(
            f"structure has stride {structure.stride}, but the convolution has {geometry.stride}; "
            "the strides of the stages must multiply to it"
        )
    if structure.groups % geometry.groups:
        raise ValueError(
            f"structure has {structure.groups} independent groups, but the convolution has "
            f"{geometry.groups}; the groups of every stage must be a multiple of that"
        )


def kernel_on_taps(cascade: Cascade, geometry: ConvGeometry) -> Tensor:
    """Compose a cascade on the taps of the convolution's kernel, rather than on input pixels.

    Returns:
        Float64 (C_out, C_in/groups, kH, kW); what the cascade spans beyond the taps is left out.
    """
    pixels = cascade.compose()
    height, width = geometry.extent
    top, left = cascade.offset
    rows, cols = pixels.shape[2:]
    kernel = F.pad(pixels, (left, width - cols - left, top, height - rows - top))
    kernel = kernel[..., :: geometry.dilation[0], :: geometry.dilation[1]]
    inner = cascade.structure.groups // geometry.groups
    if inner > 1:  # the cascade keeps channels apart that the convolution could mix
        kernel = block_diagonal(kernel.unflatten(0, (geometry.groups, inner, -1))).flatten(0, 1)
    return kernel


def _extension(
    geometry: ConvGeometry, structure: Structure
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros to add (before, after) per axis so that the span covers what the kernel covered."""
    rows, cols = (
        (-offset, span - extent + offset)
        for offset, span, extent in zip(
            structure.offset, structure.span, geometry.extent, strict=True
        )
    )
    return rows, cols


def _share(amount: tuple[int, int], structure: Structure, axis: int) -> list[int] | None:
    """Divide the zeros of one axis among the stages' own ``padding``.

    No stage adds more than its kernel reaches: more is a slow path of oneDNN. Behind a stage of
    stride 1 the remainder can wait for the next stage; behind a strided one its place would depend
    on the size of the input. Padding that holds the whole kernel lets an empty batch have no height
    or width, of which a first stage of one tap can't make anything.

    Returns:
        Padding per stage, or None if the amount has to be added, or cropped, before the stages.
    """
    before, after = amount
    if before != after or not 0 <= 2 * before < structure.span[axis]:
        return None
    shares = []
    for stage in structure.stages:
        reach = (stage.kernel_size[axis] - 1) * stage.dilation[axis]
        shares.append(min(before, reach))
        before -= shares[-1]
        if before and stage.stride[axis] > 1:
            return None
    return None if before else shares
