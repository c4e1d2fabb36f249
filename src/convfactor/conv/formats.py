"""Inputs and outputs of a layer as torch's convolutions take and give them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.structure import Structure

# The format of what a layer is given, or one to run in.
MemoryFormat = Literal["as given", "channels_last"]
FORMATS: tuple[MemoryFormat, ...] = ("as given", "channels_last")


def check_format(memory_format: torch.memory_format | None, name: str) -> None:
    """Refuse a format that is not one of images.

    Raises:
        ValueError: It is another one; ``name`` says which argument.
    """
    if memory_format not in (None, torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"{name} must be None, torch.contiguous_format or torch.channels_last, "
            f"got {memory_format}"
        )


def keeps_format(structure: Structure, lone: bool) -> bool:
    """Tell whether the stages pass on the format of images and weights as the original does.

    The format of one pixel and one channel can't be seen from the strides, and some of torch's
    backends, above all for 1x1 stages, run groups of one output channel one by one. Where the
    original has such groups itself (``lone``), every stage has.
    """
    stages = structure.stages
    if lone:
        return min(min(stage.kernel_size) for stage in stages) > 1
    several = all(stage.out_channels > stage.groups for stage in stages)
    return several and math.prod(stages[-1].weight_shape[1:]) > 1


def is_channels_last(x: Tensor) -> bool:
    """Tell whether torch's convolutions take ``x`` for channels_last.

    They judge by the order of the strides; ``is_contiguous`` says yes to both formats for a single
    channel and no to both for a slice.
    """
    if x.dim() != 4:
        return False
    _, channels, height, width = x.shape
    image, channel, row, col = x.stride()
    return (
        col >= channel * channels
        and row >= col * width
        and image >= row * height
        and 0 < channel < row * height
    )


@torch.fx.wrap
def with_pixels(x: Tensor) -> Tensor:
    """Refuse images without pixels, as torch's convolutions do, before zeros are added to them.

    Raises:
        RuntimeError: An image has no height or no width, and is not one of an empty batch.
    """
    if isinstance(x, Tensor) and not x.numel() and 0 in x.shape[-2:] and (x.dim() < 4 or len(x)):
        raise RuntimeError(
            "input must have a height and a width of at least 1 where the batch is not empty, "
            f"got shape {tuple(x.shape)}"
        )
    return x


@torch.fx.wrap
def to_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Bring the input into a format, with a batch dimension; what is no image stays as it is."""
    if not isinstance(x, Tensor):
        return x
    if x.dim() == 3:
        x = x.unsqueeze(0)
    return x.contiguous(memory_format=memory_format) if x.dim() == 4 else x


@torch.fx.wrap
def as_original(
    x: Tensor,
    reference: Tensor,
    memory_format: torch.memory_format | None,
    output_format: torch.memory_format | None,
    lone: bool,
    kept: bool,
    uneven: bool,
) -> Tensor:
    """Give the output of a cascade the strides and the dimensions that the original's would have.

    Args:
        x: What the last stage gave.
        reference: What the original's convolution would read.
        memory_format: Format in which the stages ran; None for that of the input and the weights.
        output_format: Format of the original's weight; None for contiguous.
        lone: Whether every one of several groups has a single output channel.
        kept: Whether the stages are known to pass on the format of images that are not empty.
        uneven: Whether torch pads by itself before it convolves, with zeros on one side only.
    """
    if kept and x.numel():
        return x
    unbatched = reference.dim() == 3
    if unbatched:
        reference, x = reference.unsqueeze(0), x if x.dim() == 4 else x.unsqueeze(0)
    if output_format is None and is_channels_last(reference):
        output_format = torch.channels_last
    if not x.numel():
        if uneven:
            reference = torch.empty_like(reference, memory_format=torch.contiguous_format)
        # torch multiplies an empty batch by a number and views it in the shape of the output.
        x = x.as_strided(x.shape, (reference * 1).view(x.shape).stride())
    elif output_format == torch.channels_last:
        x = x.to(memory_format=torch.channels_last)
        if lone and x.shape[2] == x.shape[3] == 1:
            # Some backends run such groups one by one, and lose the format of a single pixel.
            same = F.pad(x.new_ones(x.shape[1], 1, 1, 1), (1, 1))
            x = F.conv2d(x, same, padding=(0, 1), groups=x.shape[1])
    elif memory_format is not None:
        x = x.to(memory_format=torch.contiguous_format)
    return x.squeeze(0) if unbatched else x
