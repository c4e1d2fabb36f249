"""Read the calls of functional convolutions: which function, with which arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry

CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONVOLUTION = (*CONV2D[:6], "transposed", "output_padding", "groups")

# Each with the names of its arguments, by position.
SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.conv2d: CONV2D,  # torch.conv2d is the same
    torch.ops.aten.conv2d: CONV2D,
    torch.ops.aten.conv2d.default: CONV2D,
    torch.ops.aten.conv2d.padding: CONV2D,
    torch.convolution: CONVOLUTION,
    torch.ops.aten.convolution: CONVOLUTION,
    torch.ops.aten.convolution.default: CONVOLUTION,
}
# What convolves as well, but in a way that no cascade stands in for: with the reason.
OTHERS: dict[str, str] = {
    "conv1d": "not a 2-D convolution",
    "conv3d": "not a 2-D convolution",
    "conv_transpose1d": "transposed convolution",
    "conv_transpose2d": "transposed convolution",
    "conv_transpose3d": "transposed convolution",
    "_convolution": "called as _convolution; call F.conv2d",
    "cudnn_convolution": "called as cudnn_convolution; call F.conv2d",
    "mkldnn_convolution": "called as mkldnn_convolution; call F.conv2d",
    "thnn_conv2d": "called as thnn_conv2d; call F.conv2d",
    "conv_depthwise3d": "not a 2-D convolution",
    "slow_conv3d": "not a 2-D convolution",
}
# What only tells about a tensor, and nothing of its values.
ABOUT = frozenset(
    {
        "device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mps", "is_nested",
        "is_quantized", "is_sparse", "itemsize", "layout", "ndim", "nbytes", "requires_grad",
        "shape", "dim", "element_size", "get_device", "is_complex", "is_floating_point",
        "ndimension", "nelement", "numel", "size", "__len__", "is_contiguous", "stride",
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ConvCall:
    """The arguments of one functional convolution.

    Attributes:
        input: What is convolved.
        weight: The kernel, as torch stores it.
        bias: The bias, or None.
        geometry: The convolution's integers; None where it is not a 2-D one.
        obstacle: Why no cascade stands in for the call, or None.
    """

    input: Any
    weight: Any
    bias: Any
    geometry: ConvGeometry | None
    obstacle: str | None = None


def read_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ConvCall | None:
    """Read a call, as torch's function mode sees it, if it is a convolution that torch accepts."""
    names = SIGNATURES.get(func)
    if names is None:
        return _read_other(func, args, kwargs)
    bound = {**dict(zip(names, args)), **kwargs}  # noqa: B905 - trailing ones may be left out
    if "input" not in bound or "weight" not in bound:
        return None
    x, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    if bound.pop("transposed", False):
        return ConvCall(x, weight, bias, None, "transposed convolution")
    bound.pop("output_padding", None)
    if len(weight.shape) != 4:
        return ConvCall(x, weight, bias, None, "not a 2-D convolution")
    try:
        return ConvCall(x, weight, bias, ConvGeometry.from_weight(weight, **bound))
    except (TypeError, ValueError):
        return None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Apply a convolution of a geometry, as ``nn.Conv2d`` does."""
    left, right, top, bottom = geometry.padding
    padding = (top, left)
    if geometry.padding_mode != "zeros":
        x = F.pad(x, geometry.padding, mode=geometry.padding_mode)
        padding = (0, 0)
    elif (left, top) != (right, bottom):
        x = F.pad(x, geometry.padding)
        padding = (0, 0)
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, geometry.groups)


def is_about(func: Callable[..., Any]) -> bool:
    """Whether a call only asks about a tensor, such as for its dtype, and reads no value of it."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name in ABOUT


def _read_other(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ConvCall | None:
    """Name a convolution that no cascade stands in for."""
    packet = getattr(func, "overloadpacket", func)  # of an overload of aten
    obstacle = OTHERS.get(getattr(packet, "__name__", ""))
    if obstacle is None:
        return None
    x = args[0] if args else kwargs.get("input")
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    if not isinstance(weight, Tensor):
        return None
    return ConvCall(x, weight, None, None, obstacle)
