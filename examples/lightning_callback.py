"""The last step of a training with Lightning: the network that was trained is made faster.

A denoiser with a 9x9 layer is trained on noisy photographs; the callback then optimizes the network
in it, at most 5 % off at its output, and ``trainer.test`` runs what came of it.

    python examples/lightning_callback.py
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from convfactor.lightning import OptimizeAfterFit

NOISE = 0.1


def pictures(count: int, size: int, seed: int) -> TensorDataset:
    """Smooth random pictures (count, 1, size, size), noisy and clean."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, size // 8, size // 8, generator=generator)
    clean = F.interpolate(coarse, (size, size), mode="bicubic")
    noise = NOISE * torch.randn(clean.shape, generator=generator)
    return TensorDataset(clean + noise, clean)


class Denoiser(pl.LightningModule):
    """Three layers that estimate the noise."""

    def __init__(self, channels: int) -> None:
        """Make the network."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 9, padding=4), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 1, 5, padding=2),
        )  # fmt: skip

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean squared error of the estimate."""
        noisy, clean = batch
        return F.mse_loss(noisy - self.net(noisy), clean)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Train on a batch."""
        return self.loss(batch)

    def test_step(self, batch: list[Tensor], index: int) -> None:
        """Log the error on a batch."""
        self.log("mse", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Minimise with Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main() -> None:
    """Train, which optimizes at its end, and test before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, in eights")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--count", type=int, default=256, help="pictures to train on")
    parser.add_argument("--model-tolerance", type=float, default=0.05)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")  # advice on workers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    pl.seed_everything(0, verbose=False)
    train = pictures(options.count, options.size, 0)
    test = DataLoader(pictures(64, options.size, 1), batch_size=32)
    callback = OptimizeAfterFit(
        "net",
        example_inputs=train[:1][0],
        model_tolerance=options.model_tolerance,
        calibration=train[: min(options.count, 64)][0].split(8),
        refine=False,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[callback],
        enable_model_summary=False,
        accelerator="cpu",
        **quiet,
    )
    model = Denoiser(options.channels)
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True))
    print(callback.plan)
    (result,) = trainer.test(model, test, verbose=False)
    print(
        f"noise {NOISE**2:.5f}, mean squared error with the optimized network {result['mse']:.5f}"
    )


if __name__ == "__main__":
    main()
