"""The kernel of a cascade, for code that reads the weight of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convfactor.conv.calls import ConvCall, read_call
from convfactor.conv.forms import Form
from convfactor.conv.geometry import ConvGeometry

OPERATORS = (
    "__abs__", "__add__", "__array__", "__bool__", "__contains__", "__eq__", "__float__",
    "__floordiv__", "__ge__", "__getitem__", "__gt__", "__int__", "__iter__", "__le__", "__lt__",
    "__matmul__", "__mod__", "__mul__", "__ne__", "__neg__", "__pow__", "__radd__", "__reversed__",
    "__rfloordiv__", "__rmatmul__", "__rmod__", "__rmul__", "__rpow__", "__rsub__",
    "__rtruediv__", "__sub__", "__truediv__",
)  # fmt: skip


class Layer(Protocol):
    """The layer that a weight belongs to."""

    @property
    def form(self) -> Form:
        """How the layer is a plain convolution."""

    @property
    def geometry(self) -> ConvGeometry:
        """That plain convolution."""

    @property
    def stages(self) -> nn.Sequential:
        """What it runs."""

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias."""

    def composed(self) -> Tensor:
        """The kernel that the stages amount to."""

    def convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Run the stages, a bias added to the layer's own."""


class ComposedWeight:
    """Stands where code expects the weight of a convolution whose kernel is a cascade.

    It knows its shape, dtype and device; whatever else is done with it is done with the composed
    kernel, on the taps of the original one. It is no tensor, but torch's functions ask every
    argument that has a ``__torch_function__``, when compiled or exported as well, and what does
    not ask raises an error.

    Args:
        layer: The layer that it belongs to.
    """

    def __init__(self, layer: Layer) -> None:
        """Keep the layer."""
        self._layer = layer

    @property
    def shape(self) -> torch.Size:
        """Shape of the original kernel, such as (C_out, C_in/groups, kH, kW)."""
        return torch.Size(self._layer.form.weight_shape(self._layer.geometry))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stages."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Device of the stages."""
        return self._first.device

    @property
    def requires_grad(self) -> bool:
        """Whether some stage's weight is trained."""
        return any(parameter.requires_grad for parameter in self._layer.stages.parameters())

    @property
    def _first(self) -> Tensor:
        """The weight of the first stage."""
        return next(self._layer.stages.parameters())

    def dim(self) -> int:
        """Tell the number of dimensions."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """Tell the shape, or one side of it."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        """Count the output channels."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Tell what a tensor would tell, but for the values."""
        return f"ComposedWeight(shape={tuple(self.shape)}, dtype={self.dtype})"

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        """Let the composed kernel answer."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "data" or name.endswith("_"):
            raise AttributeError(
                f"a composed weight can't be written to, as by {name}: the stages of its "
                "CascadeConv2d hold the weights; use detach() to read it"
            )
        return getattr(self._layer.composed(), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the cascade in a convolution, and anything else on the composed kernel."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        written = args[:1] if name.endswith("_") and not name.startswith("__") else ()
        if any(isinstance(value, ComposedWeight) for value in (*written, kwargs.get("out"))):
            raise TypeError(
                f"{name} can't write to a composed weight: the stages of its CascadeConv2d hold "
                "the weights"
            )
        args, kwargs = tree_map(_composed, (args, kwargs))
        return func(*args, **kwargs)


class FactorizedWeight(ComposedWeight):
    """The weight of a functional call that runs the cascade in the layer's own geometry.

    In another geometry the composed kernel is taken. The layer's bias is what the cascade shifts
    the mean by; it adds to the bias of the call.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the cascade in a convolution."""
        call = read_call(func, args, kwargs or {})
        if call is None or call.geometry is None or not isinstance(call.weight, cls):
            return super().__torch_function__(func, types, args, kwargs)
        return call.weight._convolve(call, call.geometry)

    def _convolve(self, call: ConvCall, geometry: ConvGeometry) -> Tensor:
        """Convolve in the geometry of a call, which may be another one than was planned."""
        layer = self._layer
        if (call.form, geometry) == (layer.form, layer.geometry):
            return layer.convolve(call.input, call.bias)
        bias = call.bias
        if layer.bias is not None:
            bias = layer.bias if bias is None else bias + layer.bias
        return call.form.convolve(call.input, layer.composed(), bias, geometry)


def _composed(value: Any) -> Any:
    """The tensor behind a weight."""
    return value._layer.composed() if isinstance(value, ComposedWeight) else value


def _operator(name: str) -> Callable[..., Any]:
    """An operator that acts on the composed kernel."""

    def act(self: ComposedWeight, *others: Any) -> Any:
        return getattr(self._layer.composed(), name)(*map(_composed, others))

    act.__name__ = name
    return act


for _name in OPERATORS:
    setattr(ComposedWeight, _name, _operator(_name))
