"""The tensors of a model: taken out for a file, and put back bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convfactor.errors import PlanMismatchError

AGAIN = (
    "give load a new model of the class, made with the arguments that the saved one was made with"
)


@dataclass(frozen=True)
class Layout:
    """What a file of tensors does not tell.

    Attributes:
        tied: Groups of names of one tensor each, which is in the file under the first.
        strides: Strides of the tensors that do not lie in memory in the order of their dimensions.
        unsaved: Dtypes of the buffers that are not in the state; their values are the class's.
    """

    tied: tuple[tuple[str, ...], ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    unsaved: tuple[tuple[str, str], ...]


def taken(model: nn.Module) -> tuple[dict[str, Tensor], Layout]:
    """Copy the state of a model.

    Returns:
        Tensors with memory of their own, one for each of the model's, and what they do not tell.

    Raises:
        ValueError: Something in the state is not a dense tensor with values.
    """
    names: dict[int, tuple[str, ...]] = {}
    tensors: dict[str, Tensor] = {}
    strides = []
    state = _state(model)
    for name, value in state.items():
        _check(name, value)
        names[id(value)] = (*names.get(id(value), ()), name)
        if len(names[id(value)]) > 1:
            continue
        plain = value.detach().cpu()
        tensors[name] = plain.clone(memory_format=torch.contiguous_format)
        kept = torch.empty_like(plain).stride()
        if kept != tensors[name].stride():
            strides.append((name, kept))
    return tensors, Layout(
        tied=tuple(group for group in names.values() if len(group) > 1),
        strides=tuple(strides),
        unsaved=tuple(
            (name, str(buffer.dtype).removeprefix("torch."))
            for name, buffer in model.named_buffers(remove_duplicate=False)
            if name not in state and buffer.is_floating_point()
        ),
    )


def put(model: nn.Module, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """Give a model the state that was taken: values, dtypes, strides and ties.

    Args:
        model: The model, which is changed; its tensors stay on their devices.
        tensors: The tensors.
        layout: What they do not tell.

    Raises:
        PlanMismatchError: The model has other tensors.
    """
    first = {name: group[0] for group in layout.tied for name in group}
    values = {**{name: tensors[of] for name, of in first.items()}, **tensors}
    _check_names(model, values)
    for name, of in first.items():
        if name != of:
            _tie(model, name, of)
    strides = dict(layout.strides)
    users: dict[int, str] = {}
    for name, target in _state(model).items():
        of = first.get(name, name)
        other = users.setdefault(id(target), of)
        if other != of:
            raise PlanMismatchError(
                f"{other} and {of} are one tensor in the model, but two were saved; {AGAIN}"
            )
        size, value = tuple(target.shape), values[name]
        strided = torch.empty(size, dtype=value.dtype, device=target.device)
        if of in strides:
            strided = torch.empty_strided(
                size, strides[of], dtype=value.dtype, device=target.device
            )
        target.data = strided
    nn.Module.load_state_dict(model, values)
    for name, dtype in layout.unsaved:
        for own, buffer in model.named_buffers(remove_duplicate=False):
            if own == name:
                buffer.data = buffer.data.to(getattr(torch, dtype))


def _state(model: nn.Module) -> dict[str, Any]:
    """The state of a model as torch has it, past a method of the user's class."""
    return nn.Module.state_dict(model, keep_vars=True)


def _check(name: str, value: object) -> None:
    """Refuse what a file of tensors can't hold."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} in the state of the model is of type {type(value).__name__}, which can't be "
            "saved without pickle; let get_extra_state of its module return a tensor"
        )
    if is_lazy(value):
        raise ValueError(f"{name} has no values yet; call the model once before it is saved")
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        kind = "on the meta device" if value.is_meta else "sparse or quantized"
        raise ValueError(f"{name} is {kind}; save the model before, with dense values")


def _check_names(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Compare what the model has with what was saved."""
    state = _state(model)
    absent, odd = sorted(values.keys() - state.keys()), sorted(state.keys() - values.keys())
    parts = [f"no {name}, which was saved" for name in absent[:1]]
    parts += [f"{name}, which was not saved" for name in odd[:1]]
    if parts:
        raise PlanMismatchError(f"the model has {' and '.join(parts)}; {AGAIN}")
    for name, target in state.items():
        if is_lazy(target) or target.is_meta:
            raise PlanMismatchError(
                f"{name} has no values in the model; make the model on a device such as cpu, and "
                "call lazy modules once"
            )
        if target.shape != values[name].shape:
            raise PlanMismatchError(
                f"{name} has the shape {tuple(target.shape)} in the model, but "
                f"{tuple(values[name].shape)} was saved; {AGAIN}"
            )


def _tie(model: nn.Module, name: str, of: str) -> None:
    """Let a name stand for the tensor of another."""
    owner, _, leaf = name.rpartition(".")
    source, _, of_leaf = of.rpartition(".")
    mine, its = model.get_submodule(owner), model.get_submodule(source)
    if leaf in mine._parameters and of_leaf in its._parameters:
        mine._parameters[leaf] = its._parameters[of_leaf]
    elif leaf in mine._buffers and of_leaf in its._buffers:
        mine._buffers[leaf] = its._buffers[of_leaf]
