"""Digests that tell tensors apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensor: Tensor) -> str:
    """Digest of a tensor's values, shape and dtype."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors, whatever their order."""
    lines = (f"{name} {fingerprint(tensor)}\n" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
