"""Random kernels for ``factorize``, its answers worked out again without the package's algebra."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tally import Tally
from torch import Tensor

from convfactor import Bounds, ConvGeometry, Factorization, factorize

SLACK = 2.0  # seconds of processor time that a step may take after the time limit
MODES = ("zeros", "reflect", "replicate", "circular")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """One call of ``factorize`` and what it must do.

    Attributes:
        weight: What is given.
        options: The other arguments.
        plain: The weight as float64 (C_out, C_in/groups, kH, kW).
        dtype: Dtype that the stages must have.
        exact: Whether the kernel splits without error.
        refused: Whether a clear error is the right answer.
    """

    weight: Any
    options: dict[str, Any]
    plain: Tensor
    dtype: torch.dtype
    exact: bool = False
    refused: bool = False
    note: str = field(default="")


def run(count: int, seed: int = 0) -> Tally:
    """Try random kernels.

    Args:
        count: How many.
        seed: Of the whole run; each case has its own generator.
    """
    tally = Tally("kernels")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        case = draw(rng)
        limit = case.options["time_limit"]
        limit = limit if isinstance(limit, float) else 0.0
        text = f"kernels.draw(np.random.default_rng([{seed}, {index}])): {describe(case)}"
        refusals = (ValueError, TypeError) if case.refused or "widths" in case.options else ()
        if "stages" in case.options:
            refusals = (ValueError,)
        with tally.case(text, limit + SLACK, refusals), warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = factorize(case.weight, progress=False, **case.options)
            assert not case.refused, "was accepted"
            check(case, answer)
            check_bounds(case, answer, rng)
    return tally


def describe(case: Case) -> str:
    """Name a case in one line."""
    options = {k: v for k, v in case.options.items() if k != "time_limit"}
    return f"{tuple(case.plain.shape)} {case.dtype} {case.note} {options}"


def draw(rng: np.random.Generator) -> Case:
    """Draw a case."""
    if rng.random() < 0.08:
        return draw_refused(rng)
    size = (int(rng.integers(1, 32)), int(rng.integers(1, 32)))
    if rng.random() < 0.6:
        size = (size[0], size[0])
    kind = rng.choice(["dense", "grouped", "depthwise", "single"])
    most = 24 if max(size) <= 11 else 4
    groups, outputs, inputs = 1, 1, 1
    if kind == "dense":
        outputs, inputs = (int(n) for n in rng.integers(1, most + 1, 2))
    elif kind == "grouped":
        groups, outputs, inputs = (int(n) for n in rng.integers(1, min(most, 5) + 1, 3))
    elif kind == "depthwise":
        groups = int(rng.integers(2, 4 * most + 1))
    weight, exact = draw_values(rng, (groups * outputs, inputs, *size))
    dtype = FLOATS[int(rng.choice(4, p=[0.4, 0.4, 0.1, 0.1]))]
    if float(weight.abs().max()) > torch.finfo(dtype).max:
        dtype = torch.float64
    weight = weight.to(dtype)
    given, plain, dtype, note = dress(rng, weight)
    options: dict[str, Any] = {"groups": groups, "time_limit": float(rng.choice([0.5, 1.0, 2.0]))}
    if rng.random() < 0.3:
        options["stride"] = int(rng.integers(1, 5)) if rng.random() < 0.7 else (1, 2)
    if rng.random() < 0.3:
        options["dilation"] = int(rng.integers(1, 4)) if rng.random() < 0.7 else (2, 1)
    options["seed"] = int(rng.integers(-(2**62), 2**62)) if rng.random() < 0.2 else 0
    if rng.random() < 0.15:
        options["preserve_dc"] = False
    ask(rng, options, groups, size)
    # Rounding to whole numbers may leave a kernel that no longer splits.
    exact = exact and bool((torch.linalg.matrix_rank(plain) <= 1).all())
    exact = exact and max(inputs, outputs) == 1 and dtype == torch.float64
    return Case(given, options, plain, dtype, exact=exact, note=f"{kind} {note}")


def ask(
    rng: np.random.Generator, options: dict[str, Any], groups: int, size: tuple[int, int]
) -> None:
    """Draw the question."""
    question = rng.choice(["tolerance", "stages", "widths"], p=[0.6, 0.25, 0.15])
    natural = max(1, (max(size) - 1 + 1) // 2)
    if question == "stages":
        options["stages"] = int(rng.integers(1, natural + 2))
    elif question == "widths":
        count = int(rng.integers(0, min(natural, 4)))
        options["widths"] = [groups * int(w) for w in rng.integers(1, 6, count)]
    if question == "tolerance" or rng.random() < 0.2:
        options["tolerance"] = float(10 ** rng.uniform(-6, -0.1))


def draw_values(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Draw float64 values, and whether every kernel of one channel is separable."""
    kind = rng.choice(["noise", "separable", "composed", "smooth", "sparse", "zeros", "scaled"])
    outputs, inputs, height, width = shape
    values = rng.standard_normal(shape)
    if kind == "separable":
        left = rng.standard_normal((outputs, inputs, height, 1))
        values = left * rng.standard_normal((outputs, inputs, 1, width))
    elif kind == "composed":
        values = np.ones((outputs, inputs, 1, 1))
        while values.shape[2] < height or values.shape[3] < width:
            size = (min(3, height - values.shape[2] + 1), min(3, width - values.shape[3] + 1))
            small = rng.standard_normal((outputs, inputs, *size))
            values = np.stack(
                [_convolve(a, b) for a, b in zip(_rows(values), _rows(small), strict=True)]
            ).reshape(outputs, inputs, *(_convolve(_rows(values)[0], _rows(small)[0]).shape))
    elif kind == "smooth":
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        slope = rng.standard_normal((2, outputs, inputs, 1, 1))
        values = np.exp(-(y**2 + x**2) * 2) * np.cos(3 * (slope[0] * y + slope[1] * x))
    elif kind == "sparse":
        values = values * (rng.random(shape) < 0.2)
    elif kind == "zeros":
        values[rng.random(outputs) < 0.5] = 0
    elif kind == "scaled":
        values = values * 10 ** rng.uniform(-4, 4, (outputs, 1, 1, 1))
    return torch.from_numpy(values), kind == "separable"


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *values.shape[2:])


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.signal import convolve2d

    return convolve2d(first, second)


