"""Find the convolutions that a model calls, and watch what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from convfactor.geometry import ConvGeometry
from convfactor.layers import CascadeConv2d

Kind = Literal["module", "functional", "transform"]
Select = Callable[[str, nn.Module], bool]
TRANSFORMS = ("DTCWTInverse", "DTCWTForward")

NOT_CONV2D = {
    "Conv1d": "not a 2-D convolution",
    "Conv3d": "not a 2-D convolution",
    "ConvTranspose1d": "transposed convolution",
    "ConvTranspose2d": "transposed convolution",
    "ConvTranspose3d": "transposed convolution",
}


@dataclass(frozen=True)
class InputShape:
    """Shape and memory format of one call's input."""

    size: tuple[int, ...]
    channels_last: bool


@dataclass(eq=False)
class Site:
    """One large-kernel convolution of a model, with every name it goes by.

    Attributes:
        name: What to call it in a table.
        kind: A module, or a functional call in a module's forward.
        owners: Qualified names of the module, or of the module whose forward makes the call.
        weight_name: Qualified name of the weight.
        weight: The weight, as torch stores it.
        bias: The bias, or None.
        geometry: The convolution's integers, or None where it is not a 2-D convolution.
        obstacle: Why it can't be replaced, or None.
        shapes: Input shapes of the calls in one run of the model, with their numbers.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    weight: Tensor
    bias: Tensor | None
    geometry: ConvGeometry | None
    obstacle: str | None = None
    shapes: Counter[InputShape] = field(default_factory=Counter)


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
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [value for value in leaves if isinstance(value, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> ModelInputs:
        """Change every tensor."""

        def leaf(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return ModelInputs(tree_map(leaf, self.args), tree_map(leaf, dict(self.kwargs)))

    def run(self, model: nn.Module) -> Any:
        """Call the model without gradients, on copies: some models write into their input."""
        with torch.no_grad():
            mine = self.map(Tensor.clone)
            return model(*mine.args, **mine.kwargs)


OnCall = Callable[[Site, Tensor], None]


def is_transform(module: nn.Module) -> bool:
    """Whether a module is one that has a faster equal; pytorch_wavelets need not be installed."""
    kind = type(module)
    return kind.__name__ in TRANSFORMS and kind.__module__.startswith("pytorch_wavelets.")


def find(
    model: nn.Module,
    inputs: ModelInputs,
    min_kernel_size: int = 5,
    select: Select | None = None,
) -> list[Site]:
    """Run a model once and list its large-kernel convolutions in the order of their first call.

    Modules are seen through hooks and functional calls through torch's function mode, so models
    that can't be traced are seen as well. A module registered under several names, and modules
    with the same weight, bias and geometry, are one site. Convolutions that were not called come
    last.

    Args:
        model: The model; it is left as it was.
        inputs: Arguments to run it with.
        min_kernel_size: Smallest longer side of a kernel to list.
        select: Keeps a site out where it returns False for (name, module).
    """
    finder = _Finder(model, _module_sites(model, min_kernel_size), min_kernel_size)
    with finder.watching():
        inputs.run(model)
    found = [s for s in finder.in_order() if not isinstance(s.weight, UninitializedParameter)]
    for site in found:
        if site.obstacle is None and not site.shapes:
            site.obstacle = "not called with the example inputs"
        if select is not None and not select(site.name, model.get_submodule(site.owners[0])):
            site.obstacle = "not selected"
    return found


@contextmanager
def watch(model: nn.Module, sites: Iterable[Site], on_call: OnCall) -> Iterator[None]:
    """Call ``on_call(site, input)`` whenever one of the sites is run, before it is."""
    watcher = _Watcher(model, list(sites), on_call)
    with watcher.watching():
        yield


class _Watcher(TorchFunctionMode):
    """Sees modules through hooks and functional convolutions through the function mode."""

    def __init__(self, model: nn.Module, sites: list[Site], on_call: OnCall) -> None:
        super().__init__()
        self.model = model
        self.sites = sites
        self._on_call = on_call
        self._stack: list[nn.Module] = []
        self._modules = {
            id(model.get_submodule(name)): site
            for site in sites
            if site.kind == "module"
            for name in site.owners
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for module in self.model.modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                hooks.callback(
                    module.register_forward_pre_hook(self._enter, with_kwargs=True).remove
                )
                hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            hooks.enter_context(self)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stack.append(module)
        site = self._modules.get(id(module))
        if site is not None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):
                self._on_call(site, x)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inside = self._inside
        if func is F.conv2d and not isinstance(inside, (nn.Conv2d, CascadeConv2d)):
            call = read_conv2d(args, kwargs)
            site = self._functional(inside, call)
            if site is not None:
                self._on_call(site, call.input)
        return func(*args, **kwargs)

    @property
    def _inside(self) -> nn.Module:
        """The module whose forward runs."""
        return self._stack[-1] if self._stack else self.model

    def _functional(self, owner: nn.Module, call: Conv2dCall) -> Site | None:
        for site in self.sites:
            if (
                site.kind == "functional"
                and site.weight is call.weight
                and site.geometry == call.geometry
                and self.model.get_submodule(site.owners[0]) is owner
            ):
                return site
        return None


class _Finder(_Watcher):
    """A watcher that makes a site of every functional call it has not seen."""

    def __init__(self, model: nn.Module, sites: list[Site], min_kernel_size: int) -> None:
        super().__init__(model, sites, self._count)
        self._least = min_kernel_size
        self._order: dict[Site, int] = {}
        self._hooked = {id(module) for module in model.modules() if has_hooks(module)}
        self._names: dict[int, tuple[str, ...]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names[id(module)] = (*self._names.get(id(module), ()), name)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {id(tensor): name for name, tensor in tensors}
        self._swapped = {
            id(tensor): site
            for site in sites
            for tensor in (site.weight, site.bias)
            if tensor is not None
        }

    def in_order(self) -> list[Site]:
        """The sites in the order of their first call; those that were not called come last."""
        return sorted(self.sites, key=lambda site: self._order.get(site, len(self._order)))

    def _count(self, site: Site, x: Tensor) -> None:
        """Note the shape of a call."""
        self._order.setdefault(site, len(self._order))
        plain = x.is_contiguous()
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        site.shapes[InputShape(tuple(x.shape), last and not plain)] += 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What only reads a property, such as a dtype, needs no weight of the layer's own.
        if getattr(func, "__name__", "") != "__get__":
            self._note_use(tree_leaves((args, kwargs)))
        return super().__torch_function__(func, types, args, kwargs)

    def _note_use(self, values: Iterable[Any]) -> None:
        """Find layers whose weight is read past them, which a layer in their place has not."""
        inside = self._inside
        own = [id(tensor) for tensor in inside._parameters.values()]
        for value in values:
            site = self._swapped.get(id(value))
            if site is not None and site.obstacle is None and id(value) not in own:
                where = self._names[id(inside)][0] or "the model"
                site.obstacle = f"its weight is also used outside it, in {where}"

    def _functional(self, owner: nn.Module, call: Conv2dCall) -> Site | None:
        known = super()._functional(owner, call)
        if known is not None or max(call.geometry.kernel_size) < self._least:
            return known
        if any(map(is_transform, self._stack)):
            return None  # replaced as a whole, see transforms.py
        owners = self._names[id(owner)]
        weight_name = self._tensors.get(id(call.weight))
        computed = _label(owners[0], "computed")
        obstacle = _dtype_obstacle(call.weight)
        if weight_name is None:
            if any(site.name == computed for site in self.sites):
                return None
            obstacle = "the weight of the functional call is computed, not a parameter or buffer"
        elif id(owner) in self._hooked:
            obstacle = "functional call in a module with hooks, which its new forward would lose"
        site = Site(
            name=weight_name or computed,
            kind="functional",
            owners=owners,
            weight_name=weight_name or "",
            weight=call.weight,
            bias=call.bias,
            geometry=call.geometry,
            obstacle=obstacle,
        )
        self.sites.append(site)
        return site


def _label(owner: str, what: str) -> str:
    """Name a thing inside a module."""
    return f"{owner}.{what}" if owner else what


@dataclass(frozen=True, eq=False)
class Conv2dCall:
    """The arguments of one functional convolution."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: ConvGeometry


