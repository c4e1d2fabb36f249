"""All patches that a convolution reads, gathered by torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv.geometry import ConvGeometry


def every_patch(conv: nn.Conv2d, x: Tensor, margin=(0, 0)) -> Tensor:
    """All patches, (groups, count, in/groups * H * W), gathered by ``F.unfold``."""
    left, right, top, bottom = ConvGeometry.from_conv(conv).padding
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x.double(), (left, right, top, bottom), mode)
    rows, cols = (m * d for m, d in zip(margin, conv.dilation, strict=True))
    x = F.pad(x, (cols, cols, rows, rows))
    size = [k + 2 * m for k, m in zip(conv.kernel_size, margin, strict=True)]
    patches = F.unfold(x, size, conv.dilation, stride=conv.stride)
    return patches.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
