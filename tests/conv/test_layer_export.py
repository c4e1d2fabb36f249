"""CascadeConv2d under torch.compile, torch.export and ONNX."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from convfactor import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import StageShape, Structure

RUNS = [None, torch.channels_last]
CASES = {
    "padding in the stages": {"padding": (2, 2, 2, 2)},
    "reflect": {"padding": (2, 2, 2, 2), "padding_mode": "reflect"},
    "extended": {"kernel_size": (4, 3), "padding": (1, 1, 1, 2)},
    "cropped, strided": {
        "kernel_size": (9, 9),
        "stride": (2, 2),
        "padding": (2, 2, 2, 2),
        "padding_mode": "replicate",
    },
    "circular": {"padding": (1, 2, 1, 2), "padding_mode": "circular"},
}


def build(name: str, run: torch.memory_format | None) -> CascadeConv2d:
    geometry = ConvGeometry(3, 4, **{"kernel_size": (5, 5), **CASES[name]})
    first = StageShape(3, 6, (3, 3), stride=geometry.stride)
    structure = Structure((first, StageShape(6, 4, (3, 3))))
    cascade = Cascade.random(structure, 0, torch.float32)
    weight, bias = torch.zeros(geometry.weight_shape), torch.linspace(-1, 1, 4)
    return CascadeConv2d.from_weight(weight, bias, cascade, geometry, run).eval()


def image(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def dimensions() -> dict[int, torch.export.Dim]:
    sizes = {0: ("batch", 1), 2: ("height", 8), 3: ("width", 8)}
    return {axis: torch.export.Dim(name, min=least) for axis, (name, least) in sizes.items()}


@pytest.mark.parametrize(
    ("name", "run"),
    [("reflect", None), ("extended", None), *((name, torch.channels_last) for name in CASES)],
)
def test_compiles_without_a_break(name: str, run) -> None:
    layer = build(name, run)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in (image(2, 3, 13, 14), image(3, 3, 16, 12)):
        for y in (x, x.contiguous(memory_format=torch.channels_last)):
            expected = layer(y)
            value = compiled(y)
            torch.testing.assert_close(value, expected)
            assert value.stride() == expected.stride()
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_to_code() -> None:
    layer = build("padding in the stages", torch.channels_last)
    x = image(1, 3, 12, 13)
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()


# torch.export.save: any weight in channels_last
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", CASES)
def test_exports(name: str, run) -> None:
    layer = build(name, run)
    x = image(2, 3, 13, 14)
    fixed = torch.export.export(layer, (x,))
    torch.testing.assert_close(fixed.module()(x), layer(x))
    free = torch.export.export(layer, (x,), dynamic_shapes=(dimensions(),))
    file = io.BytesIO()
    torch.export.save(free, file)
    file.seek(0)
    free = torch.export.load(file)
    for size in ((2, 3, 13, 14), (1, 3, 17, 16), (5, 3, 22, 31)):
        x = image(*size)
        torch.testing.assert_close(free.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["padding in the stages", "reflect", "cropped, strided"])
def test_runs_in_onnxruntime(name: str, run, tmp_path: Path) -> None:
    layer = build(name, run)
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer,
        (image(2, 3, 13, 14),),
        path,
        dynamo=True,
        dynamic_shapes=(dimensions(),),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((2, 3, 13, 14), (1, 3, 17, 16)):
        x = image(*size)
        (value,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(value), layer(x).detach())


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_scripting_is_refused_with_the_way_out():
    layer = build("reflect", None)
    for model in (layer, torch.nn.Sequential(layer)):
        with pytest.raises(TypeError, match=r"torch.jit.script can't compile .* torch.jit.trace"):
            torch.jit.script(model)
    x = image(2, 3, 9, 9)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
