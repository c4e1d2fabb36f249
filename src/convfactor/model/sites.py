"""The large-kernel convolutions of a model: what is known of each, and what stands in the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.weights import ComposedWeight

Kind = Literal["module", "functional", "transform"]
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

    @classmethod
    def of(cls, x: Tensor) -> InputShape:
        """Read it off an input."""
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(x.shape), last and not x.is_contiguous())


@dataclass(eq=False)
class Site:
    """One large-kernel convolution of a model, with every name it goes by.

    Attributes:
        name: What to call it in a table.
        kind: A module, or a functional call in a module's forward.
        owners: Qualified names of the module, or of the modules whose forwards make the call.
        weight_name: Qualified name of the weight; empty where it is computed.
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


def is_transform(module: nn.Module) -> bool:
    """Whether a module is one that has a faster equal; pytorch_wavelets need not be installed."""
    kind = type(module)
    return kind.__name__ in TRANSFORMS and kind.__module__.startswith("pytorch_wavelets.")


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of torch's convolutions, or of a class made from one."""
    return isinstance(module, (nn.Conv2d, *(getattr(nn, kind) for kind in NOT_CONV2D)))


def module_sites(model: nn.Module, least: int) -> list[Site]:
    """List the convolution modules, one site per weight, bias and geometry.

    Args:
        model: The model.
        least: Smallest longer side of a kernel to list.
    """
    sites: dict[Any, Site] = {}
    cascades = [module for module in model.modules() if isinstance(module, CascadeConv2d)]
    stages = {id(module) for cascade in cascades for module in cascade.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        size = _kernel_size(module)
        if size is None or max(size) < least or id(module) in stages:
            continue
        weight: Any = module.weight
        bias: Any = module.bias
        if isinstance(weight, ComposedWeight):
            continue  # lent to a functional call that runs a cascade
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
            weight_name=inside(name, "weight"),
            weight=weight,
            bias=bias,
            geometry=geometry,
            obstacle=obstacle,
        )
    return list(sites.values())


def inside(owner: str, what: str) -> str:
    """Name a thing inside a module."""
    return f"{owner}.{what}" if owner else what


def dtype_obstacle(weight: Tensor) -> str | None:
    """Why a weight's dtype can't be handled."""
    return None if weight.is_floating_point() else f"dtype {weight.dtype}"


def _kernel_size(module: nn.Module) -> tuple[int, ...] | None:
    """Taps of a convolution module; None for other modules."""
    if isinstance(module, torch.jit.ScriptModule):
        known = module.original_name in ("Conv2d", *NOT_CONV2D)
        return tuple(module.weight.shape[2:]) if known else None
    size: Any = module.kernel_size if is_convolution(module) else None
    return None if size is None else tuple(size)


def _obstacle(module: nn.Module) -> str | None:
    """Why a convolution module can't be replaced."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, which is not entered"
    if parametrize.is_parametrized(module):
        return (
            "parametrized weight; make it permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
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
        return _hook_obstacle(module)
    return dtype_obstacle(weight)


def _hook_obstacle(module: nn.Module) -> str:
    """Name the hooks of a convolution, and the way out where torch has put them there."""
    removals = {
        "WeightNorm": "torch.nn.utils.remove_weight_norm",
        "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    }
    for hook in module._forward_pre_hooks.values():
        removal = removals.get(type(hook).__name__)
        if type(hook).__module__.startswith("torch.nn.utils.prune"):
            removal = "torch.nn.utils.prune.remove"
        if removal is not None:
            kind = type(hook).__name__
            return (
                f"it has hooks of {kind} that compute its weight; make it permanent with {removal}"
            )
    return "it has hooks, which a new layer would lose"


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    hooks = (
        torchs._global_forward_hooks,
        torchs._global_forward_pre_hooks,
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)
