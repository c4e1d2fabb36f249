"""Batch normalization behind a convolution, folded into its weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convfactor.conv.forms import Form
from convfactor.model.digests import digest
from convfactor.model.folding import Folded, untouched

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedNorm(Folded):
    """Stands where a batch normalization was that the layer before it does now."""


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
    return values.running_mean is not None and untouched(norm)


def with_scales(fingerprint: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest of a layer with what scales its output; that of the layer where nothing does."""
    if not tensors:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {digest(tensors)}".encode()).hexdigest()


def with_norm(fingerprint: str, norm: nn.Module) -> str:
    """Digest of a layer with what its normalization computes with."""
    values: Any = norm
    known = {name: value for name, value in norm.state_dict().items() if value.numel()}
    own = digest({**known, "eps": torch.tensor(values.eps)})
    return hashlib.sha256(f"{fingerprint} {own}".encode()).hexdigest()
