"""Denoise a photograph by shrinking its dual-tree wavelet coefficients, then make that faster.

The model is written with pytorch_wavelets; `convfactor.optimize` swaps the inverse transform.

    python examples/wavelet_denoiser.py
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor, nn

import convfactor
from convfactor.demo import photographs
from convfactor.latency import compare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pytorch_wavelets 1.3.0 imports pkg_resources
    from pytorch_wavelets import DTCWTForward, DTCWTInverse


class Denoiser(nn.Module):
    """Soft shrinkage of the magnitudes; the phases stay, so small shifts hardly matter.

    Args:
        levels: Number of wavelet levels.
        sigma: Standard deviation of the noise.
    """

    def __init__(self, levels: int = 3, sigma: float = 0.1) -> None:
        """Build the transforms; each level has its own threshold."""
        super().__init__()
        self.analysis = DTCWTForward(biort="near_sym_b", qshift="qshift_b", J=levels)
        self.synthesis = DTCWTInverse(biort="near_sym_b", qshift="qshift_b")
        self.thresholds = nn.Parameter(torch.full((levels,), 1.5 * sigma))

    def forward(self, image: Tensor) -> Tensor:
        """Denoise images (N, C, H, W)."""
        low, highs = self.analysis(image)
        shrunk = []
        for bands, threshold in zip(highs, self.thresholds, strict=True):
            magnitude = bands.square().sum(-1, keepdim=True).sqrt()
            gain = torch.relu(magnitude - threshold) / magnitude.clamp_min(1e-9)
            shrunk.append(bands * gain)
        restored: Tensor = self.synthesis((low, shrunk))
        return restored


def main() -> None:
    """Denoise, optimize, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=0.1, help="noise, for a range of 0..1")
    options = parser.parse_args()
    clean = photographs.testing()["camera"]
    generator = torch.Generator().manual_seed(0)
    noisy = clean + options.sigma * torch.randn(clean.shape, generator=generator)
    model = Denoiser(sigma=options.sigma).eval()
    fast, plan = convfactor.optimize(model, noisy)
    print(plan)
    with torch.no_grad():
        before, after = model(noisy), fast(noisy)
    difference = ((after - before).abs().max() / before.abs().max()).item()
    old, new = compare(
        [lambda: model(noisy), lambda: fast(noisy)], torch.device("cpu"), seconds=3.0
    )
    print(f"PSNR noisy {photographs.psnr(noisy, clean):.2f} dB, "
          f"denoised {photographs.psnr(before, clean):.2f} dB")  # fmt: skip
    print(f"{1e3 * old.median:.1f} ms -> {1e3 * new.median:.1f} ms "
          f"({old.median / new.median:.2f}x), largest difference {difference:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
