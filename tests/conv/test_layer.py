"""CascadeConv2d against nn.Conv2d, and against one convolution with the composed kernel."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import layers as drawn  # tests/fuzz
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convfactor.conv.cascade import Cascade
from convfactor.conv.forms import Form
from convfactor.conv.framed import framed
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.factorize import factorize

MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, eq=False)
class Result:
    """A factorization as the layer sees it."""

    cascade: Cascade
    bias_shift: Tensor


def chain(channels: tuple[int, ...], *stages: dict, groups: int = 1, offset=(0, 0)) -> Structure:
    """Build a structure of 3x3 stages, each changed by a dict."""
    return Structure(
        tuple(
            StageShape(a, b, **{"kernel_size": (3, 3), "groups": groups, **stage})
            for a, b, stage in zip(channels[:-1], channels[1:], stages, strict=True)
        ),
        offset,
    )


PLAIN = chain((4, 5, 3), {}, {})
STRUCTURES = {
    "5x5": PLAIN,
    "9x9": chain((3, 4, 2, 4, 2), {}, {}, {}, {}),
    "grouped": chain((4, 6, 2), {}, {}, groups=2),
    "depthwise": chain((3, 3, 3), {}, {}, groups=3),
    "depthwise branches": chain((3, 6, 6, 3), {}, {"groups": 6}, {}, groups=3),
    "strided first": chain((2, 3, 4), {"stride": (2, 2)}, {}),
    "strided last": chain((2, 3, 4), {}, {"stride": (2, 2)}),
    "strided twice": chain((2, 3, 2), {"stride": (2, 1)}, {"stride": (2, 3)}),
    "dilated": chain((2, 3, 2), {"dilation": (2, 3)}, {"dilation": (2, 3)}),
    "far": chain((1, 2, 1), {}, {"dilation": (2, 2)}),
    "7x1": chain((2, 3, 3, 2), *[{"kernel_size": (3, 1)}] * 3),
    "even": chain((2, 3, 2), {}, {"kernel_size": (2, 2)}),
    "one stage": chain((2, 3), {}),
}


def geometry_of(structure: Structure, grow=(0, 0), **options) -> ConvGeometry:
    """Describe the convolution that a structure replaces, its kernel ``grow`` larger."""
    first, last = structure.stages[0], structure.stages[-1]
    height, width = (k + g for k, g in zip(structure.span, grow, strict=True))
    weight = torch.empty(
        last.out_channels, first.in_channels // structure.groups, height, width, device="meta"
    )
    return ConvGeometry.from_shape(
        weight.shape, stride=structure.stride, groups=structure.groups, **options
    )


def original(geometry: ConvGeometry, cascade: Cascade, bias: Tensor | None, padding) -> nn.Conv2d:
    """Build the original module with the cascade's kernel, where that fits into its own."""
    conv = nn.Conv2d(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        geometry.stride,
        padding,
        geometry.dilation,
        geometry.groups,
        bias is not None,
        geometry.padding_mode,
        dtype=torch.float64,
    )
    kernel = cascade.compose()
    (row, col), (height, width) = cascade.offset, kernel.shape[-2:]
    full = torch.zeros(*geometry.weight_shape[:2], *geometry.extent, dtype=torch.float64)
    full[..., row : row + height, col : col + width] = kernel
    with torch.no_grad():
        conv.weight.copy_(full[..., :: geometry.dilation[0], :: geometry.dilation[1]])
        if bias is not None:
            conv.bias.copy_(bias)
    return conv


def once(geometry: ConvGeometry, cascade: Cascade, bias: Tensor | None) -> Callable:
    """Pad in the original mode, extend or crop pixel by pixel, apply the composed kernel once."""
    left, right, top, bottom = geometry.padding
    (row, col), (height, width) = cascade.offset, cascade.structure.span
    kernel = cascade.compose()

    def apply(x: Tensor) -> Tensor:
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, (left, right, top, bottom), mode=mode)
        rows, cols = x.shape[-2:]
        below, beside = height - geometry.extent[0] + row, width - geometry.extent[1] + col
        big = torch.zeros(*x.shape[:-2], rows + 200, cols + 200, dtype=x.dtype)
        big[..., 100 : 100 + rows, 100 : 100 + cols] = x
        x = big[..., 100 + row : 100 + rows + below, 100 + col : 100 + cols + beside]
        groups = cascade.structure.groups
        return F.conv2d(x, kernel.to(x), bias, geometry.stride, groups=groups)

    return apply


