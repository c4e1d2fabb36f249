"""Find the large-kernel convolutions that a model calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, fx, nn
from torch.autograd.function import FunctionCtx
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from convfactor.conv.calls import ConvCall, is_about
from convfactor.conv.layer import CascadeConv2d
from convfactor.model import graphs
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import (
    InputShape,
    Site,
    dtype_obstacle,
    inside,
    is_transform,
    module_sites,
)
from convfactor.model.watching import Watcher

Select = Callable[[str, nn.Module], bool]
# What such a module runs is its children, of which a cascade would be one more.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find(
    model: nn.Module,
    inputs: ModelInputs,
    min_kernel_size: int = 5,
    select: Select | None = None,
) -> list[Site]:
    """Run a model once and list its large-kernel convolutions in the order of their first call.

    Modules are seen through hooks and functional calls through torch's function mode, so models
    that can't be traced are seen as well. A module registered under several names, and modules
    with the same weight, bias and geometry, are one site; so are functional calls with the same
    weight and geometry. Convolutions that were not called come last.

    Args:
        model: The model; it is left as it was.
        inputs: Arguments to run it with.
        min_kernel_size: Smallest longer side of a kernel to list.
        select: Keeps a site out where it returns False for (name, module).
    """
    finder = _Finder(model, module_sites(model, min_kernel_size), min_kernel_size)
    with finder.watching():
        inputs.run(model)
    found = [s for s in finder.in_order() if not isinstance(s.weight, UninitializedParameter)]
    functional = {id(site.weight) for site in found if site.kind == "functional"}
    # A module that only lends its weight to a functional call is not one more layer.
    found = [s for s in found if s.kind != "module" or s.shapes or id(s.weight) not in functional]
    finder.sites = found
    for site in found:
        site.obstacle = site.obstacle or finder.other_use(site)
        if site.obstacle is None and not site.shapes:
            site.obstacle = "not called with the example inputs"
        if select is not None and not select(site.name, model.get_submodule(site.owners[0])):
            site.obstacle = "not selected"
    return found


class _Finder(Watcher):
    """A watcher that makes a site of every functional call it has not seen."""

    def __init__(self, model: nn.Module, sites: list[Site], min_kernel_size: int) -> None:
        super().__init__(model, sites, self._count)
        self._least = min_kernel_size
        self._order: dict[Site, int] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names[id(module)] = (*self._names.get(id(module), ()), name)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {id(tensor): name for name, tensor in tensors}
        # The modules that read each tensor, but for functional calls that are sites.
        self._users: dict[int, set[nn.Module]] = {}
        cascades = [module for module in model.modules() if isinstance(module, CascadeConv2d)]
        self._stages = {id(p) for cascade in cascades for p in cascade.parameters()}

    def in_order(self) -> list[Site]:
        """The sites in the order of their first call; those that were not called come last."""
        return sorted(self.sites, key=lambda site: self._order.get(site, len(self._order)))

    def other_use(self, site: Site) -> str | None:
        """Where the weight of a site is read past it, which what takes its place would not see."""
        module = site.kind == "module"
        for other in self.sites:
            functional = "functional" in (site.kind, other.kind)
            if other is not site and other.weight is site.weight and functional:
                return f"its weight is also used outside it, in {other.owners[0] or 'the model'}"
        for tensor in (site.weight, site.bias if module else None):
            for user in self._users.get(id(tensor), ()):
                if not (module and any(tensor is own for own in user.parameters(recurse=False))):
                    where = self._names[id(user)][0] or "the model"
                    return f"its weight is also used outside it, in {where}"
        return self._tie(site)

    def _tie(self, site: Site) -> str | None:
        """Who else has the parameters of a module, from which a cascade would cut them."""
        if site.kind != "module":
            return None
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            owner = name.rpartition(".")[0]
            if (tensor is site.weight or tensor is site.bias) and owner not in site.owners:
                return f"it shares a parameter with {owner or 'the model'}, which stays as it is"
        return None

    def _count(self, site: Site, x: Tensor) -> None:
        """Note the shape of a call."""
        self._order.setdefault(site, len(self._order))
        site.shapes[InputShape.of(x)] += 1
        names = self._names[id(self.inside)]
        if site.kind == "functional":
            site.owners += tuple(name for name in names if name not in site.owners)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not is_about(func):
            call = self.functional(func, args, kwargs or {})
            weight = None if call is None or self.site_of(call) is None else call.weight
            self._note_use(v for v in tree_leaves((args, kwargs)) if v is not weight)
        return super().__torch_function__(func, types, args, kwargs)

    def _note_use(self, values: Iterable[Any]) -> None:
        """Note that the module whose forward runs reads some tensors."""
        for value in values:
            if id(value) in self._tensors:
                self._users.setdefault(id(value), set()).add(self.inside)

    def site_of(self, call: ConvCall) -> Site | None:
        """The site of a functional call, a new one where there is none."""
        known = super().site_of(call)
        sides = tuple(call.weight.shape[2:])
        if known is not None or not sides or max(sides) < self._least:
            return known
        if any(map(is_transform, self._stack)) or id(call.weight) in self._stages:
            return None  # replaced as a whole, see transforms.py, or already
        owners = self._names[id(self.inside)]
        weight_name = self._tensors.get(id(call.weight), "")
        name = weight_name or inside(owners[0], "computed")
        if any(site.name == name and not weight_name for site in self.sites):
            return None
        site = Site(
            name=name,
            kind="functional",
            owners=owners,
            weight_name=weight_name,
            weight=call.weight,
            bias=call.bias,
            geometry=call.geometry,
            obstacle=self._obstacle(call, weight_name),
        )
        self.sites.append(site)
        return site

    def _obstacle(self, call: ConvCall, weight_name: str) -> str | None:
        """Why a functional call can't be replaced."""
        if call.geometry is None:
            return call.obstacle
        if _in_autograd_function():
            return "called in a torch.autograd.Function, whose backward needs the weight itself"
        if not weight_name:
            return (
                "the weight of the functional call is no parameter or buffer of the model: it is "
                "computed, or held where the model does not register it, as in a plain list"
            )
        holder = self.model.get_submodule(weight_name.rpartition(".")[0])
        if isinstance(self.inside, fx.GraphModule):
            if not graphs.calls(self.inside, call.weight, call.geometry):
                return "functional call whose arguments are computed in the graph"
        elif isinstance(holder, CONTAINERS):
            kind = type(holder).__name__
            return f"its weight belongs to a {kind}, where a cascade would be one more layer"
        return dtype_obstacle(call.weight)


def _in_autograd_function() -> bool:
    """Whether the forward of a custom autograd function runs."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        first = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
        if frame.f_code.co_name == "forward" and isinstance(first, FunctionCtx):
            return True
        frame = frame.f_back
    return False
