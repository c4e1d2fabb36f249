"""One scale of colours for signed values: blue below zero, orange above, zero in the middle.

Colour-blind people tell the two apart. Zero takes the colour of the page, and both ends differ from
it in lightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F

Colour: TypeAlias = tuple[int, int, int]

LEVELS = 16
LIGHT = ((8, 64, 129), (107, 167, 209), (244, 244, 241), (241, 155, 84), (146, 52, 3))
DARK = ((176, 219, 255), (47, 122, 184), (38, 43, 50), (190, 98, 22), (255, 208, 150))
# Laid thinly over a page of any colour, where nothing tells whether it is light or dark.
BELOW, ABOVE = DARK[1], DARK[3]


def level_name(level: int) -> str:
    """What a level from -LEVELS to LEVELS is called in a page."""
    return f"{'p' if level > 0 else 'n'}{abs(level)}" if level else "zero"


def ramp(anchors: Sequence[Colour]) -> dict[str, str]:
    """Colours of the levels by their names, between anchors at equal distances."""
    stops = torch.tensor(anchors, dtype=torch.float64).T[None]
    size = 2 * LEVELS + 1
    found = F.interpolate(stops, size=size, mode="linear", align_corners=True)[0].T.round().int()
    levels = range(-LEVELS, LEVELS + 1)
    return {
        level_name(level): hexadecimal(colour)
        for level, colour in zip(levels, found.tolist(), strict=True)
    }


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour as pages and figures write it."""
    return "#" + bytes(colour).hex()
