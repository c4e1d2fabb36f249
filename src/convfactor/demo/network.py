"""SRCNN 9-5-5, the demo's super-resolution network, with weights trained for this project."""

from __future__ import annotations

from importlib import resources

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "srcnn_x3.safetensors"


class SRCNN(nn.Module):
    """Three convolutions of 9x9, 5x5 and 5x5 that sharpen a bicubic upscaling by 3.

    Source: Dong, Loy, He and Tang, "Image Super-Resolution Using Deep Convolutional
    Networks", IEEE TPAMI 38(2), 2016, the 9-5-5 variant on luma, here with zero padding.
    """

    def __init__(self) -> None:
        """Build the layers with torch's default initialisation."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 9, padding=4)
        self.conv2 = nn.Conv2d(64, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 1, 5, padding=2)

    def forward(self, luma: Tensor) -> Tensor:
        """Sharpen ``luma``.

        Args:
            luma: (N, 1, H, W), upscaled bicubically by 3, in [0, 1].

        Returns:
            The estimate of the original, (N, 1, H, W), not clamped.
        """
        hidden: Tensor = F.relu(self.conv2(F.relu(self.conv1(luma))))
        output: Tensor = self.conv3(hidden)
        return output


def load() -> SRCNN:
    """Return the trained network (float32, CPU, eval mode) from the package's own weights.

    ``examples/train_srcnn.py`` made the weights.
    """
    # Built without storage: the default initialisation would advance the caller's random state.
    with torch.device("meta"):
        network = SRCNN()
    weights = resources.files(__package__).joinpath(WEIGHTS).read_bytes()
    network.load_state_dict(safetensors.torch.load(weights), assign=True)
    return network.eval()
