"""Zeros in front of a convolution, which the layer that takes its place adds by itself."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from convfactor.model.folding import Folded, untouched

PADS = (nn.ZeroPad2d, nn.ConstantPad2d)
Pads: TypeAlias = tuple[int, int, int, int]


class FoldedPad(Folded):
    """Stands where zeros were padded that the layer behind it adds now."""


def zeros_of(module: nn.Module) -> Pads | None:
    """What a module adds that does nothing but pad images with zeros (left, right, top, bottom)."""
    if not isinstance(module, PADS) or type(module) not in PADS or module.value != 0:
        return None
    left, right, top, bottom = module.padding
    if not untouched(module) or min(left, right, top, bottom) < 0:
        return None
    return left, right, top, bottom