def dress(rng: np.random.Generator, weight: Tensor) -> tuple[Any, Tensor, torch.dtype, str]:
    """Give the weight in some other way: what is given, its values, the dtype to expect, a note."""
    ways = ["tensor"] * 6 + ["parameter", "strided", "expanded", "integers", "lists", "numpy"]
    ways += ["reversed", "swapped", "fortran", "readonly"]
    way = rng.choice(ways)
    plain, double = weight.double(), torch.float64
    if way == "parameter":
        return torch.nn.Parameter(weight), plain, weight.dtype, way
    if way == "strided":
        wide = torch.zeros((*weight.shape[:3], 2 * weight.shape[3]), dtype=weight.dtype)
        wide[..., ::2] = weight
        return wide[..., ::2], plain, weight.dtype, way
    if way == "expanded":
        same = weight[:1].expand_as(weight)
        return same, same.double(), weight.dtype, way
    if way in ("integers", "lists"):
        whole = (plain / plain.abs().max().clamp_min(1e-300) * 9).round()
        if way == "integers":
            kind = rng.choice([torch.int8, torch.int32, torch.int64], p=[0.3, 0.3, 0.4])
            return whole.to(kind), whole, double, way
        return whole.to(torch.int64).tolist(), whole, double, way
    if way == "tensor" or weight.dtype == torch.bfloat16:
        return weight, plain, weight.dtype, "tensor"
    array = weight.numpy()
    if way == "reversed":
        return np.flip(array, (2, 3)), plain.flip(2, 3), weight.dtype, way
    if way == "swapped":
        return array.astype(array.dtype.newbyteorder()), plain, weight.dtype, way
    if way == "fortran":
        return np.asfortranarray(array), plain, weight.dtype, way
    if way == "readonly":
        array = array.copy()
        array.flags.writeable = False
    return array, plain, weight.dtype, way


def draw_refused(rng: np.random.Generator) -> Case:
    """Draw a call that must end with a clear error at once."""
    weight = torch.from_numpy(rng.standard_normal((4, 2, 5, 5)))
    spoilt: list[tuple[str, Any, dict[str, Any]]] = [
        ("meta", weight.to("meta"), {}),
        ("sparse", weight.to_sparse(), {}),
        ("csr", weight[0, 0].to_sparse_csr(), {}),
        ("mkldnn", weight.float().to_mkldnn(), {}),
        ("complex", weight.to(torch.complex64), {}),
        ("float8", weight.to(torch.float8_e4m3fn), {}),
        ("quantized", torch.quantize_per_tensor(weight.float(), 0.1, 0, torch.qint8), {}),
        ("nested", torch.nested.nested_tensor([weight[0, 0], weight[0, 1]]), {}),
        ("ragged", [[1, 2], [3]], {}),
        ("text", "kernel", {}),
        ("none", None, {}),
        ("objects", np.array([[1, None], [2, 3]], dtype=object), {}),
        ("dates", np.zeros((5, 5), dtype="datetime64[s]"), {}),
        ("nan", weight * math.nan, {}),
        ("stages", weight, {"tolerance": None, "stages": 10**9}),
        ("widths", weight, {"tolerance": None, "widths": [1] * 10**5}),
        ("wide", weight, {"tolerance": None, "widths": [10**12]}),
        ("stride", weight, {"stride": 2**70}),
        ("dilation", weight, {"dilation": 2**70}),
        ("groups", weight, {"groups": 2**70}),
        ("seed", weight, {"seed": "1"}),
        ("real seed", weight, {"seed": 1.0}),
        ("large seed", weight, {"seed": 2**80}),
        ("no time", weight, {"time_limit": 0}),
        ("time", weight, {"time_limit": "10"}),
        ("tolerance", weight, {"tolerance": True}),
    ]
    note, given, options = spoilt[int(rng.integers(len(spoilt)))]
    options = {"tolerance": 0.1, "time_limit": 0.5, **options}
    return Case(given, options, weight, torch.float64, refused=True, note=note)


