"""Plan one model of every family of timm and transformers that has a large kernel.

Weights are random, but for the large kernels, which get separable ones of one rank, so that layers
really are replaced. Every model is planned by multiplies in a process of its own with one thread,
and the result is compared with the original, in float64, on an input that planning has not seen.
A model whose process fails is a failure; one that takes longer than `--seconds` is stopped.
`--write` puts the table into `docs/zoo.md`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pages
import torch
from torch import Tensor, nn

import convfactor
from convfactor.conv.forms import UnsupportedConvolutionError, of_module

PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
LEAST = 5
TOLERANCE = 1e-3
AMPLIFICATION = 20.0  # of a layer's error at the output of a deep network with random weights
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
# Of each module of timm the smallest of its first models; making all 1,300 takes an hour.
TRIED = 8
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
# Name of a configuration of transformers, its arguments, and shape of the input.
TRANSFORMERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ConvNext": ({"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "ConvNextV2": ({"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "ResNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, (1, 3, 64, 64)),
    "EfficientNet": (
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        (1, 3, 96, 96),
    ),
    "Segformer": ({"depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "PoolFormer": ({"depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "Cvt": ({}, (1, 3, 64, 64)),
    "GLPN": ({"depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "FocalNet": ({"embed_dim": 16, "depths": [1, 1, 1, 1]}, (1, 3, 64, 64)),
    "Wav2Vec2": ({**SMALL, "num_hidden_layers": 1, "conv_dim": [32] * 7}, (1, 8000)),
    "Hubert": ({**SMALL, "num_hidden_layers": 1, "conv_dim": [32] * 7}, (1, 8000)),
    "WavLM": ({**SMALL, "num_hidden_layers": 1, "conv_dim": [32] * 7}, (1, 8000)),
    "UniSpeech": ({**SMALL, "num_hidden_layers": 1, "conv_dim": [32] * 7}, (1, 8000)),
    "Data2VecAudio": ({**SMALL, "num_hidden_layers": 1, "conv_dim": [32] * 7}, (1, 8000)),
    "SEW": ({**SMALL, "num_hidden_layers": 1}, (1, 16000)),
    "Encodec": ({"num_filters": 8}, (1, 1, 8000)),
    "Dac": ({"encoder_hidden_size": 8, "decoder_hidden_size": 64}, (1, 1, 8192)),
    "Vits": ({**SMALL, "num_hidden_layers": 1, "upsample_initial_channel": 32}, ()),
}


def separate(model: nn.Module) -> int:
    """Give every large kernel one separable kernel between all channels, of the same size.

    Returns:
        How many there are.
    """
    generator = torch.Generator().manual_seed(0)
    count = 0
    for module in model.modules():
        if not isinstance(module, CONVOLUTIONS) or max(module.kernel_size) < LEAST:
            continue
        count += 1
        weight = module.weight
        factors = [torch.randn(n, generator=generator) for n in weight.shape]
        whole = factors[0]
        for factor in factors[1:]:
            whole = whole[..., None] * factor
        value = (whole * (weight.std() / whole.std())).detach().to(weight)
        if isinstance(weight, nn.Parameter):
            weight.data = value
        elif nn.utils.parametrize.is_parametrized(module, "weight"):
            module.weight = value
    return count


def awaken(model: nn.Module) -> None:
    """Let every branch count: many start at a scale of 0 or 1e-6, which would hide any error."""
    for name, parameter in model.named_parameters():
        vector = parameter.numel() == max(parameter.shape, default=1)
        if vector and not name.endswith("bias") and float(parameter.abs().mean()) < 0.1:
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            weight = module.weight
            gain = float(weight.std()) * math.sqrt(weight[0].numel())
            if isinstance(weight, nn.Parameter) and 0 < gain < 1:
                weight.data /= gain


def large(model: nn.Module) -> bool:
    """Whether a model has a large kernel that a cascade may stand for."""
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) >= LEAST:
            try:
                if of_module(module)[1].overlaps:
                    return True
            except UnsupportedConvolutionError:
                continue
    return False


def timm_families() -> Iterator[str]:
    """A small model of every module of timm that has a large kernel."""
    import timm

    for module in timm.list_modules():
        found: list[tuple[int, str]] = []
        for name in timm.list_models(module=module)[:TRIED]:
            with torch.device("meta"):
                try:
                    model = timm.create_model(name)
                except Exception:  # some can't be made without memory
                    continue
            found.append((sum(p.numel() for p in model.parameters()), name))
            if not large(model):
                found.pop()
        if found:
            yield min(found)[1]


def timm_case(name: str) -> tuple[nn.Module, Callable[[int], Any]]:
    """A model of timm, and what makes its inputs."""
    import timm

    model = timm.create_model(name)
    size = model.default_cfg.get("min_input_size") or model.default_cfg["input_size"]
    if model.default_cfg.get("fixed_input_size"):
        size = model.default_cfg["input_size"]
    return model, lambda seed: _random((1, *size), seed)


def transformers_case(name: str) -> tuple[nn.Module, Callable[[int], Any]]:
    """A model of transformers, and what makes its inputs."""
    import transformers

    options, shape = TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config)
    if not shape:
        return model, lambda seed: {"input_ids": torch.arange(12)[None] % config.vocab_size}
    return model, lambda seed: _random(shape, seed)


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planned(kind: str, name: str) -> dict[str, Any]:
    """Plan one model in this process, and compare."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = (timm_case if kind == "timm" else transformers_case)(name)
    model.eval().requires_grad_(False)
    count = separate(model)
    awaken(model)
    start = time.process_time()
    fast, plan = convfactor.optimize(model, inputs(0), TOLERANCE, objective="macs", progress=False)
    seconds = time.process_time() - start
    reasons = sorted({e.decision.reason.code for e in plan.entries if not e.replaced})
    return {
        "kernels": count,
        "listed": len(plan.entries),
        "replaced": len(plan.replaced),
        "kept": ", ".join(reasons),
        "seconds": seconds,
        "planned": max((e.error or 0.0 for e in plan.entries if e.replaced), default=0.0),
        "found": _off(model.double(), fast.double(), inputs(1)),
    }


