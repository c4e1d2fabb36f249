"""Read the calls of functional convolutions: which function, with which arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv import forms
from convfactor.conv.forms import PLAIN, Form, UnsupportedConvolutionError
from convfactor.conv.geometry import ConvGeometry

CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONV_TRANSPOSE = (*CONV[:5], "output_padding", "groups", "dilation")
CONVOLUTION = (*CONV[:6], "transposed", "output_padding", "groups")
_ATEN = torch.ops.aten

# Each with the names of its arguments, by position.
SIGNATURES: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.conv2d, _ATEN.conv2d, _ATEN.conv2d.default, _ATEN.conv2d.padding), CONV),
    **dict.fromkeys((F.conv1d, _ATEN.conv1d, _ATEN.conv1d.default, _ATEN.conv1d.padding), CONV),
    **dict.fromkeys(
        (F.conv_transpose2d, _ATEN.conv_transpose2d, _ATEN.conv_transpose2d.input), CONV_TRANSPOSE
    ),
    **dict.fromkeys(
        (F.conv_transpose1d, _ATEN.conv_transpose1d, _ATEN.conv_transpose1d.default), CONV_TRANSPOSE
    ),
    **dict.fromkeys((torch.convolution, _ATEN.convolution, _ATEN.convolution.default), CONVOLUTION),
}
VOLUME = (
    "a 3-D convolution; those of 1 and 2 dimensions are replaced: make one of 1 x k x k an "
    "nn.Conv2d of the frames, and one of k x 1 x 1 an nn.Conv1d of the times"
)
# What convolves as well, but in a way that no cascade stands in for: with the reason.
OTHERS: dict[str, str] = {
    "conv3d": VOLUME,
    "conv_transpose3d": VOLUME,
    "_convolution": "called as _convolution; call F.conv2d",
    "cudnn_convolution": "called as cudnn_convolution; call F.conv2d",
    "mkldnn_convolution": "called as mkldnn_convolution; call F.conv2d",
    "thnn_conv2d": "called as thnn_conv2d; call F.conv2d",
    "conv_depthwise3d": VOLUME,
    "slow_conv3d": VOLUME,
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
        geometry: The integers of the plain convolution that it is; None where it is none.
        form: How it is that.
        obstacle: Why no cascade stands in for the call, or None.
    """

    input: Any
    weight: Any
    bias: Any
    geometry: ConvGeometry | None
    form: Form = PLAIN
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
    bound.setdefault("transposed", names is CONV_TRANSPOSE)
    try:
        form, geometry = forms.of_call(weight, **bound)
    except UnsupportedConvolutionError as error:
        return ConvCall(x, weight, bias, None, obstacle=str(error))
    except (TypeError, ValueError):
        return None
    return ConvCall(x, weight, bias, geometry, form)


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
    return ConvCall(x, weight, None, None, obstacle=obstacle)
