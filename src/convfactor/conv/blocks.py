"""The weight of a grouped convolution as one block per group of a dense one, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def block_diagonal(blocks: Tensor) -> Tensor:
    """Write blocks (batch, groups, out, in, ...) out as (batch, groups * out, groups * in, ...)."""
    groups = blocks.shape[1]
    if groups == 1:
        return blocks[:, 0]
    eye = torch.eye(groups, dtype=blocks.dtype, device=blocks.device)
    return torch.einsum("bgoi...,gh->bgohi...", blocks, eye).flatten(3, 4).flatten(1, 2)


def diagonal_blocks(dense: Tensor, groups: int) -> Tensor:
    """Read the blocks (batch, groups, out, in, ...) of (batch, groups * out, groups * in, ...)."""
    blocks: Tensor = dense.unflatten(2, (groups, -1)).unflatten(1, (groups, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)
