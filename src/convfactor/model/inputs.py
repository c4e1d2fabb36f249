"""What a model is called with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convfactor.model.trees import leaves, mapped


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
