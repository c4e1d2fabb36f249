"""Functions of torch that scale and shift the channels of a tensor by constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ATEN = torch.ops.aten

_ARGUMENTS = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum")
# Each with the names of its arguments, by position.
_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    **dict.fromkeys((torch.batch_norm, _ATEN.batch_norm.default), (*_ARGUMENTS, "eps", "cudnn")),
    _ATEN._native_batch_norm_legit_no_training.default: (*_ARGUMENTS[:5], "momentum", "eps"),
}
_PRODUCTS = frozenset(
    (
        *(torch.mul, torch.multiply, _ATEN.mul.Tensor, _ATEN.mul_.Tensor),
        *(Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.multiply_),
    )
)
_QUOTIENTS = frozenset(
    (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.div_, _ATEN.div.Tensor)
)
_SUMS = frozenset(
    (
        *(torch.add, torch.sub, _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.add_.Tensor),
        *(Tensor.add, Tensor.add_, Tensor.sub, Tensor.sub_, Tensor.__rsub__),
    )
)


# What gives the same for the same tensors, whatever else a call may be given.
_CONSTANT = frozenset(
    (
        *("view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "expand", "permute"),
        *("transpose", "t", "to", "type_as", "float", "double", "half", "bfloat16", "contiguous"),
        *("clone", "detach", "exp", "sigmoid", "tanh", "softplus", "relu", "abs", "square", "sqrt"),
        *("rsqrt", "reciprocal", "neg", "mul", "multiply", "div", "divide", "true_divide", "add"),
        *("sub", "rsub", "expand_as", "view_as", "reshape_as", "to_copy", "alias"),
    )
)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What is done to each channel, but for a factor that all have in common.

    Attributes:
        scale: Float64 (C,), of any sign; None where nothing is scaled.
        size: Float64 (C,), root mean square of what a normalization gives, as its statistics say;
            None of anything else.
    """

    scale: Tensor | None
    size: Tensor | None = None


def keeps_constant(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a function of constants gives a constant.

    Not one that takes something out, or draws at random; of indices only those that reshape.
    """
    name = getattr(getattr(func, "overloadpacket", func), "__name__", "").strip("_")
    if name == "getitem" and len(args) == 2:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(one is None or one is ... or _is_whole(one) for one in index)
    return name in _CONSTANT


def _is_whole(index: object) -> bool:
    """Whether an index is a whole dimension."""
    return isinstance(index, slice) and index == slice(None)


def is_norm(func: Callable[..., Any]) -> bool:
    """Whether a function is a batch normalization."""
    return func in _NORMS


def read_scaling(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axis_of: Callable[[Tensor], int],
    is_constant: Callable[[Tensor], bool],
) -> tuple[Tensor, Scaling] | None:
    """Read a call that scales and shifts the channels of a tensor by constants.

    Args:
        func: The function, as torch's function mode sees it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        axis_of: The dimension of a tensor's channels, from the end.
        is_constant: Whether a tensor is the same in every call of the model.

    Returns:
        The tensor and what is done to it, or None for any other call.
    """
    if func in _NORMS:
        bound = {**dict(zip(_NORMS[func], args)), **kwargs}  # noqa: B905 - defaults left out
        return _of_norm(bound, axis_of, is_constant)
    known = func in _PRODUCTS or func in _QUOTIENTS or func in _SUMS
    if not known or len(args) != 2 or set(kwargs) - {"alpha"}:
        return None
    for x, other in (args, args[::-1]):
        if not _is_real(x) or is_constant(x) or axis_of(x) >= 0:
            continue
        if not isinstance(other, (int, float)) and not (_is_real(other) and is_constant(other)):
            continue
        if func in _SUMS:
            return x, Scaling(None)
        scale = _per_channel(other, x, axis_of(x))
        if scale is None or (func in _QUOTIENTS and x is not args[0]):
            return None
        return x, Scaling(scale if func in _PRODUCTS else scale.reciprocal())
    return None


def _is_real(value: object) -> bool:
    """Whether a value is a tensor of real numbers side by side."""
    return (
        isinstance(value, Tensor)
        and not (value.is_nested or value.is_complex())
        and value.layout == torch.strided
    )


def _of_norm(
    bound: Mapping[str, Any],
    axis_of: Callable[[Tensor], int],
    is_constant: Callable[[Tensor], bool],
) -> tuple[Tensor, Scaling] | None:
    """Read a batch normalization, whose channels are in the second dimension."""
    x, mean, variance = (bound.get(name) for name in ("input", "running_mean", "running_var"))
    weight, bias = bound.get("weight"), bound.get("bias")
    given = [value for value in (mean, variance, weight, bias) if value is not None]
    if x is None or not _is_real(x) or variance is None or bound.get("training", False):
        return None
    if x.dim() + axis_of(x) != 1 or not all(_is_real(v) and is_constant(v) for v in given):
        return None
    variance = variance.detach().double()
    scale = (variance + bound.get("eps", 1e-5)).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = torch.zeros_like(scale) if bias is None else bias.detach().double()
    return x, Scaling(scale, torch.hypot(scale * variance.sqrt(), shift))


def _per_channel(factor: Tensor | float, x: Tensor, axis: int) -> Tensor | None:
    """A factor for each channel of a tensor; None where it differs within one."""
    value = torch.as_tensor(factor).detach()
    count, where = value.numel(), value.dim() + axis
    if count not in (1, x.shape[axis]) or (count > 1 and value.shape[max(where, 0)] != count):
        return None
    if where < 0 and count > 1:
        return None
    return value.to(x.device, torch.float64).reshape(-1).expand(x.shape[axis]).clone()
