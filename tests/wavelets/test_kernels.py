"""The compiled kernels, against the originals, torch's operations and finite differences."""

import itertools
import os
import random
import subprocess
import sys

import pytest
import pytorch_wavelets as reference
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from convfactor.wavelets import DTCWTForward, DTCWTInverse, kernels

BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32")


@pytest.fixture(scope="module", autouse=True)
def _built():
    try:
        kernels.load()
    except RuntimeError as error:
        pytest.skip(f"no compiled kernels: {error}")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def flat(nested):
    return [nested] if isinstance(nested, torch.Tensor) else [t for n in nested for t in flat(n)]


def assert_same(result, expected, tolerance):
    for one, other in zip(flat(result), flat(expected), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def cases():
    """All pairs of filters, both modes, in sizes from 2 to 90, and large ones."""
    rng = random.Random(1)
    filters = list(itertools.product(BIORTS, QSHIFTS, ("symmetric", "zero")))
    sizes = [(rng.randint(2, 90), rng.randint(2, 90)) for _ in filters]
    return [
        (size, 1 + i % 4, *chosen)
        for i, (size, chosen) in enumerate(zip(sizes, filters, strict=True))
    ] + [((301, 270), 4, "near_sym_b", "qshift_d", "symmetric")]


@pytest.mark.parametrize(("size", "levels", "biort", "qshift", "mode"), cases())
def test_same_as_the_originals_in_double(size, levels, biort, qshift, mode, double):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, requires_grad=True)
    results = []
    for forward, inverse, chosen in (
        (reference.DTCWTForward, reference.DTCWTInverse, {}),
        (DTCWTForward, DTCWTInverse, {"backend": "cpp"}),
    ):
        coeffs = forward(biort, qshift, levels, mode=mode, **chosen)(image)
        leaves = [torch.randn_like(one).requires_grad_() for one in flat(coeffs)]
        torch.manual_seed(1)
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.randn_like(leaf))
        made = inverse(biort, qshift, mode=mode, **chosen)((leaves[0], leaves[1:]))
        weights = [torch.cos(torch.arange(o.numel())).reshape(o.shape) for o in flat(coeffs)]
        loss = sum((o * w).sum() for o, w in zip(flat(coeffs), weights, strict=True))
        gradients = torch.autograd.grad(loss, image)
        gradients += torch.autograd.grad(made.square().sum(), leaves)
        results.append([*flat(coeffs), made, *gradients])
    assert_same(results[1], results[0], 1e-11 if qshift == "qshift_32" else 1e-12)


@pytest.mark.parametrize("mode", ["symmetric", "zero"])
@pytest.mark.parametrize("filters", [("near_sym_b_bp", "qshift_b_bp"), ("near_sym_b", "qshift_32")])
def test_bandpass_and_long_filters_as_by_torch(filters, mode, double):
    image = torch.randn(1, 2, 58, 43)
    chosen = [{"backend": backend, "mode": mode} for backend in ("torch", "cpp")]
    by_torch, compiled = (DTCWTForward(*filters, J=3, **one)(image) for one in chosen)
    assert_same(compiled, by_torch, 1e-13)
    by_torch, compiled = (DTCWTInverse(*filters, **one)(by_torch) for one in chosen)
    assert_same(compiled, by_torch, 1e-13)


@pytest.mark.parametrize("mode", ["symmetric", "zero"])
def test_gradcheck(mode, double):
    """Filters that are not mirrored, whose adjoint is no filter of the same form at the border."""
    torch.manual_seed(0)
    inverse = DTCWTInverse([torch.randn(5), torch.randn(3)], mode=mode, backend="cpp")
    low, bands = torch.randn(1, 1, 12, 14), torch.randn(1, 1, 6, 6, 7, 2)
    leaves = low.requires_grad_(), bands.requires_grad_()
    assert gradcheck(lambda low, bands: inverse((low, [bands])), leaves)
    forward = DTCWTForward([torch.randn(3), torch.randn(7)], J=2, mode=mode, backend="cpp")
    image = torch.randn(1, 1, 12, 20, requires_grad=True)
    assert gradcheck(lambda x: tuple(flat(forward(x))), image)
    assert gradgradcheck(lambda x: forward(x)[1][1].square(), image, fast_mode=True)


