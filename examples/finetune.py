"""Train an optimized network further, on its own data and labels, and keep it in a folder.

A network with a 9x9 layer learns to sharpen pictures. It is made faster at a tolerance that is too
large for it, and then trained again for a moment: a rewritten model has ordinary parameters.

    python examples/finetune.py
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convfactor


def pictures(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random pictures (count, 1, size, size), blurred and sharp."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, size // 4, size // 4, generator=generator)
    sharp = F.interpolate(coarse, (size, size), mode="nearest")
    return F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False), sharp


def network(channels: int) -> nn.Sequential:
    """A layer of 9x9 and one of 5x5."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 9, padding=4), nn.ReLU(), nn.Conv2d(channels, 1, 5, padding=2)
    )


def error(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Mean squared error."""
    with torch.no_grad():
        return F.mse_loss(model(data[0]), data[1]).item()


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float) -> None:
    """Minimise the mean squared error with Adam, on 16 pictures at a time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = torch.randint(len(data[0]), (16,))
        loss = F.mse_loss(model(data[0][batch]), data[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Train, optimize, train further, save and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="side of the pictures, in fours")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=0.2)
    options = parser.parse_args()

    torch.manual_seed(0)
    data, unseen = (pictures(count, options.size, seed) for seed, count in ((0, 256), (1, 64)))
    model = network(options.channels)
    train(model, data, options.steps, 3e-3)
    fast, plan = convfactor.optimize(
        model, unseen[0][:8], options.tolerance, calibration=data[0][:64].split(8)
    )
    print(plan)
    table = Table(title="Mean squared error on unseen pictures")
    table.add_column("network")
    table.add_column("error", justify="right")
    table.add_row("original", f"{error(model, unseen):.6f}")
    table.add_row("optimized", f"{error(fast, unseen):.6f}")
    train(fast, data, options.steps, 1e-3)
    table.add_row("trained further", f"{error(fast, unseen):.6f}")
    Console().print(table)

    with tempfile.TemporaryDirectory() as folder:
        convfactor.save(fast, folder)
        loaded = convfactor.load(folder, network(options.channels))
    print(f"loaded into a fresh network: {error(loaded, unseen):.6f}")


if __name__ == "__main__":
    main()