def check(case: Case, answer: Factorization) -> None:
    """Work the answer out again."""
    weight, options = case.plain, case.options
    groups = options["groups"]
    assert all(k.dtype == case.dtype for k in answer.kernels), "dtype of the stages"
    assert all(bool(k.isfinite().all()) for k in answer.kernels), "stages are not finite"
    stride, dilation = _pair(options.get("stride", 1)), _pair(options.get("dilation", 1))
    assert answer.structure.stride == stride, "stride"
    composed = compose(answer)
    target = widen(weight, groups)
    residual, whole = difference(composed, answer.offset, target, dilation)
    size = float(weight.norm())
    error = float(residual.norm()) / size if size else float(residual.norm())
    # Two orders of composing differ by what the cascade makes of rounding.
    rounding = 1e-13 + 1e-15 * answer.noise_gain
    close = 1e-6 * error + 10 * rounding
    assert abs(answer.error - error) <= close, f"error {answer.error} is {error}"
    assert error <= 1.0 + 1e-6 or case.dtype != torch.float64, f"error {error} above 1"
    norms = target.flatten(1).norm(dim=1)
    channels = residual.flatten(1).norm(dim=1) / torch.where(norms > 0, norms, 1)
    off = (answer.channel_errors - channels).abs()[norms > 0]
    share = size / norms[norms > 0]
    near = 1e-6 * channels[norms > 0] + 10 * rounding * share
    assert bool((off <= near).all()), "errors of the channels"
    l_inf = float(residual.abs().sum((1, 2, 3)).max())
    several = math.sqrt(residual[0].numel()) * rounding * size
    assert abs(answer.bounds.l_inf - l_inf) <= 1e-6 * l_inf + several, "l_inf"
    tolerance = options.get("tolerance")
    if tolerance is None:
        assert answer.met is None, "met without a tolerance"
    elif answer.met:
        assert error <= tolerance + close, f"met with an error of {error}"
    macs = math.prod(weight.shape)
    assert answer.macs <= macs, f"{answer.macs} multiplies instead of {macs}"
    quiet = answer.met is not False and not answer.timed_out
    assert quiet or answer.message, "nothing is said"
    chain = all(s.groups == s.weight.shape[0] for s in answer.stages)
    if case.exact and chain and not answer.timed_out and whole:
        assert error <= 1e-9, f"separable, but the error is {error}"


def compose(answer: Factorization) -> Tensor:
    """Kernel of the cascade by running its stages backwards from single output pixels."""
    outputs = answer.kernels[-1].shape[0]
    image = np.eye(outputs)[:, :, None, None]
    for stage in reversed(answer.stages):
        weight, (sy, sx), (dy, dx) = stage.weight.double().numpy(), stage.stride, stage.dilation
        apart = np.zeros((*image.shape[:2], (image.shape[2] - 1) * sy + 1,
                          (image.shape[3] - 1) * sx + 1))  # fmt: skip
        apart[:, :, ::sy, ::sx] = image
        (written, read, rows, cols), (height, width) = weight.shape, apart.shape[2:]
        size = (height + (rows - 1) * dy, width + (cols - 1) * dx)
        image = np.zeros((outputs, read * stage.groups, *size))
        share = written // stage.groups
        for group, y, x in np.ndindex(stage.groups, rows, cols):
            own = slice(group * share, (group + 1) * share)
            taps = weight[own, :, y, x]
            part = image[:, group * read : (group + 1) * read, y * dy :, x * dx :]
            part[:, :, :height, :width] += np.einsum("oshw,si->oihw", apart[:, own], taps)
    return torch.from_numpy(image)


