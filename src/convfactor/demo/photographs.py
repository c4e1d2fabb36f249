"""Photographs that scikit-image ships in its wheel, as luma, and the degradation SRCNN undoes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAINING = (
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
TESTING = ("astronaut.png", "camera.png")
# Two of the first with sharp edges, so that PSNR reacts early: what is to be judged by them should
# not be calibrated on them.
JUDGES = ("coins", "text")

# Rec. ITU-R BT.601: luma of gamma-coded R, G, B, here at full range (0..255 to 0..1).
LUMA = (0.299, 0.587, 0.114)


def training() -> dict[str, Tensor]:
    """Return the photographs to train and calibrate on: name to luma (1, 1, H, W), float32.

    Raises:
        ImportError: scikit-image is not installed.
    """
    return _read(TRAINING)


def testing() -> dict[str, Tensor]:
    """Return astronaut and camera, which no training has seen: name to luma (1, 1, H, W), float32.

    Raises:
        ImportError: scikit-image is not installed.
    """
    return _read(TESTING)


def crop(luma: Tensor, scale: int = 3) -> Tensor:
    """Cut rows and columns at the end so that ``scale`` divides both sides of (N, C, H, W)."""
    height, width = luma.shape[-2:]
    return luma[..., : height - height % scale, : width - width % scale]


def middle(luma: Tensor, side: int = 384) -> Tensor:
    """Cut at most side x side pixels out of the middle of (N, C, H, W), as ``crop`` leaves them."""
    top, left = (max(0, (size - side) // 2) for size in luma.shape[-2:])
    return crop(luma[..., top : top + side, left : left + side])


def degrade(luma: Tensor, scale: int = 3) -> Tensor:
    """Lose detail as a small picture does: downscale by ``scale`` and upscale again, bicubically.

    Args:
        luma: (N, C, H, W) in [0, 1], both sides at least ``scale``.
        scale: the integer factor between the large and the small picture.

    Returns:
        The blurred picture in [0, 1], of the shape of ``crop(luma, scale)``.

    Raises:
        ValueError: a side is shorter than ``scale``.
    """
    whole = crop(luma, scale)
    height, width = whole.shape[-2:]
    if not height or not width:
        raise ValueError(
            f"luma: sides must be at least scale = {scale} pixels, got shape {tuple(luma.shape)}"
        )
    small = F.interpolate(whole, (height // scale, width // scale), mode="bicubic", antialias=True)
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


def psnr(a: Tensor, b: Tensor, rim: int = 0) -> float:
    """Return the peak signal-to-noise ratio in dB of two pictures with peak 1.

    Args:
        a: (N, C, H, W) in [0, 1]; not clamped or rounded here.
        b: the same shape.
        rim: how many pixels to leave out on each of the four sides.

    Raises:
        ValueError: the shapes differ, or the rim leaves nothing.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a, b: shapes must be equal, got {tuple(a.shape)} and {tuple(b.shape)}; "
            "crop() cuts a picture to the size degrade() returns"
        )
    height, width = a.shape[-2:]
    if not 0 <= 2 * rim < min(height, width):
        raise ValueError(
            f"rim: must be at least 0 and under half of the shorter side, "
            f"got {rim} for {height}x{width}"
        )
    inner = (..., slice(rim, height - rim), slice(rim, width - rim))
    error = (a[inner].double() - b[inner].double()).square().mean()
    return float(-10 * torch.log10(error))


def mean_psnr(network: nn.Module, pictures: Sequence[Tensor], rim: int = 0) -> float:
    """Return the mean PSNR in dB of what a network makes of degraded pictures.

    Args:
        network: Sharpens (N, 1, H, W) on the device of its parameters.
        pictures: What it should give, each (N, 1, H, W) in [0, 1].
        rim: how many pixels to leave out on each of the four sides.
    """
    device = next(network.parameters()).device
    with torch.no_grad():
        scores = [
            psnr(network(degrade(picture).to(device)).clamp(0, 1), picture.to(device), rim)
            for picture in pictures
        ]
    return sum(scores) / len(scores)


def _read(files: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        import skimage.data
        import skimage.io
    except ImportError as error:
        raise ImportError(
            "the demo's photographs come with scikit-image, which is not installed: "
            "pip install 'convfactor[demo]'"
        ) from error
    # Reading the files, not calling skimage.data.<name>(), rules out a download.
    folder = Path(skimage.data.__file__).parent
    return {Path(file).stem: _luma(skimage.io.imread(folder / file)) for file in files}


def _luma(pixels: object) -> Tensor:
    values = torch.as_tensor(pixels, dtype=torch.float64) / 255
    if values.ndim == 3:
        values = values @ torch.tensor(LUMA, dtype=torch.float64)
    return values.float()[None, None]
