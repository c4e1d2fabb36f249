"""Modules beside a convolution that the layer in its place does as well: where that is certain."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.modules.module as torchs
from torch import fx, nn


class Folded(nn.Identity):
    """Stands where something was that a layer beside it does now."""

    @classmethod
    def of(cls, module: nn.Module) -> Folded:
        """Make what takes the place of a module, in its mode."""
        return cls().train(module.training)


def hooks(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    """All hooks that run with a module."""
    return (
        torchs._global_forward_hooks,
        torchs._global_forward_pre_hooks,
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def untouched(module: nn.Module) -> bool:
    """Whether nothing but the forward of its class runs with a module."""
    return not any(hooks(module)) and "forward" not in vars(module)


def neighbours(model: nn.Module) -> set[tuple[int, int]]:
    """Numbers of modules of which the second always reads all that the first one gives.

    Those are neighbours in a sequence or a graph, with no other place in the model. What a forward
    of its own calls today, it may leave out for another input.
    """
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    pairs = (pair for module in model.modules() for pair in (*_in_row(module), *_in_graph(module)))
    return {(id(a), id(b)) for a, b in pairs if places[id(a)] == places[id(b)] == 1}


def _in_row(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours in a sequence."""
    return itertools.pairwise(_row(module))


def _row(module: nn.Module) -> Iterator[nn.Module]:
    """What runs one after the other where a module runs."""
    if type(module) is nn.Sequential and untouched(module):
        for part in module:
            yield from _row(part)
    else:
        yield module


def _in_graph(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours in a graph."""
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        users = [user for user in node.users if user.op == "call_module"]
        if node.op == "call_module" and len(users) == len(node.users) == 1:
            yield module.get_submodule(node.target), module.get_submodule(users[0].target)