@pytest.mark.parametrize("absent", [{0}, {1}, {0, 1}, {2}, {0, 1, 2}, {"low"}, {"low", 1}])
def test_absent_coefficients(absent):
    low, highs = reference.DTCWTForward(J=3)(torch.randn(1, 2, 40, 56))
    if "low" in absent:
        low.zero_()
    zeros = [torch.zeros_like(b) if j in absent else b for j, b in enumerate(highs)]
    given = [None if j in absent else b for j, b in enumerate(highs)]
    result = DTCWTInverse(backend="cpp")((None if "low" in absent else low, given))
    assert_same(result, reference.DTCWTInverse()((low, zeros)), 2e-6)


def test_views_of_any_strides_are_read():
    image = torch.randn(3, 2, 36, 52).transpose(2, 3)[:, :, ::2, 1:]
    for given in (image, image.to(memory_format=torch.channels_last)):
        low, highs = DTCWTForward(J=2, backend="cpp")(given)
        assert_same((low, highs), reference.DTCWTForward(J=2)(given.contiguous()), 2e-6)
    views = [torch.stack((b, b), -1)[..., 0] for b in highs]
    result = DTCWTInverse(backend="cpp")((low, views))
    assert_same(result, reference.DTCWTInverse()((low, highs)), 2e-6)


@pytest.mark.parametrize(("o_dim", "ri_dim"), [(1, -1), (4, 2), (-1, 3)])
def test_dimensions(o_dim, ri_dim):
    image, dims = torch.randn(2, 2, 24, 20), {"o_dim": o_dim, "ri_dim": ri_dim}
    coeffs = reference.DTCWTForward(J=2, **dims)(image)
    assert_same(DTCWTForward(J=2, backend="cpp", **dims)(image), coeffs, 2e-6)
    result = DTCWTInverse(backend="cpp", **dims)(coeffs)
    assert_same(result, DTCWTInverse(backend="torch", **dims)(coeffs), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    """Sums are kept in float32, so that only what is read and written is rounded."""
    image = torch.randn(2, 2, 52, 44, requires_grad=True)
    exact = DTCWTForward(J=2, backend="torch")(image)
    forward, inverse = DTCWTForward(J=2, backend="cpp"), DTCWTInverse(backend="cpp")
    with torch.autocast("cpu", dtype):
        coeffs = forward(image)
        made = inverse((coeffs[0].float(), coeffs[1]))
    assert all(one.dtype == dtype for one in (*flat(coeffs), made))
    bound = 3 * torch.finfo(dtype).eps
    assert_same([one.float() for one in flat(coeffs)], flat(exact), bound)
    assert_same(made.float(), DTCWTInverse(backend="torch")(exact), 2 * bound)
    results = [
        torch.autograd.grad(one.float().square().sum(), image, retain_graph=True)[0]
        for one in (coeffs[1][0], exact[1][0])
    ]
    assert_same(*results, 2 * bound)
    assert_same(inverse.to(dtype)(coeffs).float(), made.float(), 2 * bound)


class Denoiser(nn.Module):
    """Both directions."""

    def __init__(self):
        super().__init__()
        self.analysis = DTCWTForward(J=2, backend="cpp")
        self.synthesis = DTCWTInverse(backend="cpp")

    def forward(self, image):
        low, highs = self.analysis(image)
        return self.synthesis((low, [nn.functional.softshrink(highs[0], 0.1), highs[1]]))


def test_compiles_to_one_graph_of_operators():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    network, image = Denoiser(), torch.randn(1, 2, 36, 44)
    torch.testing.assert_close(
        torch.compile(network, fullgraph=True, backend=backend)(image), network(image)
    )
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("convfactor" in target for target in targets) == 4


def test_compiles_with_gradients():
    torch._dynamo.reset()
    network, image = Denoiser(), torch.randn(1, 2, 36, 44, requires_grad=True)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = [
        (made, torch.autograd.grad(made.square().sum(), image)[0])
        for made in (compiled(image), network(image))
    ]
    assert_same(*results, 1e-6)


def test_exported_programs_need_only_torch():
    network, image = Denoiser().eval(), torch.randn(2, 2, 36, 44)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (image,), dynamic_shapes=[{0: batch}])
    assert not any("convfactor" in str(node.target) for node in program.graph.nodes)
    image = torch.randn(5, 2, 36, 44)
    assert_same(program.module()(image), network(image), 2e-6)