def widen(weight: Tensor, groups: int) -> Tensor:
    """Write a grouped kernel over all input channels."""
    outputs, inputs = weight.shape[:2]
    wide = weight.new_zeros((outputs, inputs * groups, *weight.shape[2:]))
    for channel in range(outputs):
        first = channel // (outputs // groups) * inputs
        wide[channel, first : first + inputs] = weight[channel]
    return wide


def difference(
    composed: Tensor, offset: tuple[int, int], target: Tensor, dilation: tuple[int, int]
) -> tuple[Tensor, bool]:
    """Composed kernel minus the dilated target in pixels, and whether it spans all of that."""
    size = [(k - 1) * d + 1 for k, d in zip(target.shape[2:], dilation, strict=True)]
    low = [min(0, o) for o in offset]
    high = [max(s, o + c) for s, o, c in zip(size, offset, composed.shape[2:], strict=True)]
    frame = composed.new_zeros((*target.shape[:2], high[0] - low[0], high[1] - low[1]))
    y, x = offset[0] - low[0], offset[1] - low[1]
    frame[:, :, y : y + composed.shape[2], x : x + composed.shape[3]] = composed
    y, x = -low[0], -low[1]
    frame[:, :, y : y + size[0] : dilation[0], x : x + size[1] : dilation[1]] -= target
    whole = all(o <= 0 for o in offset) and all(
        o + c >= s for o, c, s in zip(offset, composed.shape[2:], size, strict=True)
    )
    return frame, whole


def check_bounds(case: Case, answer: Factorization, rng: np.random.Generator) -> None:
    """Look for an image that exceeds the bounds, in a random padding."""
    if math.prod(case.plain.shape) > 20000:
        return
    options, weight = case.options, case.plain
    mode = str(rng.choice(MODES))
    geometry = ConvGeometry.from_shape(
        weight.shape,
        stride=_pair(options.get("stride", 1)),
        dilation=_pair(options.get("dilation", 1)),
        groups=options["groups"],
        padding_mode=mode,
    )
    pads = tuple(int(p) for p in rng.integers(0, 1 + max(geometry.extent) // 2, 4))
    if rng.random() < 0.5:
        pads = (pads[0], pads[0], pads[1], pads[1])
    geometry = ConvGeometry(**{**vars(geometry), "padding": pads})
    residual, groups = answer.residual, options["groups"]
    bounds = Bounds.from_residual(residual, groups, geometry, answer.origin)
    sides = [
        int(rng.integers(max(1, e - a - b), max(1, e - a - b) + 5))
        for e, (a, b) in zip(geometry.extent, (pads[2:], pads[:2]), strict=True)
    ]
    gain, largest = power_iteration(residual, answer.origin, geometry, (sides[0], sides[1]))
    text = f"{mode} padding {pads}, image {sides}"
    assert gain <= bounds.spectral * (1 + 1e-9) + 1e-300, f"spectral {bounds} < {gain}, {text}"
    assert largest <= bounds.l_inf * (1 + 1e-9) + 1e-300, f"l_inf {bounds} < {largest}, {text}"


def power_iteration(
    residual: Tensor, origin: tuple[int, int], geometry: ConvGeometry, size: tuple[int, int]
) -> tuple[float, float]:
    """Largest gain in the 2-norm that is found, and the largest output of an image of signs.

    An image that the padding mode does not take counts as no gain.
    """
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    (dy, dx), (height, width) = geometry.dilation, residual.shape[2:]
    before = (-origin[0] * dy, -origin[1] * dx)
    after = (
        (origin[0] + height - geometry.kernel_size[0]) * dy,
        (origin[1] + width - geometry.kernel_size[1]) * dx,
    )

    def apply(x: Tensor) -> Tensor:
        x = F.pad(x, geometry.padding, mode)
        x = F.pad(x, (before[1], after[1], before[0], after[0]))
        return F.conv2d(x, residual, None, geometry.stride, 0, geometry.dilation, geometry.groups)

    generator = torch.Generator().manual_seed(0)
    shape = (1, geometry.in_channels, *size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    scale = float(residual.abs().max())
    if not scale:
        return 0.0, 0.0
    try:
        y = apply(x)
    except RuntimeError:
        return 0.0, 0.0
    gain = 0.0
    for _ in range(15):
        y = apply(x)
        gain = max(gain, float((y.norm() / x.norm()).detach()))
        (back,) = torch.autograd.grad((y / scale).square().sum(), x)
        if not float(back.norm()):
            break
        x = (back / back.norm()).detach().requires_grad_()
    first = apply(x).flatten().abs().argmax()
    (signs,) = torch.autograd.grad(apply(x).flatten()[first], x)
    return gain, float(apply(signs.sign()).abs().max().detach())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


if __name__ == "__main__":
    import sys

    result = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(result)
    for group in (result.wrong, result.raw, result.late):
        print(*group, sep="\n")
