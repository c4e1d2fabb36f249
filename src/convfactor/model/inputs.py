"""What a model is called with."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convfactor.model.trees import leaves, mapped
from convfactor.scalars import is_real


@dataclass(frozen=True, init=False, eq=False)
class Inputs:
    """One call of a model, for users to write down: ``Inputs(x, mask=m)`` is ``model(x, mask=m)``.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        weight: How often the call counts, beside others.

    Example:
        >>> import torch
        >>> from convfactor import Inputs
        >>> Inputs(torch.zeros(1, 3, 64, 64), scale=2).times(3).weight
        3.0
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weight: float

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of a call as the model takes them."""
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)
        object.__setattr__(self, "weight", 1.0)

    def times(self, count: float) -> Inputs:
        """The same call, counted so many times.

        Args:
            count: A positive number, which need not be whole.

        Raises:
            ValueError: It is none.
        """
        if not (is_real(count) and 0 < count < math.inf):
            raise ValueError(f"count must be a positive number, got {count!r}")
        twin = Inputs(*self.args, **self.kwargs)
        object.__setattr__(twin, "weight", self.weight * float(count))
        return twin


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def read(cls, value: Any) -> ModelInputs:
        """Take a tensor, a tuple or list of arguments, or a mapping of keyword arguments."""
        if isinstance(value, ModelInputs):
            return value
        if isinstance(value, Inputs):
            return cls(value.args, dict(value.kwargs))
        if isinstance(value, Mapping):
            return cls((), dict(value))
        if isinstance(value, (tuple, list)):
            return cls(tuple(value), {})
        return cls((value,), {})

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, nested ones included."""
        found = leaves((self.args, dict(self.kwargs)))
        return [value for _, value in found if isinstance(value, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> ModelInputs:
        """Change every tensor."""

        def leaf(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return ModelInputs(mapped(leaf, self.args), mapped(leaf, dict(self.kwargs)))

    def run(self, model: nn.Module, gradients: bool = False) -> Any:
        """Call the model on copies, as some models write into their input.

        Args:
            model: The model.
            gradients: Whether to record what gradients need.
        """
        memo = {id(tensor): tensor.clone() for tensor in self.tensors}
        try:
            args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)), memo)
        except Exception:  # what can't be copied is given as it is
            args, kwargs = mapped(lambda x: memo.get(id(x), x), (self.args, dict(self.kwargs)))
        with torch.set_grad_enabled(gradients):
            return model(*args, **kwargs)


@dataclass(frozen=True)
class Workload:
    """Calls that stand for how a model is used.

    Attributes:
        calls: The calls.
        weights: How often each counts.
        added: How many of them, the last ones, are of the calibration data.
    """

    calls: tuple[ModelInputs, ...]
    weights: tuple[float, ...]
    added: int = 0

    @classmethod
    def of(cls, inputs: Workload | ModelInputs) -> Workload:
        """Take a single call as well."""
        return inputs if isinstance(inputs, Workload) else cls((inputs,), (1.0,))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of all calls."""
        return [tensor for call in self.calls for tensor in call.tensors]

    def map(self, change: Callable[[Tensor], Tensor]) -> Workload:
        """Change every tensor."""
        return replace(self, calls=tuple(call.map(change) for call in self.calls))

    def extended(self, calls: Sequence[ModelInputs]) -> Workload:
        """Add calls of the calibration data."""
        weights = (*self.weights, *(1.0 for _ in calls))
        return Workload((*self.calls, *calls), weights, self.added + len(calls))

    def runs(self, model: nn.Module) -> list[Callable[[], object]]:
        """What makes the calls, one by one."""
        return [functools.partial(call.run, model) for call in self.calls]
