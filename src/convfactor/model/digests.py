"""Digests that tell tensors apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(tensor: Tensor) -> str:
    """Digest of a tensor's values, shape and dtype."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors, whatever their order."""
    lines = (f"{name} {fingerprint(tensor)}\n" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_digest(model: nn.Module) -> str:
    """Digest of the kinds of a model's modules, and of the parameters and buffers they hold.

    Of tensors without plain values, such as lazy and quantized ones, only the names count.
    """
    kinds = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: tensor for name, tensor in held.items() if _is_plain(tensor)}
    return hashlib.sha256(f"{kinds} {sorted(held)} {digest(plain)}".encode()).hexdigest()


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds values in memory, each by itself."""
    known = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return known and not tensor.is_meta and not tensor.is_quantized
