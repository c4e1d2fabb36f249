"""Models in a memory format."""

from __future__ import annotations

import torch
from torch import nn

from convfactor.conv.layer import CascadeConv2d


def channels_last(model: nn.Module) -> nn.Module:
    """Bring the weights of 2-D convolutions into channels_last; ``model.to`` refuses 3-D ones.

    For weights that read one channel, ``contiguous`` would leave the strides as they are, and
    torch the convolution in the slower format.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, CascadeConv2d):
            module.output_format = torch.channels_last  # as a convolution with such a weight gives
    return model
