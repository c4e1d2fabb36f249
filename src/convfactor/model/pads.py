"""Zeros in front of a convolution, which the layer that takes its place adds by itself."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

PADS = (nn.ZeroPad2d, nn.ConstantPad2d)
Pads: TypeAlias = tuple[int, int, int, int]


class FoldedPad(nn.Identity):
    """Stands where zeros were padded that the layer behind it adds now."""

    @classmethod
    def of(cls, pad: nn.Module) -> FoldedPad:
        """Make what takes the place of a padding, in its mode."""
        return cls().train(pad.training)


def zeros_of(module: nn.Module) -> Pads | None:
    """What a module adds that does nothing but pad images with zeros (left, right, top, bottom)."""
    if not isinstance(module, PADS) or type(module) not in PADS or module.value != 0:
        return None
    left, right, top, bottom = module.padding
    hooks = module._forward_hooks or module._forward_pre_hooks
    if hooks or min(left, right, top, bottom) < 0:
        return None
    return left, right, top, bottom
