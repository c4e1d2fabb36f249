"""Times of the demo's network before and after, in torch and in onnxruntime.

    python benchmarks/deployment.py

Prints a table in Markdown; both run on as many threads as torch takes, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import convfactor
from convfactor.demo import network, photographs
from convfactor.latency import compare


def session(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Export a model to ONNX, check what onnxruntime computes, and return a run of it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {run.get_inputs()[0].name: x.numpy()}
    (value,) = run.run(None, inputs)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(value), model(x), atol=1e-3, rtol=1e-3)
    return lambda: run.run(None, inputs)


def main() -> None:
    """Optimize, export, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=384, help="of the picture, in threes")
    parser.add_argument("--tolerance", type=float, default=0.06)
    parser.add_argument("--layers", nargs="+", default=["conv1", "conv2", "conv3"])
    options = parser.parse_args()

    pictures = [photographs.middle(luma, options.side) for luma in photographs.training().values()]
    batches = [photographs.degrade(luma) for luma in pictures]
    model, x = network.load(), batches[0]
    fast, plan = convfactor.optimize(
        model,
        x,
        options.tolerance,
        calibration=batches,
        select=lambda name, module: name in options.layers,
    )
    last = x.contiguous(memory_format=torch.channels_last)
    calls = [lambda: model(x), lambda: fast(last), session(model, x), session(fast, x)]
    times = compare(calls, x.device, seconds=10.0)

    print(f"{len(plan.replaced)} of {len(plan.entries)} layers replaced, torch "
          f"{torch.__version__}, onnxruntime {onnxruntime.__version__}, "
          f"{torch.get_num_threads()} threads, {'x'.join(map(str, x.shape))}\n")  # fmt: skip
    print("| | before (ms) | after (ms) | |\n|---|---:|---:|---:|")
    for name, before, after in (("torch", *times[:2]), ("onnxruntime", *times[2:])):
        cells = [
            f"{1e3 * t.median:.3g} [{1e3 * t.low:.3g}..{1e3 * t.high:.3g}]" for t in (before, after)
        ]
        print(f"| {name} | {' | '.join(cells)} | {before.median / after.median:.2f}x |")


if __name__ == "__main__":
    main()
