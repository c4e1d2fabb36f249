"""Walk nested values: containers and objects with fields, down to what holds no others."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES

# What has fields, but is no record of values.
NO_RECORDS = (
    type,
    Enum,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    torch.Size,
    Tensor,
    nn.Module,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)


def leaves(
    value: Any, path: str = "", entered: dict[int, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """List what a nested value holds, with the path to each.

    Enters mappings, sequences, sets, dataclasses and other objects with fields, and what is
    registered with torch's pytree, each once. An empty container is a leaf.

    Args:
        value: Any value.
        path: Where it is.
        entered: What was entered already, by identity.
    """
    entered = {} if entered is None else entered
    children = _children(value)
    if not children:
        yield path, value
    elif id(value) not in entered:
        entered[id(value)] = value
        for key, child in children.items():
            yield from leaves(child, f"{path}.{key}", entered)


def mapped(change: Callable[[Any], Any], value: Any, made: dict[int, Any] | None = None) -> Any:
    """Copy a nested value with every leaf changed; what holds no tensor stays as it is.

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
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves(value)):
        return value
    if type(value) in SUPPORTED_NODES:
        node = SUPPORTED_NODES[type(value)]
        parts, context = node.flatten_fn(value)
        return node.unflatten_fn([mapped(change, part, made) for part in parts], context)
    if isinstance(value, (tuple, list)):
        parts = [mapped(change, part, made) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, (set, frozenset)):
        return type(value)(mapped(change, part, made) for part in value)
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
    if isinstance(value, NO_RECORDS):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if type(value) in SUPPORTED_NODES:
        return dict(enumerate(SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    if isinstance(value, (set, frozenset)):
        return dict(enumerate(sorted(value, key=str)))
    declared = (name for kind in type(value).__mro__ for name in _slots(kind))
    fields = {name: getattr(value, name) for name in declared if hasattr(value, name)}
    own = getattr(value, "__dict__", None)
    return {**fields, **own} if isinstance(own, dict) else fields or None


def _slots(kind: type) -> tuple[str, ...]:
    """The fields that a class declares."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))
