"""Random dual-tree transforms against pytorch_wavelets in float64, and dtcwt for bandpass filters.

A case is repeated by its seed: `check(numpy.random.default_rng([seed, index]))`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tally import Tally
from torch import Tensor, nn

from convfactor.wavelets import DTCWTForward, DTCWTInverse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pytorch_wavelets 1.3.0 imports pkg_resources
    import pytorch_wavelets
    from wavelet_oracles import canonical, mapped, oracle

SECONDS = 2.0
BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b", "near_sym_b_bp")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_b_bp")
MODES = ("symmetric", "zero", "per", "periodization", "constant", "reflect", "replicate")
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.15}
Random = np.random.Generator


def run(count: int, seed: int = 0) -> Tally:
    """Try random transforms, a sixth of them with something that must be refused.

    Args:
        count: Number of cases.
        seed: First part of every case's seed.
    """
    logging.getLogger().setLevel(logging.ERROR)  # dtcwt tells of every odd size
    warnings.filterwarnings("ignore", "The 'warn' function is deprecated")
    tally = Tally("wavelet transforms")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        torch.manual_seed(int(rng.integers(2**31)))
        wrong = rng.random() < 1 / 6
        refusals = (ValueError, TypeError) if wrong else ()
        with tally.case(f"wavelets seed {seed} case {index}", SECONDS, refusals):
            (check_refused if wrong else check)(rng)
    return tally


def check(rng: Random) -> None:
    """Compare one transform with its oracle."""
    case = _draw(rng)
    inputs = _inputs(rng, case)
    module = _module(case)
    if rng.random() < 0.5:
        _edit(rng, module, case, inputs)
    expected = oracle(module, case, inputs)
    result = _call(rng, module, inputs)
    _compare(case, result, expected)


def check_refused(rng: Random) -> None:
    """Give one transform something that it does not take."""
    case = _draw(rng)
    case["dtype"], case["levels"] = torch.float32, max(1, case["levels"])
    inputs = _inputs(rng, case)
    module = _module(case)
    if rng.random() < 0.5:
        module(inputs)
    broken = _broken(rng, case, inputs)
    result = module(broken)
    raise AssertionError(f"{case} took a wrong argument and gave {_shapes(result)}")


def _draw(rng: Random) -> dict[str, Any]:
    small = rng.random() < 0.4
    biort, qshift = str(rng.choice(BIORTS)), str(rng.choice(QSHIFTS))
    band = biort.endswith("_bp") or qshift.endswith("_bp")
    o_dim, ri_dim = (int(d) for d in rng.permutation(np.arange(1, 6))[:2])
    levels = int(rng.integers(0, 6))
    if rng.random() < 0.5:
        o_dim, ri_dim = 2, 5
    size = [int(side) for side in rng.integers(1, 13 if small else 120, 2)]
    if rng.random() < 0.3:  # no level of these is extended
        size = [2 ** (levels + 1) * int(rng.integers(1, 3)) for _ in size]
    return {
        "forward": bool(rng.random() < 0.5),
        "biort": biort,
        "qshift": qshift,
        "band": band,
        "mode": "symmetric" if band or rng.random() < 0.4 else str(rng.choice(MODES)),
        "levels": levels,
        "size": tuple(size),
        "batch": tuple(int(side) for side in rng.integers(1, 4, 2)),
        "dims": (o_dim - 6 * int(rng.random() < 0.3), ri_dim - 6 * int(rng.random() < 0.3)),
        "dtype": list(TOLERANCES)[int(rng.choice(4, p=[0.3, 0.4, 0.15, 0.15]))],
        "skip": [bool(x) for x in rng.random(levels) < 0.25],
        "keep": [bool(x) for x in rng.random(levels) < 0.25],
        "count": bool(rng.random() < 0.3),
    }


def _module(case: dict[str, Any]) -> DTCWTForward | DTCWTInverse:
    o_dim, ri_dim = case["dims"]
    options = {"o_dim": o_dim, "ri_dim": ri_dim, "mode": case["mode"]}
    module: DTCWTForward | DTCWTInverse
    if case["forward"]:
        module = DTCWTForward(
            case["biort"], case["qshift"], case["levels"], case["skip"], case["keep"], **options
        )
    else:
        levels = case["levels"] if case["count"] else None
        module = DTCWTInverse(case["biort"], case["qshift"], J=levels, **options)
    return module.to(case["dtype"])


def _inputs(rng: Random, case: dict[str, Any]) -> Any:
    """An image, or coefficients with some absent."""
    image = torch.randn(*case["batch"], *case["size"])
    if case["forward"]:
        return image.to(case["dtype"])
    low, highs = pytorch_wavelets.DTCWTForward(J=case["levels"])(image)
    low = torch.randn_like(low).to(case["dtype"])
    bands: list[Any] = [
        _placed(torch.randn_like(one), case).to(case["dtype"]) for one in highs or []
    ]
    case["sides"] = [tuple(canonical(one, case).shape[3:5]) for one in bands]
    # Without bands nothing says how the lowpass is cropped: only for sizes that need none.
    fits = all(side % 2 ** (case["levels"] + 1) == 0 for side in case["size"])
    even = all(side % 2 == 0 for side in low.shape[2:])
    for level in range(len(bands)):
        if (fits or (level == 0 and even and not case["band"])) and rng.random() < 0.25:
            bands[level] = [None, torch.zeros([]), torch.tensor([])][int(rng.integers(3))]
    present = any(isinstance(one, Tensor) and one.ndim > 1 for one in bands)
    return (None if present and rng.random() < 0.15 else low), bands


def _placed(bands: Tensor, case: dict[str, Any]) -> Tensor:
    """Move the orientations and parts of (N, C, 6, H, W, 2) where the case has them."""
    order = [0, 1, 3, 4]
    for dim, source in sorted(zip((d % 6 for d in case["dims"]), (2, 5), strict=True)):
        order.insert(dim, source)
    return bands.permute(order)


def _edit(rng: Random, module: nn.Module, case: dict[str, Any], inputs: Any) -> None:
    """Change a filter in one of the ways that there are, after a call."""
    module(inputs)
    names = list(module.state_dict())
    name = str(rng.choice(names))
    taps = getattr(module, name)
    factor = float(rng.uniform(0.5, 1.5))
    ways: list[Callable[[], object]] = [
        lambda: taps.mul_(factor),
        lambda: taps.data.mul_(factor),
        lambda: setattr(module, name, nn.Parameter(factor * taps)),
        lambda: setattr(module, name, factor * taps),
        lambda: module.load_state_dict({n: factor * t for n, t in module.state_dict().items()}),
        lambda: module.float().half().to(case["dtype"]),
        lambda: setattr(module, "mode", "symmetric"),
    ]
    way = int(rng.integers(len(ways)))
    ways[way]()
    if way == 6:
        case["mode"] = "symmetric"


def _call(rng: Random, module: nn.Module, inputs: Any) -> Any:
    """Call it in one of the ways that there are."""
    way = int(rng.integers(4))
    if way == 1:
        with torch.no_grad():
            return module(inputs)
    if way == 2:  # the original graph has to stand a backward pass
        leaves = [t for t in _tensors(inputs) if t.ndim > 1]
        for leaf in leaves:
            leaf.requires_grad_()
        result = module(inputs)
        total = sum(t.double().square().sum() for t in _tensors(result))
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in grads), "gradient not finite"
        return result
    if way == 3 and isinstance(inputs, Tensor) and module.J:
        many = torch.func.vmap(module)(torch.stack([2 * inputs, inputs]))
        return mapped(many, lambda t: t[1])
    return module(inputs)


def _tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [t for one in nested for t in _tensors(one)] if isinstance(nested, (list, tuple)) else []


def _shapes(nested: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in _tensors(nested)]


def _compare(case: dict[str, Any], result: Any, expected: Any) -> None:
    if case["forward"] and case["levels"]:
        low, highs = result
        result = low, [canonical(b, case) if b.ndim == 6 else b for b in highs]
    ours, theirs = _tensors(result), _tensors(expected)
    assert len(ours) == len(theirs), f"{case}: {len(ours)} results instead of {len(theirs)}"
    scale = max((float(t.abs().max()) for t in theirs if t.numel()), default=0.0)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape, f"{case}: {tuple(one.shape)} not {tuple(other.shape)}"
        assert one.dtype == case["dtype"], f"{case}: {one.dtype}"
        error = float((one.detach().double() - other).abs().max()) / max(scale, 1e-30)
        assert error <= TOLERANCES[case["dtype"]], f"{case}: wrong by {error:.1e}"


def _broken(rng: Random, case: dict[str, Any], inputs: Any) -> Any:
    if case["forward"]:
        ways: list[Any] = [
            inputs[0], inputs[None], inputs.long(), inputs.double(), inputs.half(),
            inputs.to("meta"), inputs[:, :, :0], inputs.numpy(), [inputs], None,
            inputs.to(torch.complex64), inputs.to_sparse(),
        ]  # fmt: skip
        return ways[int(rng.integers(len(ways)))]
    low, bands = inputs
    shape = (1, 1, 6, 4, 4, 2)
    good = _placed(torch.zeros(shape), case)
    coarse = torch.zeros(1, 1, 8, 8)
    levels = [None] * (case["levels"] - 1)
    ways = [
        (low, good), (coarse, [*levels, good.double()]), (coarse, [*levels, good[0]]),
        (coarse[0], [*levels, good]), (coarse.long(), [*levels, good]), low, (low,),
        (low, bands, 1),
        ([coarse], [*levels, good]), (coarse, [*levels, good.to("meta")]),
        (torch.zeros(1, 1, 8, 14), [*levels, good]), (torch.zeros(2, 1, 8, 8), [*levels, good]),
        (coarse, [*levels, good.numpy()]), (None, [None] * case["levels"]),
        (coarse, [*levels, good.flip(0).unsqueeze(0)]), (coarse.to("meta"), [*levels, good]),
        (coarse, [*levels, good.half()]), (coarse[:, :, :0], [*levels, good]),
        (coarse, [*levels, _placed(torch.zeros(1, 1, 5, 4, 4, 2), case)]),
        (coarse, [*levels, _placed(torch.zeros(1, 1, 6, 4, 4, 1), case)]),
    ]  # fmt: skip
    return ways[int(rng.integers(len(ways)))]


if __name__ == "__main__":
    import sys

    found = run(*map(int, sys.argv[1:]))
    print(found)
    for line in [*found.wrong, *found.raw, *found.late]:
        print(line)
