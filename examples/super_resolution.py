"""Super-resolution with several budgets: what each brings in speed and costs in quality.

SRCNN may get worse by some dB on two of the photographs it was trained on, to which nothing is
fitted here, and is judged on two that it has never seen. This takes two or three minutes per
budget, and ends in a table and a picture of the trade-off.

    python examples/super_resolution.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import convfactor
from convfactor.demo import network, photographs

RIM = 6  # pixels at the edge that PSNR leaves out, as is usual for SRCNN


def draw(points: list[tuple[float, float, float]], path: Path) -> None:
    """Save the speed-up against the loss of quality, each point labelled with its budget."""
    budgets, speedups, losses = zip(*points, strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot((1, *speedups), (0, *losses), "o", color="#0072B2")
    axes.annotate("original", (1, 0), (-8, -15), textcoords="offset points")
    for budget, *point in zip(budgets, speedups, losses, strict=True):
        axes.annotate(f"{budget:g} dB", point, (6, 6), textcoords="offset points")
    axes.set(xlabel="speed-up of the whole network", ylabel="change of PSNR (dB)")
    axes.set_title("SRCNN with several budgets")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Optimize with each budget, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--max-drops", type=float, nargs="+", default=[0.05, 0.1, 0.3], help="budgets in dB"
    )
    parser.add_argument("--layers", nargs="+", default=["conv1", "conv2", "conv3"], help="to try")
    parser.add_argument("--size", type=int, default=384, help="longest side of the pictures")
    parser.add_argument("--output", type=Path, default=Path("super_resolution.png"))
    options = parser.parse_args()

    model = network.load()
    training, testing = (
        {name: photographs.middle(picture, options.size) for name, picture in pictures.items()}
        for pictures in (photographs.training(), photographs.testing())
    )
    judges = [training.pop(name) for name in photographs.JUDGES]
    unseen = list(testing.values())
    calibration = [photographs.degrade(picture) for picture in training.values()]
    example = photographs.degrade(unseen[0])
    original = photographs.mean_psnr(model, unseen, RIM)

    table = Table(title=f"PSNR on {len(unseen)} unseen photographs; original {original:.2f} dB")
    for title in ("budget", "replaced", "output error", "ms", "speed-up", "PSNR change"):
        table.add_column(title, justify="right")
    points = []
    for budget in sorted(options.max_drops):
        fast, plan = convfactor.optimize(
            model, example,
            evaluate=lambda net: photographs.mean_psnr(net, judges, RIM), max_drop=budget,
            calibration=calibration,
            select=lambda name, module: name in options.layers,
        )  # fmt: skip
        layers = f"{len(plan.replaced)} of {len(plan.entries)}"
        if plan.whole is None or plan.whole.before is None or plan.whole.after is None:
            table.add_row(f"{budget:g} dB", layers, "-", "-", "-", "-")  # nothing was worth it
            continue
        before, after = plan.whole.before.median, plan.whole.after.median
        change = photographs.mean_psnr(fast, unseen, RIM) - original
        points.append((budget, before / after, change))
        table.add_row(
            f"{budget:g} dB", layers, f"{plan.whole.errors[0]:.2%}",
            f"{1e3 * before:.1f} -> {1e3 * after:.1f}", f"{before / after:.2f}x",
            f"{change:+.3f} dB",
        )  # fmt: skip
    Console().print(table)
    if points:
        draw(points, options.output)
        print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