def relative(value: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert value.shape == expected.shape
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def smallest(geometry: ConvGeometry, axis: int) -> int:
    """Smallest legal input on one side."""
    pads = geometry.padding[2:] if axis == 0 else geometry.padding[:2]
    least = {"zeros": 1, "replicate": 1, "circular": max(pads), "reflect": max(pads) + 1}
    return max(1, geometry.extent[axis] - sum(pads), least[geometry.padding_mode])


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Draw chains of up to three small stages with strides, dilations, groups and branches."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    count = draw(st.integers(1, 3))
    widths = [groups * draw(st.integers(1, 3)) for _ in range(count + 1)]
    stages = []
    for i in range(count):
        inner = math.gcd(widths[i], widths[i + 1]) if draw(st.booleans()) else groups
        stages.append(
            StageShape(
                widths[i],
                widths[i + 1],
                draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
                draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
                draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
                inner,
            )
        )
    return Structure(tuple(stages))


@st.composite
def layers(draw: st.DrawFn):
    """Draw a geometry, a cascade for it, a bias and an input."""
    structure = draw(structures())
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    if all(stage.stride == (1, 1) for stage in structure.stages[:-1]):
        structure = structure.dilated(dilation)
    else:
        dilation = (1, 1)
    grow = draw(st.sampled_from([(0, 0), (0, 0), (2, 2), (-1, -2), (0, 3), (2, -1)]))
    kernel = tuple(
        max(1, (span - 1) // d + 1 + g)
        for span, d, g in zip(structure.span, dilation, grow, strict=True)
    )
    offset = tuple(draw(st.integers(-2, 2)) for _ in range(2)) if any(grow) else (0, 0)
    structure = Structure(structure.stages, offset)
    choices = [0, 1, 2, 4, "valid", (0, 3), (2, 1)] + ["same"] * 2 * (structure.stride == (1, 1))
    padding = draw(st.sampled_from(choices))
    first, last = structure.stages[0], structure.stages[-1]
    groups = structure.groups
    weight = torch.empty(last.out_channels, first.in_channels // groups, *kernel, device="meta")
    geometry = ConvGeometry.from_shape(
        weight.shape,
        stride=structure.stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(MODES)),
    )
    cascade = Cascade.random(structure, draw(st.integers(0, 99)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    bias = None
    if draw(st.booleans()):
        bias = torch.randn(last.out_channels, generator=generator, dtype=torch.float64)
    size = [smallest(geometry, axis) + draw(st.integers(0, 6)) for axis in (0, 1)]
    # torch does not pad images without a batch in circular mode.
    batched = geometry.padding_mode == "circular" or draw(st.booleans())
    shape = ([draw(st.integers(0, 2))] if batched else []) + [first.in_channels, *size]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if batched and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    memory_format = draw(st.sampled_from([None, torch.channels_last, torch.contiguous_format]))
    return geometry, cascade, bias, padding, x, memory_format


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=400, deadline=None)
@given(layers())
def test_equals_the_equivalent_kernel_at_every_pixel(case) -> None:
    geometry, cascade, bias, padding, x, memory_format = case
    layer = CascadeConv2d.from_weight(cascade.compose(), bias, cascade, geometry, memory_format)
    explicit = once(geometry, cascade, bias)
    if x.dim() == 4 and not len(x) and geometry.padding_mode == "circular":
        x = x.new_ones(1, *x.shape[1:])
    expected = explicit(x)
    assert relative(layer(x), expected) <= 1e-12
    assert relative(copy.deepcopy(layer).float()(x.float()), expected) <= 1e-5

    (row, col), (height, width) = cascade.offset, cascade.structure.span
    inside = min(row, col) >= 0 and (
        row + height <= geometry.extent[0] and col + width <= geometry.extent[1]
    )
    aligned = all(o % d == 0 for o, d in zip(cascade.offset, geometry.dilation, strict=True))
    if inside and aligned:
        conv = original(geometry, cascade, bias, padding)
        layer = CascadeConv2d.from_conv(conv, cascade, memory_format)
        value, expected = layer(x), conv(x)
        assert relative(value, expected) <= 1e-12
        assert value.dtype == expected.dtype
        assert value.stride() == expected.stride()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_answers_as_the_module_does_refusals_included(rng) -> None:
    drawn.check(drawn.draw(rng))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_each_structure_and_mode_equals_the_module(name: str, mode: str) -> None:
    structure = STRUCTURES[name]
    for padding in (0, 1, (2, 1), "same"):
        if padding == "same" and structure.stride != (1, 1):
            continue
        geometry = geometry_of(structure, padding=padding, padding_mode=mode)
        cascade = Cascade.random(structure, 1)
        bias = torch.linspace(-1, 1, geometry.out_channels, dtype=torch.float64)
        conv = original(geometry, cascade, bias, padding)
        layer = CascadeConv2d.from_conv(conv, cascade)
        for size in ((13, 14), (14, 13)):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, geometry.in_channels, *size, generator=generator).double()
            assert relative(layer(x), conv(x)) <= 1e-12
            assert relative(copy.deepcopy(layer).float()(x.float()), conv(x)) <= 1e-5


@pytest.mark.parametrize("grow", [(0, 0), (2, 2), (-2, -1)])
@pytest.mark.parametrize("name", ["5x5", "strided first", "strided last", "strided twice", "even"])
def test_output_size_is_the_originals_for_every_legal_size(name: str, grow) -> None:
    structure = STRUCTURES[name]
    for mode, padding in product(MODES, (0, 1, 2, (3, 0))):
        geometry = geometry_of(structure, grow, padding=padding, padding_mode=mode)
        layer = CascadeConv2d(geometry, structure)
        conv = nn.Conv2d(
            geometry.in_channels,
            geometry.out_channels,
            geometry.kernel_size,
            geometry.stride,
            padding,
            groups=geometry.groups,
            padding_mode=mode,
        )
        for height, width in product(range(1, 10), (1, 5, 6, 9)):
            x = torch.zeros(1, geometry.in_channels, height, width)
            try:
                expected = conv(x).shape
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    layer(x)
            else:
                assert layer(x).shape == expected
                assert tuple(expected[2:]) == geometry.output_size(height, width)


def test_padding_each_stage_alone_would_be_wrong() -> None:
    structure = STRUCTURES["9x9"]
    cascade = Cascade.random(structure, 0)
    geometry = geometry_of(structure, padding=4, padding_mode="reflect")
    layer = CascadeConv2d.from_weight(cascade.compose(), None, cascade, geometry)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    naive = x
    for stage in cascade.stages:
        naive = F.conv2d(F.pad(naive, (1, 1, 1, 1), mode="reflect"), stage.weight)
    inner = (..., slice(4, -4), slice(4, -4))
    assert relative(naive[inner], layer(x)[inner]) <= 1e-12
    assert relative(naive, layer(x)) > 0.01


def test_zero_padding_costs_no_copy_where_stages_can_add_it() -> None:
    layer = CascadeConv2d(geometry_of(STRUCTURES["9x9"], padding=4), STRUCTURES["9x9"])
    assert [stage.padding for stage in layer.stages] == [(2, 2), (2, 2), (0, 0), (0, 0)]
    x = torch.zeros(1, 3, 8, 8)
    seen = []
    layer.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer(x)
    assert seen[0] is x


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("run", [None, torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [(4, 3), (1, 3), (3, 1), (1, 1)])
def test_output_has_the_strides_of_the_originals(channels, mode, run, weights) -> None:
    structure = chain((channels[0], 5, channels[1]), {}, {})
    geometry = geometry_of(structure, padding=2, padding_mode=mode)
    cascade = Cascade.random(structure, 0)
    conv = original(geometry, cascade, None, 2).float().to(memory_format=weights)
    layer = CascadeConv2d.from_conv(conv, cascade, run)
    x = torch.randn(2, channels[0], 9, 11, generator=torch.Generator().manual_seed(0))
    inputs = [x, x.to(memory_format=torch.channels_last), x.permute(0, 1, 3, 2)]
    inputs += [y[..., 1:, 2:] for y in inputs] + [x[:1], x[..., :3, :3]]
    inputs += [] if mode == "circular" else [x[0]]
    for y in inputs:
        value, expected = layer(y), conv(y)
        assert value.stride() == expected.stride()
        assert relative(value, expected) <= 1e-5


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float32, 1e-5)]
)
def test_runs_in_every_dtype(dtype: torch.dtype, limit: float) -> None:
    geometry = geometry_of(PLAIN, padding=2)
    cascade = Cascade.random(PLAIN, 0)
    conv = original(geometry, cascade, None, 2)
    x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    expected = conv(x)
    layer = CascadeConv2d.from_conv(conv.to(dtype), cascade)
    value = layer(x.to(dtype))
    assert value.dtype == dtype
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert relative(value, expected) <= limit
    with pytest.raises(RuntimeError, match="type"):
        layer(x)


