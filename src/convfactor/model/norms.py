"""Batch normalization behind a convolution: found while the model runs, folded into its weight."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convfactor.conv.forms import Form
from convfactor.model.digests import digest

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedNorm(nn.Identity):
    """Stands where a batch normalization was that the layer before it does now."""

    @classmethod
    def of(cls, norm: nn.Module) -> FoldedNorm:
        """Make what takes the place of a normalization, in its mode."""
        return cls().train(norm.training)


@dataclass(frozen=True, eq=False)
class Affine:
    """What a batch normalization does in evaluation mode, for each channel.

    Attributes:
        scale: Float64 (C,).
        shift: Float64 (C,).
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: nn.Module) -> Affine:
        """Read a normalization with running statistics."""
        values: Any = norm
        scale = (values.running_var.detach().double() + values.eps).rsqrt()
        if values.weight is not None:
            scale = scale * values.weight.detach().double()
        shift = -scale * values.running_mean.detach().double()
        if values.bias is not None:
            shift = shift + values.bias.detach().double()
        return cls(scale, shift)

    def folded(
        self, weight: Tensor, bias: Tensor | None, form: Form
    ) -> tuple[Tensor, Tensor | None]:
        """Fold it into a plain convolution.

        Args:
            weight: (C_out, C_in/groups, kH, kW), of the plain convolution that a layer is.
            bias: Its bias, or None.
            form: How the layer is that one.
        """
        scale, shift = (value.repeat_interleave(form.phases) for value in (self.scale, self.shift))
        total = shift if bias is None else shift + scale * bias.detach().double()
        whole = weight.detach().double() * scale[:, None, None, None]
        like = nn.Parameter(whole.to(weight.dtype), requires_grad=weight.requires_grad)
        return like, nn.Parameter(total.to(weight.dtype), requires_grad=weight.requires_grad)


def can_fold(norm: nn.Module) -> bool:
    """Whether a module is a batch normalization that always does the same."""
    if type(norm) not in NORMS or norm.training:
        return False
    values: Any = norm
    hooks = norm._forward_hooks or norm._forward_pre_hooks
    return values.running_mean is not None and not hooks


def with_norm(fingerprint: str, norm: nn.Module) -> str:
    """Digest of a layer with what its normalization computes with."""
    values: Any = norm
    known = {name: value for name, value in norm.state_dict().items() if value.numel()}
    own = digest({**known, "eps": torch.tensor(values.eps)})
    return hashlib.sha256(f"{fingerprint} {own}".encode()).hexdigest()


@dataclass
class _Output:
    """What one call of a convolution gave."""

    conv: nn.Module
    tensor: weakref.ReferenceType[Tensor]
    norm: nn.Module | None = None
    elsewhere: bool = False


@dataclass
class Followers:
    """Which convolutions are always followed by a normalization of their own, and by nothing else.

    Attributes:
        convs: The modules to look at.
    """

    convs: frozenset[nn.Module]
    _outputs: dict[int, _Output] = field(default_factory=dict)
    _all: list[_Output] = field(default_factory=list)
    _calls: dict[nn.Module, int] = field(default_factory=dict)

    def enters(self, module: nn.Module, args: Iterable[object]) -> None:
        """A module is called."""
        if type(module) not in NORMS:
            return
        self._calls[module] = self._calls.get(module, 0) + 1
        for value in args:
            output = self._known(value)
            if output is not None:
                output.elsewhere |= output.norm is not None
                output.norm = module

    def leaves(self, module: nn.Module, output: object) -> None:
        """A module has returned."""
        if module in self.convs:
            given = output if isinstance(output, Tensor) else torch.empty(0)
            known = _Output(module, weakref.ref(given))
            self._all.append(known)
            self._outputs[id(output)] = known

    def reads(self, value: object, inside: nn.Module) -> None:
        """A function of torch is given a value."""
        output = self._known(value)
        if output is not None and output.norm is not inside:
            output.elsewhere = True

    def found(self) -> dict[nn.Module, nn.Module]:
        """The convolutions with their normalizations, once the model has run.

        An output that is still alive has been kept by somebody, who would miss the normalization.
        """
        norms: dict[nn.Module, set[nn.Module | None]] = {}
        calls: dict[nn.Module, int] = {}
        for output in self._all:
            alone = not output.elsewhere and output.tensor() is None
            norm = output.norm if alone else None
            norms.setdefault(output.conv, set()).add(norm)
            calls[output.conv] = calls.get(output.conv, 0) + 1
        pairs = {conv: own.pop() for conv, own in norms.items() if len(own) == 1}
        return {
            conv: norm
            for conv, norm in pairs.items()
            if norm is not None and can_fold(norm) and self._calls[norm] == calls[conv]
        }

    def _known(self, value: object) -> _Output | None:
        """The output that a value is; memory is used again, so that its number does not tell."""
        output = self._outputs.get(id(value))
        return output if output is not None and output.tensor() is value else None
