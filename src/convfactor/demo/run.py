"""The demo: optimize SRCNN, and show what that does to pictures and times."""

from __future__ import annotations

import sys
from concurrent.futures import Executor
from importlib.util import find_spec
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

import convfactor
from convfactor.demo import network, photographs
from convfactor.plans.tables import show
from convfactor.progress import Show
from convfactor.terminal import console, width

RIM = 6
DETAIL = (slice(24, 204), slice(150, 330))


def check_packages() -> None:
    """Refuse to run without the packages for the photographs and the picture.

    Raises:
        ImportError: One is missing.
    """
    packages = {"skimage": "scikit-image", "matplotlib": "matplotlib"}
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"the demo needs {' and '.join(missing)}, which is not installed: "
            "pip install 'convfactor[demo]'"
        )


def demo(
    output: Path, max_drop: float, executor: Executor | None = None, progress: Show = None
) -> None:
    """Optimize the demo's network on its training photographs and judge it on the others.

    The network may lose some PSNR on two of those with sharp edges, to which nothing is fitted.

    Prints the plan and the quality on the test photographs, and saves the plan, its report as a
    page, and a picture.

    Args:
        output: Folder for the plan, the report and the picture.
        max_drop: By how many dB the network may get worse.
        executor: Where to solve; None does so in this process.
        progress: How progress is shown, as for ``convfactor.optimize``.

    Raises:
        ImportError: The packages of the extra ``demo`` are missing.
    """
    model = network.load()
    testing = {name: photographs.crop(luma) for name, luma in photographs.testing().items()}
    inputs = {name: photographs.degrade(luma) for name, luma in testing.items()}
    example = inputs["astronaut"]
    training = {name: photographs.middle(luma) for name, luma in photographs.training().items()}
    judges = [training.pop(name) for name in photographs.JUDGES]

    def psnr(candidate: nn.Module) -> float:
        return photographs.mean_psnr(candidate, judges)

    fast, plan = convfactor.optimize(
        model,
        example,
        evaluate=psnr,
        max_drop=max_drop,
        calibration=[photographs.degrade(picture) for picture in training.values()],
        executor=executor,
        progress=progress,
    )
    plan.save(output)
    plan.to_html(output / "report.html", model)
    show(plan)
    print()
    with torch.no_grad():
        results = {
            name: (x, model(x).clamp(0, 1), fast(x).clamp(0, 1)) for name, x in inputs.items()
        }
    console(sys.stdout, width()).print(_quality(testing, results))
    picture = output / "comparison.png"
    _draw(testing["astronaut"], results["astronaut"], picture)
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, fast)]
    print(f"parameters: {parameters[0]} -> {parameters[1]}")
    print(f"plan, report and picture: {output}")


def _quality(
    testing: dict[str, Tensor], results: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> Table:
    """Table of PSNR on the test photographs."""
    table = Table(
        title="PSNR (dB) on photographs that neither training nor calibration has seen",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("photograph")
    for title in ("bicubic", "original", "optimized", "change", "change, rim included"):
        table.add_column(title, justify="right")
    for name, true in testing.items():
        scores = [photographs.psnr(y, true, RIM) for y in results[name]]
        whole = [photographs.psnr(y, true) for y in results[name]]
        table.add_row(
            name,
            *(f"{score:.2f}" for score in scores),
            f"{scores[2] - scores[1]:+.3f}",
            f"{whole[2] - whole[1]:+.3f}",
        )
    return table


def _draw(true: Tensor, results: tuple[Tensor, Tensor, Tensor], path: Path) -> None:
    """Save a detail of the input, both outputs and their difference."""
    from matplotlib.figure import Figure

    from convfactor.plots import SIGNED

    degraded, original, optimized = (x[0, 0][DETAIL].numpy() for x in results)
    scores = [photographs.psnr(y, true, RIM) for y in results]
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    axes = figure.subplots(1, 4)
    titles = (
        f"input (bicubic), {scores[0]:.2f} dB",
        f"original output, {scores[1]:.2f} dB",
        f"optimized output, {scores[2]:.2f} dB",
    )
    for axis, title, image in zip(axes, titles, (degraded, original, optimized), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
    limit = 0.1
    shown = axes[3].imshow(optimized - original, cmap=SIGNED, vmin=-limit, vmax=limit)
    axes[3].set_title("optimized - original")
    figure.colorbar(shown, ax=axes[3], shrink=0.85)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)
