"""Denoise a photograph by shrinking its dual-tree wavelet coefficients, then make that faster.

The model is written with pytorch_wavelets; `convfactor.optimize` swaps both transforms for equal,
faster ones, so there is nothing to calibrate.

    python examples/wavelet_denoiser.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import convfactor
from convfactor.demo import photographs

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


def draw(panels: dict[str, Tensor], path: Path) -> None:
    """Save pictures (1, 1, H, W) side by side."""
    figure = Figure(figsize=(12, 4.3), layout="constrained")
    for axis, (title, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Denoise, optimize, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=0.1, help="noise, for a range of 0..1")
    parser.add_argument("--size", type=int, default=512, help="longest side of the photograph")
    parser.add_argument("--output", type=Path, default=Path("wavelet_denoiser.png"))
    options = parser.parse_args()

    clean = photographs.testing()["camera"][..., : options.size, : options.size]
    generator = torch.Generator().manual_seed(0)
    noisy = clean + options.sigma * torch.randn(clean.shape, generator=generator)
    model = Denoiser(sigma=options.sigma).eval()
    fast, plan = convfactor.optimize(model, noisy)
    print(plan)

    with torch.no_grad():
        before, after = model(noisy), fast(noisy)
    difference = ((after - before).abs().max() / before.abs().max()).item()
    print(f"largest difference between the two: {difference:.1e}")
    results = {"noisy": noisy, "denoised": before, "optimized": after}
    titles = {name: f"{name} {photographs.psnr(x, clean):.2f} dB" for name, x in results.items()}
    print(", ".join(titles.values()))
    draw({titles[name]: image for name, image in results.items()}, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