@pytest.mark.parametrize("run", [None, torch.channels_last])
def test_autocast_gives_what_the_module_gives(run) -> None:
    geometry = geometry_of(PLAIN, padding=2, padding_mode="reflect")
    cascade = Cascade.random(PLAIN, 0)
    conv = original(geometry, cascade, None, 2).float()
    layer = CascadeConv2d.from_conv(conv, cascade, run)
    x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, expected = layer(x), conv(x)
    assert value.dtype == expected.dtype == torch.bfloat16
    assert relative(value, conv(x)) <= 5e-2


@pytest.mark.parametrize("run", [None, torch.channels_last])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients_flow(run, mode: str) -> None:
    structure = chain((2, 2, 1), {"stride": (2, 2)}, {}, offset=(-1, 0))
    geometry = geometry_of(structure, (-2, -1), padding=1, padding_mode=mode)
    layer = CascadeConv2d(geometry, structure, memory_format=run, dtype=torch.float64)
    x = torch.randn(1, 2, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *parameters))


def test_bias_shift_goes_into_the_bias() -> None:
    geometry = geometry_of(PLAIN)
    cascade = Cascade.random(PLAIN, 0)
    shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    x = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    for bias in (None, torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)):
        conv = original(geometry, cascade, bias, 0)
        layer = CascadeConv2d.from_conv(conv, Result(cascade, shift))
        expected = shift if bias is None else shift + bias
        assert torch.equal(layer(x).flatten(), expected)
    conv = original(geometry, cascade, None, 0)
    assert CascadeConv2d.from_conv(conv, Result(cascade, 0 * shift)).stages[-1].bias is None


