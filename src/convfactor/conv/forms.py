"""Convolutions of sequences and transposed ones, seen as torch's plain 2-D convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv.geometry import ConvGeometry, PaddingMode, Pair, pair
from convfactor.conv.same import Same
from convfactor.conv.transposed import Transposed


class UnsupportedConvolutionError(ValueError):
    """A convolution that is not one of torch's plain 2-D ones in disguise."""


@dataclass(frozen=True)
class Form:
    """How a convolution is a plain one of images.

    A sequence is an image of one row. A transposed convolution of stride s is one of s x s phases,
    each a plain convolution of the input with every s-th tap of the kernel, all computed together
    as s x s channels for each of its own and interleaved (the sub-pixel convolution of Shi et al.,
    "Is the deconvolution layer the same as a convolutional layer?", 2016).

    Attributes:
        dims: 2 for images, 1 for sequences.
        transposed: The integers of a transposed convolution; None for any other.
        same: What says how many zeros an image needs; None where the geometry does.
    """

    dims: int = 2
    transposed: Transposed | None = None
    same: Same | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is an ordinary convolution of images."""
        return self.dims == 2 and self.transposed is None and self.same is None

    @property
    def phases(self) -> int:
        """Channels of the plain convolution for each of the original's."""
        return 1 if self.transposed is None else math.prod(self.transposed.stride)

    def kernel_size(self, geometry: ConvGeometry) -> tuple[int, ...]:
        """Taps of the original."""
        whole = geometry.kernel_size if self.transposed is None else self.transposed.kernel_size
        return whole[2 - self.dims :]

    def out_channels(self, geometry: ConvGeometry) -> int:
        """Channels of the original's output."""
        return geometry.out_channels // self.phases

    def weight_shape(self, geometry: ConvGeometry) -> tuple[int, ...]:
        """Shape of the original's weight."""
        channels = (self.out_channels(geometry), geometry.in_channels // geometry.groups)
        if self.transposed is not None:
            channels = (geometry.in_channels, channels[0] // geometry.groups)
        return (*channels, *self.kernel_size(geometry))

    def macs(self, geometry: ConvGeometry) -> int:
        """Multiplies of the original for one output pixel of the plain convolution."""
        return math.prod(self.weight_shape(geometry))

    def weight(self, weight: Tensor, groups: int) -> Tensor:
        """The weight of the plain convolution."""
        weight = weight if weight.dim() == 4 else weight.unsqueeze(2)
        if self.transposed is None:
            return weight
        (rows, cols), (sy, sx) = self.transposed.taps, self.transposed.stride
        height, width = self.transposed.kernel_size
        weight = F.pad(weight, (0, cols * sx - width, 0, rows * sy - height))
        weight = weight.unflatten(3, (cols, sx)).unflatten(2, (rows, sy)).unflatten(0, (groups, -1))
        # (groups, in, out, rows, sy, cols, sx) to (groups, out, sy, sx, in, rows, cols)
        return weight.permute(0, 2, 4, 6, 1, 3, 5).flatten(0, 3).flip(2, 3).contiguous()

    def kernel(self, weight: Tensor, groups: int) -> Tensor:
        """The original's weight, from that of the plain convolution."""
        if self.transposed is not None:
            sy, sx = self.transposed.stride
            height, width = self.transposed.kernel_size
            weight = weight.flip(2, 3).unflatten(0, (groups, -1, sy, sx))
            weight = weight.permute(0, 4, 1, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4).flatten(0, 1)
            weight = weight[..., :height, :width]
        return weight.squeeze(2) if self.dims == 1 else weight

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias of the plain convolution."""
        return bias if bias is None or self.phases == 1 else bias.repeat_interleave(self.phases)

    def input(self, x: Tensor) -> Tensor:
        """The image that the plain convolution reads."""
        if self.same is not None:
            return self.same.padded(x)
        return x.unsqueeze(-2) if self.dims == 1 else x

    def output(self, y: Tensor) -> Tensor:
        """The original's output, from that of the plain convolution."""
        if self.transposed is not None:
            y = self.transposed.interleaved(y)
        return y.squeeze(-2) if self.dims == 1 else y

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
    ) -> Tensor:
        """Apply the original convolution, as torch does."""
        if self.transposed is not None:
            own, cut = self.transposed, slice(2 - self.dims, None)
            call: Any = F.conv_transpose2d if self.dims == 2 else F.conv_transpose1d
            sizes = (own.stride, own.padding, own.output_padding)
            stride, padding, more = (size[cut] for size in sizes)
            groups, dilation = geometry.groups, geometry.dilation[cut]
            result: Tensor = call(x, weight, bias, stride, padding, more, groups, dilation)
            return result
        x = x if self.same is None else self.same.padded(x)
        return convolution(x, weight, bias, geometry, self.dims)


PLAIN = Form()


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, dims: int = 2
) -> Tensor:
    """Apply a convolution of a geometry, as ``nn.Conv2d`` does, or as ``nn.Conv1d`` along a row."""
    left, right, top, bottom = geometry.padding
    cut = slice(2 - dims, None)
    padding = (top, left)[cut]
    pads = geometry.padding[: 2 * dims]
    if geometry.padding_mode != "zeros":
        x = F.pad(x, pads, mode=geometry.padding_mode)
        padding = (0, 0)[cut]
    elif (left, top) != (right, bottom):
        x = F.pad(x, pads)
        padding = (0, 0)[cut]
    call: Any = F.conv2d if dims == 2 else F.conv1d
    stride, dilation = geometry.stride[cut], geometry.dilation[cut]
    result: Tensor = call(x, weight, bias, stride, padding, dilation, geometry.groups)
    return result


