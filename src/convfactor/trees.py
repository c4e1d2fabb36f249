"""Walk nested values: containers, dataclasses and plain objects, down to what holds no others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES


def leaves(value: Any, path: str = "", above: tuple[object, ...] = ()) -> Iterator[tuple[str, Any]]:
    """List what a nested value holds, with the path to each.

    Enters mappings, sequences, dataclasses, objects that hold tensors, and what is registered with
    torch's pytree. An empty container is a leaf, and so is one that holds itself.

    Args:
        value: Any value.
        path: Where it is.
        above: What it is held by.
    """
    children = None if any(value is holder for holder in above) else _children(value)
    if not children:
        yield path, value
        return
    for key, child in children.items():
        yield from leaves(child, f"{path}.{key}", (*above, value))


def mapped(change: Callable[[Any], Any], value: Any, made: dict[int, Any] | None = None) -> Any:
    """Copy a nested value with every leaf changed; what ``leaves`` enters is copied.

    Args:
        change: Gives the new leaf.
        value: Any value.
        made: What is copied already, by identity.
    """
    made = {} if made is None else made
    if id(value) in made:
        return made[id(value)]
    children = _children(value)
    if children is None:
        return change(value)
    if type(value) in SUPPORTED_NODES:
        node = SUPPORTED_NODES[type(value)]
        parts, context = node.flatten_fn(value)
        return node.unflatten_fn([mapped(change, part, made) for part in parts], context)
    if isinstance(value, (tuple, list)):
        parts = [mapped(change, part, made) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    made[id(value)] = twin = copy.copy(value)
    for key, child in children.items():
        new = mapped(change, child, made)
        if isinstance(value, Mapping):
            twin[key] = new
        else:
            object.__setattr__(twin, key, new)  # frozen dataclasses as well
    return twin


def _children(value: Any) -> dict[Any, Any] | None:
    """The values that a value holds; None where it is a leaf."""
    if isinstance(value, (Tensor, nn.Module, torch.Size, type)):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if type(value) in SUPPORTED_NODES:
        return dict(enumerate(SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    fields = getattr(value, "__dict__", None)
    if not isinstance(fields, dict):
        return _slots(value)
    record = dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace)
    if record or any(isinstance(field, Tensor) for field in fields.values()):
        return dict(fields)
    return None


def _slots(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass with slots."""
    if not dataclasses.is_dataclass(value):
        return None
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
