"""The filters of the dual-tree complex wavelet transform, by name.

Everything that belongs to pytorch_wavelets alone lives here: where its coefficient tables are,
and that signal processing convolves where torch correlates (the one flip of this package).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convfactor.errors import did_you_mean

Array: TypeAlias = NDArray[np.float64]
Filters: TypeAlias = str | Sequence[Any]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _table(argument: str, name: str, keys: tuple[str, ...], band: tuple[str, ...]) -> list[Array]:
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
        names = sorted(file.stem for file in folder.glob("*.npz"))
        raise ValueError(
            f"{argument}={name!r} is unknown; there are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    with np.load(path) as table:
        missing = [key for key in keys if key not in table]
        if missing:
            raise ValueError(f"{argument}={name!r} does not define {', '.join(missing)}")
        if all(key in table for key in band):
            keys = (*keys, *band)
        return [np.asarray(table[key], dtype=np.float64).ravel() for key in keys]


def _select(
    argument: str, filters: Filters, keys: tuple[str, ...], band: tuple[str, ...]
) -> dict[str, Array]:
    """Filters by name, those of the diagonals' own band where there are some."""
    if isinstance(filters, str):
        given = _table(argument, filters, keys, band)
    elif not isinstance(filters, (Iterable, Tensor)):
        raise TypeError(
            f"{argument} is a name or {len(keys)} filters, got {type(filters).__name__}"
        )
    else:
        given = [_taps(argument, taps) for taps in filters]
    names = (*keys, *band)
    if len(given) not in (len(keys), len(names)):
        raise ValueError(
            f"{argument} is a name, {len(keys)} filters ({', '.join(keys)}), or {len(names)} with "
            f"the diagonals' own ({', '.join(band)}); got {len(given)}"
        )
    return dict(zip(names, given, strict=False))


def _taps(argument: str, given: Any) -> Array:
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    try:
        taps = np.asarray(given)
        if np.iscomplexobj(taps) or taps.size not in taps.shape:
            raise ValueError(f"got {taps.dtype} {taps.shape}")
        return taps.astype(np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} needs filters of one dimension, real numbers: {error}") from (
            error
        )


def biorthogonal(biort: Filters, kind: str = "g") -> dict[str, Array]:
    """Level-1 filters in signal-processing order; kind g synthesis, h analysis.

    Returns:
        0o low, 1o high, and 2o where the diagonals have a band filter of their own, after `kind`.
    """
    filters = _select("biort", biort, (f"{kind}0o", f"{kind}1o"), (f"{kind}2o",))
    check_lengths("biort", {name: taps.size for name, taps in filters.items()})
    return filters


def quarter_shift(qshift: Filters, kind: str = "g") -> dict[str, Array]:
    """Filters of the levels above 1: 0a, 0b low trees, 1a, 1b high, 2a, 2b the diagonals' own."""
    keys = tuple(f"{kind}{name}" for name in ("0a", "0b", "1a", "1b"))
    filters = _select("qshift", qshift, keys, (f"{kind}2a", f"{kind}2b"))
    check_lengths("qshift", {name: taps.size for name, taps in filters.items()})
    return filters


def check_lengths(what: str, sizes: dict[str, int]) -> None:
    """Check that level 1 has filters of odd length, and trees a and b of even and equal length.

    Args:
        what: What has the filters.
        sizes: Their numbers of taps by name.

    Raises:
        ValueError: If not.
    """
    for name, size in sizes.items():
        if name.endswith("o") and size % 2 == 0:
            raise ValueError(
                f"{what} needs filters of odd length, which keep the image's size; "
                f"got {size} for {name}"
            )
        if name.endswith("a"):
            other = sizes[f"{name[:-1]}b"]
            if size != other or size % 2 or not size:
                raise ValueError(
                    f"{what} needs filters of even length, equal in trees a and b; "
                    f"got {size} and {other} for {name} and {name[:-1]}b"
                )


