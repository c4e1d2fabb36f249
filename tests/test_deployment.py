"""A rewritten model in what people deploy: modules, calls and the rest of it at once."""

from __future__ import annotations

import copy
import io
import shutil

import onnxruntime
import pytest
import torch
from tiny import Functional, conv, images
from torch import nn

import convfactor
from convfactor import CascadeConv2d

SCRIPTING = r"torch\.jit\.script can't compile .* torch\.jit\.trace"


class Net(nn.Module):
    """A module, a functional call, and a classifier behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.call = Functional(seed=1)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.call(torch.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def fast() -> nn.Module:
    torch.manual_seed(0)
    model, plan = convfactor.optimize(
        Net().eval(), images(), 1e-3, objective="macs", structures="cascade"
    )
    assert plan.replaced == [0, 1]
    return model.requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    return images(seed=3, count=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile(fast, x):
    torch.testing.assert_close(torch.compile(fast, fullgraph=True)(x), fast(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_export(fast, x, strict):
    file = io.BytesIO()
    torch.export.save(torch.export.export(fast, (x,), strict=strict), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), fast(x))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnxruntime(fast, x, tmp_path):
    path = tmp_path / "fast.onnx"
    sizes = {0: torch.export.Dim("batch", min=1)}
    torch.onnx.export(fast, (x,), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for given in (x, images(seed=4, count=5)):
        (value,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(value), fast(given))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision(fast, x, dtype, most):
    true = copy.deepcopy(fast).double()(x.double())
    half = copy.deepcopy(fast).to(dtype)
    assert half.call.kernel.dtype == half(x.to(dtype)).dtype == dtype
    assert (half(x.to(dtype)) - true).norm() < most * true.norm()
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            assert (fast(x) - true).norm() < most * true.norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantization_of_the_rest(fast, x):
    from torch.ao.quantization import quantize_dynamic

    small = quantize_dynamic(fast, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(small.head).__module__
    assert isinstance(small.stem, CascadeConv2d)
    assert small.call.kernel._layer is small.call.kernel_cascade
    expected = copy.deepcopy(fast)
    expected.head = small.head
    assert torch.equal(small(x), expected(x))
    assert (small(x) - fast(x)).norm() < 0.05 * fast(x).norm()


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_tracing_and_scripting(fast, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(fast, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), fast(x))
    for model in (fast, fast.call):
        with pytest.raises(TypeError, match=SCRIPTING):
            torch.jit.script(model)
