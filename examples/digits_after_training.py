"""A step after training: make a digit classifier with a 7x7 layer faster, and check its accuracy.

The network is trained on scikit-learn's handwritten digits (8x8 pixels, enlarged). It may lose 1 %
of its accuracy on validation pictures, and is then judged on test pictures that nothing has seen.

    python examples/digits_after_training.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import convfactor

VALIDATION = 400


def digits(size: int) -> list[Tensor]:
    """Pictures (N, 1, size, size) to train and to test on, then the labels of both."""
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    pictures = F.interpolate(pictures, (size, size), mode="bilinear")
    split = train_test_split(
        pictures, torch.tensor(data.target), test_size=0.25, random_state=0, stratify=data.target
    )
    return list(split)


def network(size: int, channels: int) -> nn.Sequential:
    """One layer of 3x3, one of 7x7, and a classifier; most of the time goes into the 7x7."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 7, padding=3), nn.ReLU(), nn.MaxPool2d(size // 4),
        nn.Flatten(), nn.Linear(2 * channels * 4 * 4, 10),
    )  # fmt: skip


def train(model: nn.Module, pictures: Tensor, labels: Tensor, epochs: int) -> None:
    """Minimise the cross-entropy with Adam, in batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(pictures)).split(64):
            loss = F.cross_entropy(model(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return (model(pictures).argmax(1) == labels).double().mean().item()


def main() -> None:
    """Train, optimize, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=16, help="side of the pictures, a multiple of 4"
    )
    parser.add_argument("--channels", type=int, default=16, help="of the first layer")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the accuracy")
    options = parser.parse_args()

    torch.manual_seed(0)
    pictures, unseen, labels, true = digits(options.size)
    model = network(options.size, options.channels)
    train(model, pictures[VALIDATION:], labels[VALIDATION:], options.epochs)
    model.eval()

    def validate(candidate: nn.Module) -> float:
        return accuracy(candidate, pictures[:VALIDATION], labels[:VALIDATION])

    fast, plan = convfactor.optimize(
        model,
        unseen,
        evaluate=validate,
        max_drop=options.max_drop,
        calibration=pictures[VALIDATION:][:768].split(64),
    )
    print(plan)

    table = Table(title=f"{len(true)} test pictures")
    for title in ("", "accuracy", "parameters"):
        table.add_column(title, justify="right")
    answers = []
    for name, net in (("original", model), ("optimized", fast)):
        with torch.no_grad():
            answers.append(net(unseen).argmax(1))
        parameters = sum(p.numel() for p in net.parameters())
        table.add_row(name, f"{accuracy(net, unseen, true):.2%}", str(parameters))
    Console().print(table)
    print(f"answers that changed: {int((answers[0] != answers[1]).sum())}")


if __name__ == "__main__":
    main()
