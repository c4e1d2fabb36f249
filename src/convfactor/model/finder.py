"""See every call of a large kernel while a model runs, and who else reads what it reads."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, fx, nn
from torch.autograd.function import FunctionCtx
from torch.utils._pytree import tree_leaves

from convfactor.conv.calls import ConvCall, is_about
from convfactor.conv.framed import Layer
from convfactor.conv.scales import Scales
from convfactor.model import graphs
from convfactor.model.candidates import Candidate, dtype_obstacle, unsupported
from convfactor.model.folding import neighbours, runs
from convfactor.model.norms import can_fold
from convfactor.model.pads import PADS, zeros_of
from convfactor.model.reasons import Reason
from convfactor.model.sites import InputShape, inside
from convfactor.model.surroundings import Surroundings
from convfactor.model.transforms import is_transform, of_model
from convfactor.model.watching import Watcher

# What such a module runs is its children, of which a cascade would be one more.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Finder(Watcher[Candidate]):
    """A watcher that notes every functional call it has not seen, and the calls of transforms."""

    def __init__(self, model: nn.Module, sites: list[Candidate], min_kernel_size: int) -> None:
        """Set up a finder.

        Args:
            model: The model; it is left as it was.
            sites: Its convolution modules.
            min_kernel_size: Smallest longer side of a kernel of a functional call to note.
        """
        super().__init__(model, sites, self._count)
        self.call = 0  # the number of the model's call that runs, and how often it counts
        self.weight = 1.0
        self.transforms = of_model(model)
        self._least = min_kernel_size
        self._order: dict[Candidate, int] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names[id(module)] = (*self._names.get(id(module), ()), name)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {id(tensor): name for name, tensor in tensors}
        self._named = dict(tensors)
        self._around: Surroundings[Candidate] = Surroundings(tensors)
        # Modules that were called past the sequence or graph that holds them.
        self._astray: set[int] = set()
        self._special = {
            id(model.get_submodule(one.owners[0])): one for one in sites if one.special
        }
        # The modules that read each tensor, but for functional calls that are sites.
        self._users: dict[int, set[nn.Module]] = {}
        cascades = [module for module in model.modules() if isinstance(module, Layer)]
        self._stages = {id(p) for cascade in cascades for p in cascade.parameters()}

    def in_order(self) -> list[Candidate]:
        """The candidates in the order of their first call; those that were not called come last."""
        return sorted(self.sites, key=lambda site: self._order.get(site, len(self._order)))

    def reached(self) -> int:
        """How many sites and transforms that may be replaced were called."""
        sites = sum(site.obstacle is None and bool(site.shapes) for site in self.sites)
        return sites + sum(t.obstacle is None and bool(t.calls) for t in self.transforms.values())

    def complete(self) -> bool:
        """Whether all large kernels and transforms were called, as far as weights tell."""
        if not all(site.shapes or site.obstacle for site in self.sites):
            return False
        called = {id(site.held) for site in self.sites}
        tensors = (*self.model.parameters(), *self.model.buffers())
        large = (t for t in tensors if t.dim() == 4 and max(t.shape[2:]) >= self._least)
        transforms = (one.calls or one.obstacle for one in self.transforms.values())
        return all(id(tensor) in called for tensor in large) and all(transforms)

    def other_use(self, site: Candidate) -> Reason | None:
        """Where the weight of a site is read past it, which what takes its place would not see."""
        module = site.kind == "module"
        for other in self._readers[id(site.held)]:
            if other is not site and "functional" in (site.kind, other.kind):
                return _shared(other.owners[0])
        for tensor in (site.held, site.bias if module else None):
            for user in self._users.get(id(tensor), ()):
                if not (module and any(tensor is own for own in user.parameters(recurse=False))):
                    return _shared(self._names[id(user)][0])
        return self._tie(site)

    def _tie(self, site: Candidate) -> Reason | None:
        """Who else has the parameters of a module, from which a cascade would cut them."""
        if site.kind != "module":
            return None
        owned = [site.held, site.bias]
        if site.fingerprint:  # computed, from parameters that other modules may hold as well
            owned = [*self.model.get_submodule(site.owners[0]).parameters()]
        holders = {holder for tensor in owned for holder in self._holders[id(tensor)]}
        for _, owner in sorted(holders):
            if not any(inside(owner, "").startswith(inside(own, "")) for own in site.owners):
                other = owner or "the model"
                text = f"it shares a parameter with {other}, which stays as it is"
                return Reason("shared", f"shares a parameter with {other}", text)
        return None

    @functools.cached_property
    def _readers(self) -> defaultdict[int, list[Candidate]]:
        """The candidates that read each weight, once all are known."""
        readers = defaultdict(list)
        for site in self.sites:
            readers[id(site.held)].append(site)
        return readers

    @functools.cached_property
    def _holders(self) -> defaultdict[int, list[tuple[int, str]]]:
        """The modules that hold each parameter, by their place in the model, after the run."""
        holders = defaultdict(list)
        parameters = self.model.named_parameters(remove_duplicate=False)
        for place, (name, tensor) in enumerate(parameters):
            holders[id(tensor)].append((place, name.rpartition(".")[0]))
        return holders

    def _count(self, site: Candidate, x: Tensor) -> None:
        """Note the shape of a call."""
        self._order.setdefault(site, len(self._order))
        shape = InputShape.of(x)
        site.shapes[shape] = site.shapes.get(shape, 0) + self.weight
        site.calls[self.call] += 1
        names = self._names[id(self.inside)]
        if site.kind == "functional":
            site.owners += tuple(name for name in names if name not in site.owners)

    def _is_known(self, module: nn.Module) -> bool:
        return super()._is_known(module) and id(module) not in self._special

    def look_around(self) -> None:
        """Note what scales the channels of the sites, and the normalizations to fold into them."""
        certain = neighbours(self.model, self._astray)
        for site in self.sites:
            own = id(self.model.get_submodule(site.owners[0]))
            module = site.kind == "module" and len(site.owners) == 1
            norm = self._around.norm(site)
            if module and norm is not None and can_fold(norm) and (own, id(norm)) in certain:
                site.norm = self._names[id(norm)][0], norm
            pad = self._around.pad(site)
            if module and pad is not None and zeros_of(pad) and (id(pad), own) in certain:
                site.pad = (self._names[id(pad)][0], pad) if site.takes_zeros else None
            outputs, sources = self._around.outputs(site, int(site.norm is not None))
            site.scaled_by = {name: self._named[name] for name in sources}
            site.scales = Scales(self._around.inputs(site), outputs)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        super()._leave(module, args, output)
        site = self._modules.get(id(module))
        if site is not None:
            self._around.gave(site, output, site.form.dims)
        elif type(module) in PADS:
            self._around.padded(module, output)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not runs(self.inside, module):
            self._astray.add(id(module))
        super()._enter(module, args, kwargs)
        site = self._modules.get(id(module))
        if site is not None:
            x = args[0] if args else kwargs.get("input")
            self._around.reads(site, x, site.form.dims)
        if module in self.transforms:
            self.transforms[module].record(args, kwargs)

    def saw(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: object,
    ) -> None:
        """Note what a function did to the channels of a tensor."""
        self._around.called(func, args, kwargs, output, self.inside)
        call = self.functional(func, args, kwargs)
        site = None if call is None else super().site_of(call)
        if call is not None and site is not None:
            self._around.reads(site, call.input, call.form.dims)
            self._around.gave(site, output, call.form.dims)

    def _note(self, func: Callable[..., Any], arguments: object, weight: Tensor | None) -> None:
        """Note which tensors the module whose forward runs reads, but for the weights of sites."""
        for value in () if is_about(func) else tree_leaves(arguments):
            if id(value) in self._tensors and value is not weight:
                self._users.setdefault(id(value), set()).add(self.inside)

    def site_of(self, call: ConvCall) -> Candidate | None:
        """The site of a functional call, a new one where there is none."""
        known = super().site_of(call)
        sides = tuple(call.weight.shape[2:])
        if known is not None or not sides or max(sides) < self._least:
            return known
        if any(map(is_transform, self._stack)) or id(call.weight) in self._stages:
            return None  # replaced as a whole, see transforms.py, or already
        owners = self._names[id(self.inside)]
        weight_name = self._tensors.get(id(call.weight), "")
        special = self._special.get(id(self.inside))
        if special is not None and not weight_name:
            return None  # it computes its weight, which is read off once the model has run
        name = weight_name or inside(owners[0], "computed")
        if special is not None and special.held is call.weight:
            name = special.name
        if any(site.name == name and not weight_name for site in self.sites):
            return None
        site = Candidate(
            name=name,
            kind="functional",
            owners=owners,
            weight_name=weight_name,
            held=call.weight,
            bias=call.bias,
            geometry=call.geometry,
            form=call.form,
            obstacle=self._obstacle(call, weight_name),
        )
        self.sites.append(site)
        return site

    def _obstacle(self, call: ConvCall, weight_name: str) -> Reason | None:
        """Why a functional call can't be replaced."""
        if call.geometry is None:
            text = call.obstacle or "not a convolution of images"
            return unsupported(text.partition(";")[0], text)
        if _in_autograd_function():
            text = "called in a torch.autograd.Function, whose backward needs the weight itself"
            return unsupported("called in an autograd.Function", text)
        if not weight_name:
            return unsupported(
                "its weight is no parameter or buffer",
                "the weight of the functional call is no parameter or buffer of the model: it is "
                "computed, or held where the model does not register it, as in a plain list",
            )
        holder = self.model.get_submodule(weight_name.rpartition(".")[0])
        if isinstance(self.inside, fx.GraphModule):
            if not graphs.calls(self.inside, call.weight, call.form, call.geometry):
                text = "functional call whose arguments are computed in the graph"
                return unsupported("arguments computed in the graph", text)
        elif isinstance(holder, CONTAINERS):
            kind = type(holder).__name__
            text = f"its weight belongs to a {kind}, where a cascade would be one more layer"
            return unsupported(f"its weight belongs to a {kind}", text)
        return dtype_obstacle(call.weight)


def _shared(user: str) -> Reason:
    """Who else reads a weight."""
    text = f"its weight is also used outside it, in {user or 'the model'}"
    return Reason("shared", f"its weight is used in {user or 'the model'}", text)


def _in_autograd_function() -> bool:
    """Whether the forward of a custom autograd function runs."""
    # Not this frame, whose variable would be a reference to itself, and keep what others return.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        first = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
        if frame.f_code.co_name == "forward" and isinstance(first, FunctionCtx):
            return True
        frame = frame.f_back
    return False
