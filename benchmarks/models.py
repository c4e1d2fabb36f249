"""Optimize the real networks that CONVFACTOR_CASES points to, and print the plans.

Every figure is measured in this process, interleaved with the original: per layer against the
better of its two memory formats, and for the whole model. Errors are on photographs that the fit
has not seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import skimage.data
import skimage.io
import torch
from torch import Tensor, nn

import convfactor
from convfactor.demo import photographs

PICTURES = ("chelsea", "coffee", "coins", "hubble_deep_field", "ihc", "moon", "motorcycle_left",
            "retina", "rocket")  # fmt: skip
COLOUR = ("chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
          "ihc.png", "motorcycle_left.png", "color.png", "astronaut.png")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run of the benchmark."""

    make: Callable[[], nn.Module]
    batches: list[Tensor]
    tolerance: float
    layers: tuple[str, ...] | None = None


def main() -> None:
    """Run the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names; none runs all")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    folder = os.environ.get("CONVFACTOR_CASES")
    if not folder:
        sys.exit("set CONVFACTOR_CASES to the folder of the networks")
    networks = _load(Path(folder) / "networks.py")
    device = torch.device(options.device)
    cases = _cases(networks)
    for name in options.cases or cases:
        case = cases[name]
        model = case.make().to(device)
        batches = [x.to(device) for x in case.batches]
        start = time.perf_counter()
        fast, plan = convfactor.optimize(
            model,
            batches[0],
            case.tolerance,
            calibration=batches,
            select=lambda layer, _: case.layers is None or layer in case.layers,  # noqa: B023
        )
        print(f"\n{name}: planned and compared in {time.perf_counter() - start:.0f} s")
        print(plan)
        if name.startswith("srcnn"):
            _quality(Path(folder) / "images", model, fast, device)


def _cases(networks: ModuleType) -> dict[str, Case]:
    """Networks with their calibration data and tolerances."""
    training = photographs.training()
    luma = [photographs.degrade(training[name][..., :300, :300]) for name in PICTURES]
    colour = [_colour(name) for name in COLOUR]
    faces = [x[..., [2, 1, 0], :, :] - torch.tensor([104.0, 117.0, 123.0])[:, None, None] for x in
             (x[:, :, :256, :256] for x in colour)]  # fmt: skip
    return {
        "srcnn-conv2": Case(networks.srcnn, luma, 0.06, ("conv2",)),
        "srcnn": Case(networks.srcnn, luma, 0.06),
        "style-last": Case(networks.style_transfer, colour, 0.05, ("last",)),
        "style": Case(networks.style_transfer, colour, 0.05),
        "faceboxes": Case(networks.faceboxes, faces, 0.05),
    }


def _colour(name: str) -> Tensor:
    """A crop of a photograph, RGB 0..255."""
    pixels = torch.from_numpy(skimage.io.imread(Path(skimage.data.__file__).parent / name))
    return pixels[..., :3].permute(2, 0, 1)[None, :, :384, :384].float().contiguous()


def _quality(folder: Path, model: nn.Module, fast: nn.Module, device: torch.device) -> None:
    """PSNR before and after on the shared pictures."""
    weights = torch.tensor(photographs.LUMA, dtype=torch.float64)
    for path in sorted(folder.glob("*.png")):
        pixels = torch.from_numpy(skimage.io.imread(path)).double() / 255
        luma = pixels[..., :3] @ weights if pixels.ndim == 3 else pixels
        true = photographs.crop(luma.float()[None, None]).to(device)
        x = photographs.degrade(true)
        with torch.no_grad():
            outputs = [net(x).clamp(0, 1) for net in (model, fast)]
        row = []
        for rim in (6, 0):
            before, after = (photographs.psnr(y, true, rim) for y in outputs)
            row.append(f"{before:.2f} -> {after:.2f} dB ({after - before:+.3f})")
        print(f"  {path.stem}: {row[0]}, with its rim {row[1]}")


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