def test_flags_follow_the_module() -> None:
    conv = original(geometry_of(PLAIN), Cascade.random(PLAIN, 0), torch.zeros(3), 0).eval()
    conv.weight.requires_grad_(False)
    layer = CascadeConv2d.from_conv(conv, Cascade.random(PLAIN, 0))
    assert not layer.training
    assert not layer.stages[0].weight.requires_grad
    assert layer.stages[1].bias.requires_grad
    assert layer.stages[0].weight.is_leaf


def test_building_leaves_no_side_effects() -> None:
    conv = original(geometry_of(PLAIN), Cascade.random(PLAIN, 0), None, 0)
    cascade = Cascade.random(PLAIN, 0)
    state = torch.random.get_rng_state()
    layer = CascadeConv2d.from_conv(conv, cascade)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        layer.stages[0].weight.zero_()
    assert cascade.stages[0].weight.all()


@pytest.mark.parametrize("run", [None, torch.channels_last])
def test_copies_and_saved_states_answer_the_same(run) -> None:
    geometry = geometry_of(PLAIN, padding="same", padding_mode="replicate")
    conv = original(geometry, Cascade.random(PLAIN, 0), torch.ones(3), "same")
    layer = CascadeConv2d.from_conv(conv, Cascade.random(PLAIN, 0), run)
    x = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    rebuilt = CascadeConv2d(geometry, layer.structure, memory_format=run, dtype=torch.float64)
    rebuilt.load_state_dict(torch.load(file, weights_only=True))
    for twin in (rebuilt, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert (twin.geometry, twin.structure) == (layer.geometry, layer.structure)
        assert twin.memory_format == layer.memory_format


@pytest.mark.parametrize("run", [None, torch.channels_last])
def test_symbolic_trace_keeps_the_stages(run) -> None:
    geometry = geometry_of(PLAIN, padding=1)
    layer = CascadeConv2d(geometry, PLAIN, memory_format=run)
    traced = torch.fx.symbolic_trace(layer)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["stages.0", "stages.1"]
    x = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(traced(x), layer(x))
    assert torch.equal(traced(x[0]), layer(x[0]))


def test_cascade_reads_the_current_weights() -> None:
    structure = chain((4, 5, 3), {}, {}, offset=(-1, 1))
    cascade = Cascade.random(structure, 0)
    layer = CascadeConv2d.from_weight(cascade.compose(), None, cascade, geometry_of(structure))
    assert layer.cascade().structure == layer.structure == structure
    assert torch.equal(layer.cascade().compose(), cascade.compose())
    with torch.no_grad():
        layer.stages[0].weight.mul_(2)
    assert torch.equal(layer.cascade().compose(), 2 * cascade.compose())


def test_reads_like_the_original() -> None:
    structure = STRUCTURES["strided first"]
    geometry = geometry_of(structure, padding=(2, 3), padding_mode="circular")
    conv = original(geometry, Cascade.random(structure, 0), None, (2, 3))
    layer = CascadeConv2d.from_conv(conv, Cascade.random(structure, 0))
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(conv, name)
    assert "cascade=3x3/2 3x3 (3)" in repr(layer)
    assert repr(layer).startswith("CascadeConv2d(\n  2, 4, kernel_size=(7, 7), stride=(2, 2)")
    uneven = geometry_of(STRUCTURES["even"], padding="same")
    assert CascadeConv2d(uneven, STRUCTURES["even"]).padding == (1, 2, 1, 2)


def test_wrong_input_gets_torchs_errors() -> None:
    for run in (None, torch.channels_last):
        layer = CascadeConv2d(geometry_of(PLAIN, padding=2), PLAIN, memory_format=run)
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 3 channels"):
            layer(torch.zeros(1, 3, 8, 8))
        with pytest.raises(RuntimeError, match=r"Expected 3D .* or 4D"):
            layer(torch.zeros(8, 8))


@pytest.mark.parametrize("run", [None, torch.channels_last])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [0, 2, 3])
@pytest.mark.parametrize("name", ["5x5", "far", "grouped", "even"])
def test_images_without_pixels_are_refused_where_torch_does(name, padding, mode, run) -> None:
    structure = STRUCTURES[name]
    geometry = geometry_of(structure, padding=padding, padding_mode=mode)
    conv = original(geometry, Cascade.random(structure, 0), None, padding)
    layer = CascadeConv2d.from_conv(conv, Cascade.random(structure, 0), run)
    answers = 0
    for batch, height, width in product([(1,), (0,), ()], (0, 9), (0, 9)):
        x = torch.zeros(*batch, geometry.in_channels, height, width, dtype=torch.float64)
        try:
            expected = conv(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                layer(x)
        else:
            answers += 1
            value = layer(x)
            assert (value.shape, value.stride()) == (expected.shape, expected.stride())
    assert answers


def test_an_image_without_height_gets_a_clear_error() -> None:
    layer = CascadeConv2d(geometry_of(STRUCTURES["even"], padding="same"), STRUCTURES["even"])
    with pytest.raises(RuntimeError, match=r"height and a width of at least 1 .* \(1, 2, 0, 5\)"):
        layer(torch.zeros(1, 2, 0, 5))


@pytest.mark.parametrize("value", [None, 3, [[1.0]], torch.zeros(1, 2, 9, 9).numpy()])
@pytest.mark.parametrize("run", [None, torch.channels_last])
def test_what_is_no_tensor_is_a_type_error(run, value) -> None:
    for name in ("even", "strided first"):
        structure = STRUCTURES[name]
        layer = CascadeConv2d(geometry_of(structure), structure, memory_format=run)
        with pytest.raises(TypeError):
            layer(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("run", [None, torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "structure",
    [
        chain((1, 1, 4), {}, {}),
        chain((3, 1, 4), {"kernel_size": (1, 1)}, {}),
        chain((4, 6, 4), {}, {"groups": 2}),
        chain((1, 4), {"kernel_size": (1, 1)}),
        chain((4, 4, 4), {}, {}, groups=4),
        chain((4, 4, 4), {"kernel_size": (1, 1)}, {}, groups=4),
        chain((2, 4, 4), {}, {"groups": 4}),
    ],
    ids=str,
)
def test_single_pixels_and_empty_batches_keep_the_originals_strides(
    structure, run, weights, dtype
) -> None:
    geometry = geometry_of(structure, (2, 2), padding=2)
    cascade = Cascade.random(structure, 0)
    conv = original(geometry, cascade, None, 2).to(dtype).to(memory_format=weights)
    layer = CascadeConv2d.from_conv(conv, cascade, run)
    for batch, size in product((0, 1, 2), (1, 3, 5)):
        x = torch.zeros(batch, geometry.in_channels, size, size, dtype=dtype)
        for y in (x, x.to(memory_format=torch.channels_last), x.mT):
            if y.shape[2] + 4 >= geometry.extent[0]:
                assert layer(y).stride() == conv(y).stride()
                if batch == 1:
                    assert layer(y[0]).stride() == conv(y[0]).stride()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", [(4, 5), (5, 4), (4, 4), (5, 5)])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_padding_on_one_side_keeps_the_originals_strides(kernel, count) -> None:
    conv = nn.Conv2d(2, 2, kernel, padding="same")
    layer = CascadeConv2d.from_conv(conv, factorize(conv.weight, widths=(2,)))
    x = torch.zeros(count, 2, 3, 10)
    for y in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert layer(y).stride() == conv(y).stride()


def test_refuses_what_does_not_fit() -> None:
    geometry = geometry_of(PLAIN)
    with pytest.raises(ValueError, match="maps 4 to 2 channels"):
        CascadeConv2d(geometry, chain((4, 5, 2), {}, {}))
    with pytest.raises(ValueError, match="stride"):
        CascadeConv2d(geometry, chain((4, 5, 3), {"stride": (2, 2)}, {}))
    grouped = geometry_of(STRUCTURES["grouped"])
    with pytest.raises(ValueError, match="groups"):
        CascadeConv2d(grouped, chain((4, 6, 2), {}, {}))
    with pytest.raises(ValueError, match="memory_format"):
        CascadeConv2d(geometry, PLAIN, memory_format=torch.preserve_format)
    with pytest.raises(TypeError, match="ConvTranspose2d"):
        CascadeConv2d.from_conv(nn.ConvTranspose2d(4, 3, 5), Cascade.random(PLAIN, 0))


@pytest.mark.parametrize("memory_format", [None, torch.contiguous_format, torch.channels_last])
def test_a_whole_layer_can_be_saved(memory_format):
    conv = nn.Conv2d(3, 4, 7, padding=3).to(memory_format=torch.channels_last)
    f = factorize(conv.weight, widths=(2, 2))
    layer = CascadeConv2d.from_conv(conv, f, memory_format)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert (loaded.memory_format, loaded.output_format) == (memory_format, torch.channels_last)
    x = torch.rand(1, 3, 12, 12)
    assert torch.equal(loaded(x), layer(x))
    assert layer.memory_format == memory_format


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("stride", (1, 1), (2, 2)),
        ("dilation", 1, 2),
        ("padding", [2, 2], 0),
        ("padding_mode", "zeros", "circular"),
        ("groups", 1, 2),
    ],
)
def test_integers_that_nobody_would_read_can_not_be_set(name, same, other) -> None:
    conv = nn.Conv2d(2, 2, 5, padding=2)
    layers = [CascadeConv2d.from_conv(conv, factorize(conv.weight, widths=(2,)))]
    layers.append(framed(layers[0], Form(dims=1)))
    for layer in layers:
        setattr(layer, name, same if isinstance(layer, CascadeConv2d) else getattr(layer, name))
        with pytest.raises(AttributeError, match=f"{name} of a Cascade.* was made for"):
            setattr(layer, name, other)
    setattr(copy.deepcopy(layers[0]), name, same)
