"""The large-kernel convolutions among a model's modules, and what stands in the way of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from convfactor.conv.calls import VOLUME
from convfactor.conv.forms import PLAIN, Form, UnsupportedConvolutionError, of_module
from convfactor.conv.framed import Layer
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.scales import Scales
from convfactor.conv.weights import ComposedWeight
from convfactor.model.digests import fingerprint
from convfactor.model.folding import hooks
from convfactor.model.norms import Affine, with_norm, with_scales
from convfactor.model.pads import zeros_of
from convfactor.model.reasons import Reason
from convfactor.model.sites import Found, InputShape, Kind, Site, Subject, TurnedAway, inside

IMAGES = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
VOLUMES = (nn.Conv3d, nn.ConvTranspose3d)
# torch's own hooks that compute a weight, beside those of torch.nn.utils.prune.
COMPUTE_WEIGHT = ("WeightNorm", "SpectralNorm")


@dataclass(eq=False)
class Candidate:
    """One large-kernel convolution while the model is looked at.

    Attributes:
        name: What to call it in a table.
        kind: A module, or a functional call in a module's forward.
        owners: Qualified names of the module, or of the modules whose forwards make the call.
        weight_name: Qualified name of the weight; empty where it is computed.
        held: The weight, as torch stores it.
        bias: The bias, or None.
        geometry: The integers of the plain convolution of images that it is; None where it is none.
        form: How it is that.
        obstacle: Why it can't be replaced, or None.
        special: Whether it is a module that may compute something else than torch's own: its calls
            are looked at.
        fingerprint: Digest of what the weight is computed from; empty where it is not.
        norm: The batch normalization behind it with its qualified name, or None.
        pad: The module in front that pads with zeros, with its qualified name, or None.
        scales: How much its channels count, of the module or call itself.
        scaled_by: The parameters and buffers that scale its output, with their names.
        shapes: Shapes of the images read so far, with their numbers.
        calls: Numbers of calls in each call of the model so far.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    held: Tensor
    bias: Tensor | None
    geometry: ConvGeometry | None
    form: Form = PLAIN
    obstacle: Reason | None = None
    special: bool = False
    fingerprint: str = ""
    norm: tuple[str, nn.Module] | None = None
    pad: tuple[str, nn.Module] | None = None
    scales: Scales = field(default_factory=Scales)
    scaled_by: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[InputShape, float] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)

    def found(self, obstacle: Reason | None) -> Found:
        """Write down what was seen."""
        pad, pads = "", (0, 0, 0, 0)
        if self.pad is not None:
            pad, pads = self.pad[0], zeros_of(self.pad[1]) or pads
        subject = Subject(
            name=self.name,
            kind=self.kind,
            owners=self.owners,
            weight_name=self.weight_name,
            dtype=str(self.held.dtype).removeprefix("torch."),
            kernel_size=tuple(self.held.shape[2:]),
            geometry=self.geometry,
            shapes=tuple(self.shapes.items()),
            fingerprint=self._digest,
            calls=tuple(self.calls[i] for i in range(max(self.calls, default=-1) + 1)),
            form=self.form,
            computed=bool(self.fingerprint),
            norm="" if self.norm is None else self.norm[0],
            pad=pad,
            pads=pads,
            scaled_by=tuple(self.scaled_by),
        )
        if self.geometry is None or obstacle is not None:
            return TurnedAway(subject, obstacle or unsupported("not a convolution of images"))
        weight = self.form.weight(self.held, self.geometry.groups)
        bias = self.form.bias(self.bias)
        if self.norm is not None:
            weight, bias = Affine.of(self.norm[1]).folded(weight, bias, self.form)
        scales = Scales(self.scales.inputs, self.form.bias(self.scales.outputs))
        return Site(subject, self.geometry, weight, bias, self.held, scales)

    @property
    def takes_zeros(self) -> bool:
        """Whether what takes its place can add zeros that were padded in front of it."""
        zeros = self.geometry is not None and self.geometry.padding_mode == "zeros"
        return zeros and self.kind == "module" and self.form.is_plain

    @property
    def _digest(self) -> str:
        """Digest of the weight, and of what scales its output."""
        if not self.weight_name:
            return ""
        own = self.fingerprint or fingerprint(self.held)
        own = own if self.norm is None else with_norm(own, self.norm[1])
        return with_scales(own, self.scaled_by)