def check_filters(names: Sequence[str], filters: Sequence[Any]) -> None:
    """Check the filters that a module holds now, whoever put them there.

    Raises:
        TypeError: If one is not a tensor of real numbers, or not of the first one's dtype.
        ValueError: If one is not on the first one's device, or of a length that does not fit.
    """
    first = filters[0]
    for name, taps in zip(names, filters, strict=True):
        if not isinstance(taps, Tensor) or taps.dtype not in DTYPES:
            kind = taps.dtype if isinstance(taps, Tensor) else type(taps).__name__
            raise TypeError(f"the filter {name} must be a tensor of real numbers, got {kind}")
        if taps.dtype != first.dtype:
            raise TypeError(
                f"the filters {names[0]} and {name} must have one dtype, "
                f"got {first.dtype} and {taps.dtype}"
            )
        if taps.device != first.device:
            raise ValueError(
                f"the filters {names[0]} and {name} must be on one device, "
                f"got {first.device} and {taps.device}"
            )
    check_lengths("the transform", {n: f.numel() for n, f in zip(names, filters, strict=True)})


def as_buffer(taps: Array) -> Tensor:
    """A filter as pytorch_wavelets keeps it: flipped, (1, 1, length, 1), default dtype."""
    return torch.tensor(taps[::-1].copy(), dtype=torch.get_default_dtype()).reshape(1, 1, -1, 1)


def synthesis_kernels(biort: Filters) -> dict[str, Array]:
    """Impulse responses of the level-1 synthesis, as torch would store them.

    `hl` is the band that is low along columns and high along rows, as in pytorch_wavelets
    (whose `lh` holds orientations 15 and 165 degrees, `hl` 75 and 105, `hh` 45 and 135).

    Args:
        biort: Name of the level-1 filters, or the filters (g0o, g1o), or (g0o, g1o, g2o).

    Returns:
        `ll`, `lh`, `hl`, `hh`: float64 arrays (kH, kW) for a correlation with zero padding
        (kH // 2, kW // 2); each has rank 1.

    Raises:
        ValueError: If the filters are unknown or of even length.

    Example:
        >>> from convfactor.wavelets import synthesis_kernels
        >>> {name: kernel.shape for name, kernel in synthesis_kernels(([1, 2, 1], [1])).items()}
        {'ll': (3, 3), 'lh': (1, 3), 'hl': (3, 1), 'hh': (1, 1)}
    """
    filters = [taps[::-1] for taps in biorthogonal(biort).values()]
    low, high, diagonal = filters[0], filters[1], filters[-1]
    return {
        "ll": np.outer(low, low),
        "lh": np.outer(high, low),
        "hl": np.outer(low, high),
        "hh": np.outer(diagonal, diagonal),
    }


def synthesis_conv(biort: Filters) -> nn.Conv2d:
    """The level-1 synthesis as one ordinary convolution, inside the image exact.

    Its four inputs are the lowpass and the real images lh, hl, hh at full resolution; its border
    is the transform's zero mode. An ordinary layer for the solvers: 4 -> 1 channels.

    Args:
        biort: Name of the level-1 filters, or the filters (g0o, g1o), or (g0o, g1o, g2o).

    Returns:
        `Conv2d(4, 1, K, padding=K // 2, bias=False)` in the default dtype, inputs in the order
        ll, lh, hl, hh, the shorter kernels centred in zeros.

    Example:
        >>> from convfactor.wavelets import synthesis_conv
        >>> synthesis_conv(([1, 2, 1], [1]))
        Conv2d(4, 1, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    kernels = synthesis_kernels(biort)
    size = max(kernel.shape[0] for kernel in kernels.values())
    conv = nn.Conv2d(4, 1, size, padding=size // 2, bias=False)
    for channel, kernel in enumerate(kernels.values()):
        rows, cols = ((size - side) // 2 for side in kernel.shape)
        conv.weight.data[0, channel] = torch.from_numpy(np.pad(kernel, ((rows,) * 2, (cols,) * 2)))
    return conv
