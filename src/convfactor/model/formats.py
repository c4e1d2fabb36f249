"""Models in a memory format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from convfactor.conv.formats import MemoryFormat
from convfactor.conv.layer import CascadeConv2d
from convfactor.model.copies import copied
from convfactor.model.inputs import ModelInputs, Workload

Given = TypeVar("Given", ModelInputs, Workload)


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


def in_format(
    models: Sequence[nn.Module], inputs: Given, memory_format: MemoryFormat
) -> tuple[list[nn.Module], Given]:
    """Copies of models, and their inputs, in a memory format; the same where it is as given.

    Args:
        models: The models; they are left as they were.
        inputs: What they are called with.
        memory_format: The format.
    """
    if memory_format == "as given":
        return list(models), inputs

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    return [channels_last(copied(model)) for model in models], inputs.map(convert)
