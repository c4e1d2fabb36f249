"""The filters of the dual-tree complex wavelet transform, by name.

Everything that belongs to pytorch_wavelets alone lives here: where its coefficient tables are,
and that signal processing convolves where torch correlates (the one flip of this package).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array: TypeAlias = NDArray[np.float64]
Filters: TypeAlias = str | Sequence[Any]


def _table(argument: str, name: str, keys: tuple[str, ...]) -> list[Array]:
    """Read a coefficient file of pytorch_wavelets without importing the package."""
    spec = importlib.util.find_spec("pytorch_wavelets")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"the coefficients of {name!r} come from pytorch_wavelets, which is not installed; "
            "install convfactor[wavelets], or give the filters themselves"
        )
    folder = Path(spec.submodule_search_locations[0]) / "dtcwt" / "data"
    path = folder / f"{name}.npz"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.npz")))
        raise ValueError(f"{argument}={name!r} is unknown; there are {names}")
    with np.load(path) as table:
        missing = [key for key in keys if key not in table]
        if missing:
            raise ValueError(f"{argument}={name!r} does not define {', '.join(missing)}")
        return [np.asarray(table[key], dtype=np.float64).ravel() for key in keys]


def _select(argument: str, filters: Filters, keys: tuple[str, ...]) -> list[Array]:
    if isinstance(filters, str):
        return _table(argument, filters, keys)
    if len(filters) != len(keys):
        raise ValueError(
            f"{argument} is a name or {len(keys)} filters ({', '.join(keys)}), got {len(filters)}"
        )
    return [
        np.asarray(taps.detach().cpu() if isinstance(taps, Tensor) else taps, np.float64).ravel()
        for taps in filters
    ]


def biorthogonal(biort: Filters, kind: str = "g") -> tuple[Array, Array]:
    """Level-1 low and high filter in signal-processing order; kind g synthesis, h analysis."""
    low, high = _select("biort", biort, (f"{kind}0o", f"{kind}1o"))
    for taps in (low, high):
        if taps.size % 2 == 0:
            raise ValueError(
                f"biort needs filters of odd length, which keep the image's size; got {taps.size}"
            )
    return low, high


def quarter_shift(qshift: Filters, kind: str = "g") -> tuple[Array, Array, Array, Array]:
    """Filters of the levels above 1: low tree a and b, high tree a and b."""
    keys = (f"{kind}0a", f"{kind}0b", f"{kind}1a", f"{kind}1b")
    low_a, low_b, high_a, high_b = _select("qshift", qshift, keys)
    for a, b in ((low_a, low_b), (high_a, high_b)):
        if a.size != b.size or a.size % 2 or not a.size:
            raise ValueError(
                "qshift needs filters of even length, equal in trees a and b; "
                f"got {a.size} and {b.size}"
            )
    return low_a, low_b, high_a, high_b


def as_buffer(taps: Array) -> Tensor:
    """A filter as pytorch_wavelets keeps it: flipped, (1, 1, length, 1), default dtype."""
    return torch.tensor(taps[::-1].copy(), dtype=torch.get_default_dtype()).reshape(1, 1, -1, 1)


def synthesis_kernels(biort: Filters) -> dict[str, Array]:
    """Impulse responses of the level-1 synthesis, as torch would store them.

    `hl` is the band that is low along columns and high along rows, as in pytorch_wavelets
    (whose `lh` holds orientations 15 and 165 degrees, `hl` 75 and 105, `hh` 45 and 135).

    Args:
        biort: Name of the level-1 filters, or the pair (g0o, g1o).

    Returns:
        `ll`, `lh`, `hl`, `hh`: float64 arrays (kH, kW) for a correlation with zero padding
        (kH // 2, kW // 2); each has rank 1.

    Raises:
        ValueError: If the filters are unknown or of even length.

    Example:
        >>> {name: kernel.shape for name, kernel in synthesis_kernels(([1, 2, 1], [1])).items()}
        {'ll': (3, 3), 'lh': (1, 3), 'hl': (3, 1), 'hh': (1, 1)}
    """
    low, high = (taps[::-1] for taps in biorthogonal(biort))
    return {
        "ll": np.outer(low, low),
        "lh": np.outer(high, low),
        "hl": np.outer(low, high),
        "hh": np.outer(high, high),
    }


def synthesis_conv(biort: Filters) -> nn.Conv2d:
    """The level-1 synthesis as one ordinary convolution, inside the image exact.

    Its four inputs are the lowpass and the real images lh, hl, hh at full resolution; its border
    is the transform's zero mode. An ordinary layer for the solvers: 4 -> 1 channels.

    Args:
        biort: Name of the level-1 filters, or the pair (g0o, g1o).

    Returns:
        `Conv2d(4, 1, K, padding=K // 2, bias=False)` in the default dtype, inputs in the order
        ll, lh, hl, hh, the shorter kernels centred in zeros.
    """
    kernels = synthesis_kernels(biort)
    size = max(kernel.shape[0] for kernel in kernels.values())
    conv = nn.Conv2d(4, 1, size, padding=size // 2, bias=False)
    for channel, kernel in enumerate(kernels.values()):
        rows, cols = ((size - side) // 2 for side in kernel.shape)
        conv.weight.data[0, channel] = torch.from_numpy(np.pad(kernel, ((rows,) * 2, (cols,) * 2)))
    return conv
