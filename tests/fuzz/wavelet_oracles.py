"""The right results of dual-tree transforms, by pytorch_wavelets and dtcwt in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dtcwt
import numpy as np
import pytorch_wavelets
import torch
from torch import Tensor, nn


def oracle(module: nn.Module, case: dict[str, Any], inputs: Any) -> Any:
    """The right results, in float64, bands as (N, C, 6, H, W, 2)."""
    exact = mapped(inputs, lambda t: t.detach().double())
    taps = {name: one.detach().double() for name, one in module.state_dict().items()}
    if case["levels"] == 0:
        return (exact, None) if case["forward"] else exact[0]
    if not case["forward"]:
        bands = [canonical(b, case) if b is not None and b.ndim == 6 else None for b in exact[1]]
        exact = _lowpass(case, exact[0], bands), bands
    return (_with_dtcwt if case["band"] else _with_original)(case, taps, exact)


def _lowpass(case: dict[str, Any], low: Tensor | None, bands: list[Any]) -> Tensor:
    """Zeros for an absent one, which pytorch_wavelets does not take."""
    if low is not None:
        return low
    given = next(b for b in bands if b is not None)
    height, width = case["sides"][-1]
    return torch.zeros(*given.shape[:2], 2 * height, 2 * width, dtype=torch.float64)


def _with_original(case: dict[str, Any], taps: dict[str, Tensor], exact: Any) -> Any:
    names = (case["biort"], case["qshift"])
    if case["forward"]:
        skip, keep = case["skip"], case["keep"]
        module = pytorch_wavelets.DTCWTForward(
            *names, case["levels"], skip, keep, mode=case["mode"]
        )
    else:
        module = pytorch_wavelets.DTCWTInverse(*names, mode=case["mode"])
    for name, one in taps.items():
        setattr(module, name, one)
    return module(exact)


def _with_dtcwt(case: dict[str, Any], taps: dict[str, Tensor], exact: Any) -> Any:
    flat = {name[1:]: one.flatten().flip(0).numpy() for name, one in taps.items()}

    def bank(suffixes: tuple[str, ...], digits: str) -> tuple[np.ndarray, ...]:
        """As dtcwt orders filters, the same for both directions, of which one is used."""
        return tuple(flat[d + s] for d in digits for _ in "hg" for s in suffixes)

    biort = bank(("o",), "012" if "2o" in flat else "01")
    qshift = bank(("a", "b"), "012" if "2a" in flat else "01")
    transform = dtcwt.Transform2d(biort, qshift)
    if case["forward"]:
        return _analyzed(transform, case, exact)
    low, bands = exact
    highs = [
        torch.zeros(*low.shape[:2], 6, *case["sides"][j], 2, dtype=torch.float64)
        if b is None
        else b
        for j, b in enumerate(bands)
    ]
    planes = [
        transform.inverse(
            dtcwt.Pyramid(
                low[n, c].numpy(),
                tuple(torch.view_as_complex(b[n, c].contiguous()).permute(1, 2, 0).numpy()
                      for b in highs),
            )
        )
        for n, c in np.ndindex(*low.shape[:2])
    ]  # fmt: skip
    image = torch.from_numpy(np.stack(planes))
    return image.reshape(*low.shape[:2], *image.shape[1:])


def _analyzed(transform: Any, case: dict[str, Any], image: Tensor) -> Any:
    pyramids = [
        transform.forward(image[n, c].numpy(), case["levels"], include_scale=True)
        for n, c in np.ndindex(*image.shape[:2])
    ]
    shape = image.shape[:2]

    def planes(parts: list[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(parts))
        return stacked.reshape(*shape, *stacked.shape[1:])

    highs, scales = [], []
    for level in range(case["levels"]):
        bands = planes([p.highpasses[level] for p in pyramids]).permute(0, 1, 4, 2, 3)
        scale = planes([p.scales[level] for p in pyramids])
        nothing = torch.zeros([], dtype=torch.float64)
        highs.append(nothing if case["skip"][level] else torch.view_as_real(bands.contiguous()))
        scales.append(scale if case["keep"][level] else nothing)
    low = planes([p.lowpass for p in pyramids])
    return (scales if any(case["keep"]) else low), highs


def canonical(bands: Tensor, case: dict[str, Any]) -> Tensor:
    o_dim, ri_dim = (d % 6 for d in case["dims"])
    rest = [d for d in range(6) if d not in (o_dim, ri_dim)]
    return bands.permute(rest[0], rest[1], o_dim, rest[2], rest[3], ri_dim)


def mapped(nested: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(nested, Tensor):
        return function(nested)
    if isinstance(nested, (list, tuple)):
        return type(nested)(mapped(one, function) for one in nested)
    return nested
