import pickle

import pytest
import torch
from torch import nn

from convfactor.wavelets import DTCWTForward, DTCWTInverse

# Dynamo instantiates every autograd function that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Network(nn.Module):
    """An inverse between layers, its coefficients arguments."""

    def __init__(self, mode="symmetric"):
        super().__init__()
        torch.manual_seed(0)
        self.inverse = DTCWTInverse(mode=mode)
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, low, *highs):
        return self.conv(self.inverse((1.5 * low, list(highs))))


class Denoiser(nn.Module):
    """Both directions."""

    def __init__(self):
        super().__init__()
        self.analysis, self.synthesis = DTCWTForward(J=2), DTCWTInverse()

    def forward(self, image):
        low, highs = self.analysis(image)
        return self.synthesis((low, [nn.functional.softshrink(highs[0], 0.1), highs[1]]))


def arguments(batch=2, size=72):
    torch.manual_seed(1)
    shapes = [(size // 2, size // 2), (size // 2, size // 2), (size // 4, size // 4)]
    low = torch.randn(batch, 2, *shapes[0])
    return low, *(torch.randn(batch, 2, 6, *shape, 2) for shape in shapes[1:])


def test_fx_sees_one_call():
    network = Network()
    graph = torch.fx.symbolic_trace(Wrapper(network))
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert "synthesize" in [node.target.__name__ for node in calls]
    inputs = arguments()
    expected = network(*inputs)
    assert torch.equal(graph(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(graph))(*inputs), expected)


class Wrapper(nn.Module):
    """fx takes no variable arguments."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, low, fine, coarse):
        return self.network(low, fine, coarse)


def test_fx_of_both_directions():
    network = Denoiser()
    image = torch.randn(1, 2, 64, 52)
    assert torch.equal(torch.fx.symbolic_trace(network)(image), network(image))


@pytest.mark.parametrize("size", [24, 72])
def test_compiles_to_one_graph_with_gradients(size):
    torch._dynamo.reset()
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    inputs = [tensor.requires_grad_() for tensor in arguments(size=size)]
    expected, result = network(*inputs), compiled(*inputs)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(result.square().sum(), inputs)
    for one, other in zip(
        gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_compiles_both_directions():
    torch._dynamo.reset()
    network = Denoiser()
    image = torch.randn(1, 2, 64, 52)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("size", [24, 72])
def test_exports_with_a_dynamic_batch(size, strict):
    network = Wrapper(Network("zero")).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        network, arguments(size=size), dynamic_shapes=[{0: batch}] * 3, strict=strict
    )
    for count in (1, 5):
        inputs = arguments(count, size)
        torch.testing.assert_close(program.module()(*inputs), network(*inputs), rtol=0, atol=1e-5)


def test_exports_both_directions():
    network = Denoiser().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    image = torch.randn(2, 2, 64, 52)
    program = torch.export.export(network, (image,), dynamic_shapes=[{0: batch}])
    image = torch.randn(7, 2, 64, 52)
    torch.testing.assert_close(program.module()(image), network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [24, 72])
@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of onnxscript and copyreg
def test_onnx(size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = Wrapper(Network()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        network,
        arguments(size=size),
        dynamo=True,
        dynamic_shapes=[{0: batch}] * 3,
        verbose=False,
    )
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    inputs = arguments(5, size)
    feeds = {
        one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    (result,) = session.run(None, feeds)
    torch.testing.assert_close(
        torch.from_numpy(result), network(*inputs).detach(), rtol=0, atol=1e-5
    )


def test_exported_program_keeps_no_cached_matrix():
    """A call before the export must not bake eager constants into the graph."""
    network = Wrapper(Network())
    inputs = arguments(size=24)
    expected = network(*inputs)
    program = torch.export.export(network, inputs)
    assert all(tensor.numel() < 24 for tensor in program.constants.values())
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=1e-5)


class Bandpass(nn.Module):
    """Both directions, with filters of their own for the diagonals."""

    def __init__(self):
        super().__init__()
        self.analysis = DTCWTForward("near_sym_b_bp", "qshift_b_bp", J=2)
        self.synthesis = DTCWTInverse("near_sym_b_bp", "qshift_b_bp", J=2)

    def forward(self, image):
        low, highs = self.analysis(image)
        return self.synthesis((low, [0.5 * highs[0], highs[1]]))


def test_compiled_graphs_read_the_filters():
    torch._dynamo.reset()
    network = Bandpass()
    image = torch.randn(1, 2, 24, 20, requires_grad=True)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 0.5):
        network.analysis.h2o.data.mul_(factor)
        network.synthesis.g0a.mul_(factor)
        expected, result = network(image), compiled(image)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
        (one,) = torch.autograd.grad(result.square().sum(), image)
        (other,) = torch.autograd.grad(expected.square().sum(), image)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_compiled_graphs_train_the_filters():
    torch._dynamo.reset()
    network = Bandpass().double()
    network.analysis.h2o = nn.Parameter(network.analysis.h2o)
    network.synthesis.g1a = nn.Parameter(network.synthesis.g1a)
    image = torch.randn(1, 1, 24, 20, dtype=torch.float64)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = [
        torch.autograd.grad(call(image).square().sum(), list(network.parameters()))
        for call in (network, compiled)
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of onnxscript and copyreg
def test_bandpass_exports(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = Bandpass().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = [{0: batch}]
    program = torch.export.export(network, (torch.randn(2, 2, 24, 20),), dynamic_shapes=shapes)
    image = torch.randn(5, 2, 24, 20)
    exported = program.module()
    torch.testing.assert_close(exported(image), network(image), rtol=0, atol=1e-5)
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), network(image), rtol=0, atol=1e-5)
    network.synthesis.g2o.mul_(2)
    exported.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(exported(image), network(image), rtol=0, atol=1e-5)