def read_conv2d(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Conv2dCall:
    """Bind the arguments of ``F.conv2d``."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    return Conv2dCall(x, weight, bias, ConvGeometry.from_weight(weight, **bound))


def _module_sites(model: nn.Module, least: int) -> list[Site]:
    """Sites of the convolution modules, one per weight, bias and geometry."""
    sites: dict[Any, Site] = {}
    cascades = [module for module in model.modules() if isinstance(module, CascadeConv2d)]
    stages = {id(module) for cascade in cascades for module in cascade.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        size = _kernel_size(module)
        if size is None or max(size) < least or id(module) in stages:
            continue
        weight: Any = module.weight
        bias: Any = module.bias
        obstacle = _obstacle(module)
        plain = isinstance(module, nn.Conv2d) and not isinstance(weight, UninitializedParameter)
        geometry = ConvGeometry.from_conv(module) if plain else None
        key = (id(module),) if obstacle else (id(weight), id(bias), geometry)
        if key in sites:
            sites[key].owners += (name,)
            continue
        sites[key] = Site(
            name=name or type(module).__name__,
            kind="module",
            owners=(name,),
            weight_name=_label(name, "weight"),
            weight=weight,
            bias=bias,
            geometry=geometry,
            obstacle=obstacle,
        )
    return list(sites.values())


def _kernel_size(module: nn.Module) -> tuple[int, ...] | None:
    """Taps of a convolution module; None for other modules."""
    if isinstance(module, torch.jit.ScriptModule):
        known = module.original_name in ("Conv2d", *NOT_CONV2D)
        return tuple(module.weight.shape[2:]) if known else None
    kinds = (nn.Conv2d, *(getattr(nn, kind) for kind in NOT_CONV2D))
    return tuple(module.kernel_size) if isinstance(module, kinds) else None


def _obstacle(module: nn.Module) -> str | None:
    """Why a convolution module can't be replaced."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, which is not entered"
    if parametrize.is_parametrized(module):
        return "parametrized weight"
    kind = type(module)
    weight: Any = module.weight
    if isinstance(weight, UninitializedParameter):
        return "lazy: it has no weight before its first call"
    if kind is not nn.Conv2d:
        return NOT_CONV2D.get(
            kind.__name__, f"a subclass ({kind.__name__}), whose forward may differ"
        )
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if has_hooks(module):
        return "it has hooks, which a new layer would lose"
    return _dtype_obstacle(weight)


def _dtype_obstacle(weight: Tensor) -> str | None:
    """Why a weight's dtype can't be handled."""
    return None if weight.is_floating_point() else f"dtype {weight.dtype}"


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)
