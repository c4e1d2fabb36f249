"""The large-kernel convolutions among a model's modules, and what stands in the way of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.weights import ComposedWeight
from convfactor.model.digests import fingerprint
from convfactor.model.reasons import Reason
from convfactor.model.sites import Found, InputShape, Kind, Site, Subject, TurnedAway, inside

NOT_CONV2D = {
    "Conv1d": "not a 2-D convolution",
    "Conv3d": "not a 2-D convolution",
    "ConvTranspose1d": "transposed convolution",
    "ConvTranspose2d": "transposed convolution",
    "ConvTranspose3d": "transposed convolution",
}


@dataclass(eq=False)
class Candidate:
    """One large-kernel convolution while the model is looked at.

    Attributes:
        name: What to call it in a table.
        kind: A module, or a functional call in a module's forward.
        owners: Qualified names of the module, or of the modules whose forwards make the call.
        weight_name: Qualified name of the weight; empty where it is computed.
        weight: The weight, as torch stores it.
        bias: The bias, or None.
        geometry: The convolution's integers, or None where it is not a 2-D convolution.
        obstacle: Why it can't be replaced, or None.
        shapes: Input shapes of the calls seen so far, with their numbers.
        calls: Numbers of calls in each call of the model so far.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    weight: Tensor
    bias: Tensor | None
    geometry: ConvGeometry | None
    obstacle: Reason | None = None
    shapes: dict[InputShape, float] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)

    def found(self, obstacle: Reason | None) -> Found:
        """Write down what was seen."""
        subject = Subject(
            name=self.name,
            kind=self.kind,
            owners=self.owners,
            weight_name=self.weight_name,
            dtype=str(self.weight.dtype).removeprefix("torch."),
            kernel_size=tuple(self.weight.shape[2:]),
            geometry=self.geometry,
            shapes=tuple(self.shapes.items()),
            fingerprint=fingerprint(self.weight) if self.weight_name else "",
            calls=tuple(self.calls[i] for i in range(max(self.calls, default=-1) + 1)),
        )
        if self.geometry is None or obstacle is not None:
            return TurnedAway(subject, obstacle or unsupported("not a 2-D convolution"))
        return Site(subject, self.geometry, self.weight, self.bias)


def unsupported(short: str, text: str = "") -> Reason:
    """What no cascade can stand for."""
    return Reason("unsupported", short, text or short)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of torch's convolutions, or of a class made from one."""
    return isinstance(module, (nn.Conv2d, *(getattr(nn, kind) for kind in NOT_CONV2D)))


def of_modules(model: nn.Module, least: int) -> list[Candidate]:
    """List the convolution modules, one candidate per weight, bias and geometry.

    Args:
        model: The model.
        least: Smallest longer side of a kernel to list.
    """
    found: dict[Any, Candidate] = {}
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
        if key in found:
            found[key].owners += (name,)
            continue
        found[key] = Candidate(
            name=name or type(module).__name__,
            kind="module",
            owners=(name,),
            weight_name=inside(name, "weight"),
            weight=weight,
            bias=bias,
            geometry=geometry,
            obstacle=obstacle,
        )
    return list(found.values())


def dtype_obstacle(weight: Tensor) -> Reason | None:
    """Why a weight's dtype can't be handled."""
    return None if weight.is_floating_point() else unsupported(f"dtype {weight.dtype}")


def _kernel_size(module: nn.Module) -> tuple[int, ...] | None:
    """Taps of a convolution module; None for other modules."""
    if isinstance(module, torch.jit.ScriptModule):
        known = module.original_name in ("Conv2d", *NOT_CONV2D)
        return tuple(module.weight.shape[2:]) if known else None
    size: Any = module.kernel_size if is_convolution(module) else None
    return None if size is None else tuple(size)


def _obstacle(module: nn.Module) -> Reason | None:
    """Why a convolution module can't be replaced."""
    if isinstance(module, torch.jit.ScriptModule):
        return unsupported("TorchScript", "TorchScript, which is not entered")
    if parametrize.is_parametrized(module):
        return unsupported(
            "parametrized weight",
            "parametrized weight; make it permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations",
        )
    kind = type(module)
    weight: Any = module.weight
    if isinstance(weight, UninitializedParameter):
        return unsupported("lazy", "lazy: it has no weight before its first call")
    if kind.__name__ in NOT_CONV2D and kind is not nn.Conv2d:
        return unsupported(NOT_CONV2D[kind.__name__])
    if kind is not nn.Conv2d:
        text = f"a subclass ({kind.__name__}), whose forward may differ"
        return unsupported(f"a subclass ({kind.__name__})", text)
    if "forward" in vars(module):
        return unsupported("its forward was replaced", "its forward was replaced on the instance")
    if has_hooks(module):
        return _hook_obstacle(module)
    return dtype_obstacle(weight)


def _hook_obstacle(module: nn.Module) -> Reason:
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
            return unsupported(
                f"hooks of {kind}",
                f"it has hooks of {kind} that compute its weight; make it permanent with {removal}",
            )
    return unsupported("it has hooks", "it has hooks, which a new layer would lose")


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