def _off(model: nn.Module, fast: nn.Module, x: Any) -> float:
    """The relative error of the first output on an input that planning has not seen.

    In float64: with random weights, rounding alone changes the outputs of some networks by 9 %.
    """
    if isinstance(x, Tensor):
        x = x.double()
    outputs = []
    for one in (model, fast):
        torch.manual_seed(0)
        with torch.no_grad():
            y = one(**x) if isinstance(x, dict) else one(x)
        while not isinstance(y, Tensor):
            y = next(iter(y.values() if hasattr(y, "values") else y))
        outputs.append(y.double())
    true, got = outputs
    scale = true.std() if true.numel() > 1 else true.abs()
    return float((got - true).square().mean().sqrt() / scale.clamp_min(1e-30))


def main() -> None:
    """Plan all, or the ones that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of models")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="for each, before it is stopped"
    )
    parser.add_argument("--write", action="store_true", help="into docs/zoo.md as well")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(planned(*options.one)))
        return
    lines = [
        f"(one thread each, torch {torch.__version__}; tolerance {TOLERANCE:g}, by multiplies)",
        "",
        "| model | large kernels | replaced | kept because | planned within | found | s | |",
        "|---|---:|---:|---|---:|---:|---:|---|",
    ]
    print("\n".join(lines), flush=True)
    for kind, name in _cases():
        if options.names and not any(part in name for part in options.names):
            continue
        lines.append(_row(kind, name, options.seconds))
        print(lines[-1], flush=True)
        if options.write:
            pages.write("zoo", "\n".join(lines), PAGE)


def _cases() -> Iterator[tuple[str, str]]:
    """The libraries that are there, with their models."""
    if importlib.util.find_spec("transformers"):
        yield from (("transformers", name) for name in TRANSFORMERS)
    if importlib.util.find_spec("timm"):
        yield from (("timm", name) for name in timm_families())


def _row(kind: str, name: str, seconds: float) -> str:
    """One line of the table."""
    command = [sys.executable, __file__, "--one", kind, name]
    try:
        run = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"| {name} | | | | | | {seconds:g} | **stopped** |"
    except subprocess.CalledProcessError as error:
        told = (error.stderr.strip().splitlines() or ["?"])[-1][:120].replace("|", "/")
        return f"| {name} | | | | | | | **failed**: {told} |"
    found = json.loads(run.stdout.strip().splitlines()[-1])
    wrong = found["found"] > AMPLIFICATION * max(found["planned"], 1e-5) * max(found["replaced"], 1)
    return (
        f"| {name} | {found['kernels']} | {found['replaced']} of {found['listed']} "
        f"| {found['kept']} | {found['planned']:.1e} | {found['found']:.1e} "
        f"| {found['seconds']:.1f} | {'**off**' if wrong else ''} |"
    )


if __name__ == "__main__":
    main()