def of_call(
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
) -> tuple[Form, ConvGeometry]:
    """Read the arguments of a convolution of one or two dimensions.

    Args:
        weight: As torch stores it, (C_out, C_in/groups, ...), or (C_in, C_out/groups, ...) where it
            is transposed.
        stride: As in ``F.conv2d``.
        padding: As in ``F.conv2d``.
        dilation: As in ``F.conv2d``.
        groups: As in ``F.conv2d``.
        padding_mode: As in ``nn.Conv2d``.
        transposed: Whether it is a transposed one.
        output_padding: As in ``F.conv_transpose2d``.

    Raises:
        UnsupportedConvolutionError: It is no plain convolution of images in disguise.
        ValueError: An argument that torch would not accept either.
    """
    dims = len(weight.shape) - 2
    if dims not in (1, 2):
        raise UnsupportedConvolutionError(
            f"a convolution of {dims} dimensions; those of 1 and 2 are replaced"
        )
    shape = (*weight.shape[:2], *(1,) * (2 - dims), *weight.shape[2:])
    if isinstance(padding, str) or not transposed:
        geometry = ConvGeometry.from_shape(
            shape,
            stride=_both(stride, dims, 1, "stride"),
            padding=padding if isinstance(padding, str) else _both(padding, dims, 0, "padding"),
            dilation=_both(dilation, dims, 1, "dilation"),
            groups=groups,
            padding_mode=padding_mode,
        )
        return (PLAIN if dims == 2 else Form(dims)), geometry
    own = Transposed(
        kernel_size=(shape[2], shape[3]),
        stride=_both(stride, dims, 1, "stride"),
        padding=_both(padding, dims, 0, "padding"),
        output_padding=_both(output_padding, dims, 0, "output_padding"),
    )
    return Form(dims, own), _phases(own, shape, groups, _both(dilation, dims, 1, "dilation"))


def of_module(conv: nn.Module) -> tuple[Form, ConvGeometry]:
    """Read one of torch's convolution modules.

    Raises:
        UnsupportedConvolutionError: It is no plain convolution of images in disguise.
    """
    module: Any = conv
    return of_call(
        module.weight,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
        transposed=module.transposed,
        output_padding=module.output_padding,
    )


def is_consistent(form: Form, geometry: ConvGeometry) -> bool:
    """Whether a geometry is that of a plain convolution that a form makes of some original."""
    flat = form.dims == 2 or (
        (geometry.kernel_size[0], geometry.stride[0], geometry.dilation[0]) == (1, 1, 1)
        and geometry.padding[2:] == (0, 0)
    )
    if form.same is not None:
        fixed = form.transposed is None and form.dims == 2 and not any(geometry.padding)
        return fixed and form.same == Same.of(geometry)
    if form.dims not in (1, 2) or not flat or form.transposed is None:
        return form.dims in (1, 2) and flat
    own = form.transposed
    positive = min(*own.kernel_size, *own.stride) >= 1
    if not positive or min(*own.padding, *own.output_padding) < 0:
        return False
    if geometry.out_channels % (geometry.groups * form.phases):
        return False
    shape = (geometry.in_channels, form.out_channels(geometry) // geometry.groups)
    try:
        return _phases(own, shape, geometry.groups, geometry.dilation) == geometry
    except UnsupportedConvolutionError:
        return False


def _both(value: int | Sequence[int], dims: int, row: int, name: str) -> Pair:
    """Read the integers of an argument; those of the one row of a sequence are given."""
    vertical, horizontal = pair(value, name, least=0 if "padding" in name else 1)
    return (vertical, horizontal) if dims == 2 else (row, horizontal)


def _phases(own: Transposed, shape: Sequence[int], groups: int, dilation: Pair) -> ConvGeometry:
    """The plain convolution of all phases of a transposed one."""
    if any(step > 1 and apart > 1 for step, apart in zip(own.stride, dilation, strict=True)):
        raise UnsupportedConvolutionError("a transposed convolution with stride and dilation")
    pads = own.pads(dilation)
    if min(pads) < 0:
        raise UnsupportedConvolutionError("a transposed convolution padded by more than its kernel")
    return ConvGeometry(
        in_channels=shape[0],
        out_channels=shape[1] * groups * math.prod(own.stride),
        kernel_size=own.taps,
        padding=pads,
        dilation=dilation,
        groups=groups,
    )