def test_operators_keep_to_their_contract():
    forward = DTCWTForward(J=1, backend="cpp")
    image = torch.randn(2, 8, 12, requires_grad=True)
    taps = [forward.h0o.reshape(1, -1), forward.h1o.reshape(1, -1)]
    layout = taps, [-(one.numel() // 2) for one in taps], 1, 1, True, False
    arguments = image, *layout, True, True, torch.float32
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.convfactor.split.default, arguments, test_utils=tests)
    bands = torch.randn(2, 6, 4, 6, 2, requires_grad=True)
    arguments = image, bands, *layout, torch.float32
    torch.library.opcheck(torch.ops.convfactor.merge.default, arguments, test_utils=tests)


def test_transforms_of_torch_func_and_trained_filters():
    image = torch.randn(3, 1, 2, 20, 24)
    forward = DTCWTForward(J=2, backend="cpp")
    expected = torch.stack([forward(one)[0] for one in image])
    assert_same(torch.func.vmap(lambda x: forward(x)[0])(image), expected, 2e-6)
    forward.h0o = nn.Parameter(forward.h0o)
    (gradient,) = torch.autograd.grad(forward(image[0])[0].sum(), forward.h0o)
    assert gradient.abs().max() > 0


def test_filters_that_are_edited_count():
    image, forward = torch.randn(1, 1, 20, 24), DTCWTForward(J=1, backend="cpp")
    before = forward(image)[0]
    forward.h0o.data.mul_(2)
    assert_same(forward(image)[0], 4 * before, 2e-6)


def test_images_are_shared_out_whatever_the_threads():
    image, forward = torch.randn(5, 3, 150, 130), DTCWTForward(J=2, backend="cpp")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(flat(forward(image)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def test_from_module_takes_the_backend():
    inverse = DTCWTInverse.from_module(reference.DTCWTInverse(), backend="cpp")
    assert inverse.backend == "cpp"
    with pytest.raises(ValueError, match="backend must be one of auto, torch, cpp, got 'cuda'"):
        DTCWTForward(backend="cuda")


def in_a_new_process(code, **environment):
    given = {**os.environ, **environment}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_auto_takes_them_once_they_are_built():
    told = in_a_new_process(
        "import torch; from convfactor import wavelets\n"
        "forward, image = wavelets.DTCWTForward(J=1), torch.rand(1, 1, 16, 16)\n"
        "for step in (lambda: None, wavelets.build):\n"
        "    step()\n"
        "    with torch.autograd.profiler.profile() as seen: forward(image)\n"
        "    print(any(e.name.startswith('convfactor') for e in seen.function_events))\n"
    )
    assert told.split() == ["False", "True"]


def test_without_a_compiler_the_error_says_what_to_do(tmp_path):
    told = in_a_new_process(
        "import torch; from convfactor import wavelets\n"
        "try: wavelets.build()\n"
        "except RuntimeError as error: print(error)\n"
        "print(wavelets.DTCWTForward(J=1)(torch.rand(1, 1, 8, 8))[0].shape)\n",
        PATH=str(tmp_path),
        CXX="no-such-compiler",
        TORCH_EXTENSIONS_DIR=str(tmp_path),
    )
    assert "need a compiler for C++" in told
    assert "backend='torch' needs neither" in told
    assert "torch.Size([1, 1, 8, 8])" in told