def unsupported(short: str, text: str = "") -> Reason:
    """What no cascade can stand for."""
    return Reason("unsupported", short, text or short)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of torch's convolutions, or of a class made from one."""
    return isinstance(module, (*IMAGES, *VOLUMES))


def of_modules(model: nn.Module, least: int) -> list[Candidate]:
    """List the convolution modules, one candidate per weight, bias and geometry.

    Args:
        model: The model.
        least: Smallest longer side of a kernel to list.
    """
    found: dict[Any, Candidate] = {}
    cascades = [module for module in model.modules() if isinstance(module, Layer)]
    stages = {id(module) for cascade in cascades for module in cascade.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        size = _kernel_size(module)
        if size is None or max(size) < least or id(module) in stages:
            continue
        weight: Any = module.weight
        bias: Any = module.bias
        if isinstance(weight, ComposedWeight):
            continue  # lent to a functional call that runs a cascade
        obstacle, special = _obstacle(module), False
        form, geometry = PLAIN, None
        if obstacle is None:
            special = is_special(module)
            try:
                form, geometry = of_module(module)
            except UnsupportedConvolutionError as error:
                obstacle = unsupported(str(error))
        key = (id(module),) if obstacle or special else (id(weight), id(bias), form, geometry)
        if key in found:
            found[key].owners += (name,)
            continue
        found[key] = Candidate(
            name=name or type(module).__name__,
            kind="module",
            owners=(name,),
            weight_name=inside(name, "weight"),
            held=weight,
            bias=bias,
            geometry=geometry,
            form=form,
            obstacle=obstacle,
            special=special,
        )
    return list(found.values())


def dtype_obstacle(weight: Tensor) -> Reason | None:
    """Why a weight's dtype can't be handled."""
    return None if weight.is_floating_point() else unsupported(f"dtype {weight.dtype}")


def _kernel_size(module: nn.Module) -> tuple[int, ...] | None:
    """Taps of a convolution module; None for other modules, and those that hold no weight."""
    known = is_convolution(module)
    if isinstance(module, torch.jit.ScriptModule):
        known = module.original_name in {kind.__name__ for kind in (*IMAGES, *VOLUMES)}
    weight: Any = getattr(module, "weight", None) if known else None
    if isinstance(weight, UninitializedParameter):
        size: Any = module.kernel_size
        return tuple(size)
    return tuple(weight.shape[2:]) if isinstance(weight, Tensor | ComposedWeight) else None


def _obstacle(module: nn.Module) -> Reason | None:
    """Why a convolution module can't be replaced, whatever its forward does."""
    if isinstance(module, torch.jit.ScriptModule):
        return unsupported("TorchScript", "TorchScript, which is not entered")
    weight: Any = module.weight
    if isinstance(weight, UninitializedParameter):
        return unsupported("lazy", "lazy: it has no weight before its first call")
    if isinstance(module, VOLUMES):
        return unsupported("a 3-D convolution", VOLUME)
    return dtype_obstacle(weight)


def is_special(module: nn.Module) -> bool:
    """Whether a convolution module may compute something else than torch's own does."""
    replaced = "forward" in vars(module) or "_conv_forward" in vars(module)
    return type(module) not in IMAGES or replaced or any(hooks(module))


def foreign_hooks(module: nn.Module) -> Reason | None:
    """Why a module with hooks can't be replaced as a whole: they would be lost.

    Those of torch that compute its weight may go, as the weight that they compute is taken.
    """
    own = [
        hook
        for hook in module._forward_pre_hooks.values()
        if type(hook).__name__ in COMPUTE_WEIGHT
        or type(hook).__module__.startswith("torch.nn.utils.prune")
    ]
    count = sum(map(len, hooks(module)))
    if count == len(own):
        return None
    text = "it computes its weight and has hooks, which a new layer would lose; remove the hooks"
    return unsupported("it has hooks", text)
