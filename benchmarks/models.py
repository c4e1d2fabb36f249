"""Optimize the real networks that CONVFACTOR_CASES points to, and print a table of what came out.

Every network is optimized with a tolerance for each layer, with a budget for the model, and with
the same and refinement. Times are those of the whole model, in this process, interleaved with the
original in the better of its two memory formats; errors are on photographs that no fit has seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import skimage.data
import skimage.io
import torch
from torch import Tensor, nn

import convfactor
from convfactor.demo import photographs
from convfactor.latency import Timing
from convfactor.model.agreement import output_errors

COLOUR = ("chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
          "ihc.png", "motorcycle_left.png", "color.png", "astronaut.png")  # fmt: skip


WAYS = ("tolerance", "budget", "refined")


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        make: Makes it.
        batches: Calibration data.
        tolerance: For each layer.
        budget: For the whole model.
        unseen: Inputs that no fit has seen, for the error of the output.
        layers: The layers to plan; None for all.
    """

    make: Callable[[], nn.Module]
    batches: list[Tensor]
    tolerance: float
    budget: dict[str, Any]
    unseen: list[Tensor]
    layers: tuple[str, ...] | None = None


def main() -> None:
    """Run the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names; none runs all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS,
        help="a tolerance for each layer, a budget for the model, the same with refinement",
    )  # fmt: skip
    parser.add_argument("--plans", action="store_true", help="print the plans as well")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    options = parser.parse_args()
    folder = os.environ.get("CONVFACTOR_CASES")
    if not folder:
        sys.exit("set CONVFACTOR_CASES to the folder of the networks")
    known = cases(Path(folder))
    device = torch.device(options.device)
    lines = [
        "| network | asked | before | after | | output error, unseen | quality | planned |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    print(*lines, sep="\n")
    images = Path(folder) / "images"
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as executor:
        for name in options.cases or known:
            for way in options.ways:
                row, plan = _run(name, known[name], way, device, images, executor)
                print(row, flush=True)
                lines.append(row)
                if options.plans:
                    print(f"\n{plan}\n", flush=True)
    if options.write:
        versions = f"({pages.machine(device)}, torch {torch.__version__})"
        pages.write("models", "\n".join([versions, "", *lines]))


def _run(
    name: str, case: Case, way: str, device: torch.device, images: Path, executor: Executor
) -> tuple[str, convfactor.Plan]:
    """Optimize a network in one way: a row of the table, and the plan."""
    model = case.make().to(device)
    batches = [x.to(device) for x in case.batches]
    asked: dict[str, Any] = {"tolerance": case.tolerance}
    if way != "tolerance":
        asked = {**case.budget, "refine": way == "refined"}
    start = time.perf_counter()
    fast, plan = convfactor.optimize(
        model,
        batches[0],
        calibration=batches,
        select=lambda layer, _: case.layers is None or layer in case.layers,
        progress=False,
        executor=executor,
        **asked,
    )
    seconds = time.perf_counter() - start
    whole = plan.whole
    before = after = speed = "-"
    if whole is not None and whole.before is not None and whole.after is not None:
        before, after = _spread(whole.before), _spread(whole.after)
        speed = f"{whole.before.median / whole.after.median:.2f}x"
    with torch.no_grad():
        pairs = [(model(x.to(device)), fast(x.to(device))) for x in case.unseen]
    error = max(output_errors(pairs), default=0.0)
    quality = _quality(images, model, fast, device) if name.startswith("srcnn") else ""
    given = ", ".join(
        f"{k}={v if isinstance(v, (int, float)) else v.__name__}" for k, v in asked.items()
    )
    cells = (name, given, before, after, speed, f"{error:.2%}", quality, f"{seconds:.0f} s")
    return f"| {' | '.join(cells)} |", plan


def _spread(timing: Timing) -> str:
    """Milliseconds with their quartiles."""
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} ms [{low:.3g}..{high:.3g}]"


def cases(root: Path) -> dict[str, Case]:
    """The networks in a folder, with their calibration data and budgets."""
    networks, images = _load(root / "networks.py"), root / "images"
    training = {name: photographs.middle(luma) for name, luma in photographs.training().items()}
    judges = [training.pop(name) for name in photographs.JUDGES]
    luma = [photographs.degrade(picture) for picture in training.values()]

    def psnr(model: nn.Module) -> float:
        return photographs.mean_psnr(model, judges)

    folder = Path(skimage.data.__file__).parent
    colour = [_colour(folder / name) for name in COLOUR]
    unseen = [_colour(path) for path in sorted(images.glob("*.png"))]
    faces, others = (
        [x[..., [2, 1, 0], :256, :256] - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
         for x in pictures] for pictures in (colour, unseen)
    )  # fmt: skip
    quality = {"evaluate": psnr, "max_drop": 0.1}
    testing = [photographs.degrade(picture) for picture in photographs.testing().values()]
    output = {"model_tolerance": 0.05}
    return {
        "srcnn": Case(networks.srcnn, luma, 0.06, quality, testing),
        "srcnn-conv2": Case(networks.srcnn, luma, 0.06, quality, testing, ("conv2",)),
        "style": Case(networks.style_transfer, colour, 0.05, output, unseen),
        "style-last": Case(networks.style_transfer, colour, 0.05, output, unseen, ("last",)),
        "faceboxes": Case(networks.faceboxes, faces, 0.05, output, others),
    }


def _colour(path: Path) -> Tensor:
    """A crop of a photograph, RGB 0..255."""
    pixels = torch.from_numpy(skimage.io.imread(path))
    return pixels[..., :3].permute(2, 0, 1)[None, :, :384, :384].float().contiguous()


def _quality(folder: Path, model: nn.Module, fast: nn.Module, device: torch.device) -> str:
    """Change of the PSNR on the shared pictures, without their rim and with it."""
    weights = torch.tensor(photographs.LUMA, dtype=torch.float64)
    found = []
    for path in sorted(folder.glob("*.png")):
        pixels = torch.from_numpy(skimage.io.imread(path)).double() / 255
        luma = pixels[..., :3] @ weights if pixels.ndim == 3 else pixels
        true = photographs.crop(luma.float()[None, None]).to(device)
        x = photographs.degrade(true)
        with torch.no_grad():
            outputs = [net(x).clamp(0, 1) for net in (model, fast)]
        inner, whole = (
            photographs.psnr(outputs[1], true, rim) - photographs.psnr(outputs[0], true, rim)
            for rim in (6, 0)
        )
        found.append(f"{path.stem.removesuffix('_GT')} {inner:+.3f} / {whole:+.3f} dB")
    return ", ".join(found)


def _load(path: Path) -> ModuleType:
    """Import a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
