"""Modules beside a convolution that the layer in its place does as well: where that is certain."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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


def neighbours(model: nn.Module, astray: Collection[int] = ()) -> set[tuple[int, int]]:
    """Numbers of modules of which the second always reads all that the first one gives.

    Those are neighbours in a sequence or a graph, with no other place in the model. What a forward
    of its own calls today, it may leave out for another input.

    Args:
        model: The model.
        astray: Numbers of modules that were called past the sequence or graph that holds them.
    """
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    alone = {number for number, count in places.items() if count == 1 and number not in astray}
    found = set()
    for module in model.modules():
        rows = itertools.pairwise(_row(module, alone)) if _is_row(module) else ()
        found |= {(id(a), id(b)) for a, b in (*rows, *_in_graph(module))}
    return {(a, b) for a, b in found if a in alone and b in alone}


def runs(caller: nn.Module, module: nn.Module) -> bool:
    """Whether a module is called by the sequence or the graph that holds it, in its turn."""
    in_row = type(caller) is nn.Sequential and any(part is module for part in caller.children())
    return in_row or isinstance(caller, fx.GraphModule)


def _is_row(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other, and nothing else."""
    return type(module) is nn.Sequential and untouched(module)


def _row(module: nn.Module, alone: Collection[int]) -> Iterator[nn.Module]:
    """What runs one after the other where a sequence runs."""
    for part in module.children():
        if _is_row(part) and id(part) in alone:
            yield from _row(part, alone)
        else:
            yield part


def _in_graph(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours in a graph."""
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        users = [user for user in node.users if user.op == "call_module"]
        if node.op == "call_module" and len(users) == len(node.users) == 1:
            yield module.get_submodule(node.target), module.get_submodule(users[0].target)
