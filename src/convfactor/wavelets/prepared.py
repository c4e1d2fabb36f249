"""From the filters that a transform holds at this moment to the banks of its levels.

The filters are read at every call, so that whatever was done to them counts. Where they are plain
values and the same as at the last call, the banks of that call serve again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from convfactor.wavelets.banded import Taps
from convfactor.wavelets.banks import Bank, Sizes, analysis_taps, level1_taps, synthesis_taps
from convfactor.wavelets.checks import extension
from convfactor.wavelets.filters import check_filters

ROLES = (("low", 0), ("high", 1), ("band", 2))


class Settings(NamedTuple):
    """What is done with the filters; plain values, which `torch.fx` can write down.

    Attributes:
        names: Names of the filters: g synthesis, h analysis; 0 low, 1 high, 2 the diagonals' band;
            o level 1, a and b the trees above.
        mode: Extension at the border.
        sizes: How the levels are computed.
        backend: By what, see `kernels`.
    """

    names: tuple[str, ...]
    mode: str
    sizes: Sizes
    backend: str = "auto"


class Banks(NamedTuple):
    """The filters of all levels.

    Attributes:
        level1: Level 1.
        level1_symmetric: Level 1 with symmetric extension, whatever the mode.
        above: All other levels; as level 1 with symmetric extension if they have no filters.
    """

    level1: Bank
    level1_symmetric: Bank
    above: Bank


class _Kept(NamedTuple):
    filters: tuple[Tensor, ...]
    versions: tuple[tuple[int, int], ...]
    banks: Banks


# By first filter, then by what else the banks depend on; gone with the filter.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def banks(filters: Sequence[Tensor], settings: Settings) -> Banks:
    """The banks of all levels.

    On the CPU filters are compared by value. On other devices, where that would wait for all work
    in flight, they are compared by identity and version, which every in-place operation counts up
    save one through `.data`.

    Args:
        filters: Filters (1, 1, length, 1) in correlation order.
        settings: Their names and what is done with them.

    Raises:
        TypeError: If they are not floating-point tensors of one dtype.
        ValueError: If they are not on one device, or of lengths that do not fit.
    """
    if _traced() or not _settled(filters):
        return _followed(filters, settings)
    first = filters[0]
    kept: dict[tuple[object, ...], _Kept] = _kept.setdefault(first, {})
    key = (settings, first.dtype, first.device)
    found = kept.get(key)
    if found is None or not _unchanged(found, filters):
        found = kept[key] = _keep(filters, settings)
    return found.banks


def forget(filter: Tensor) -> None:
    """Drop what is kept for a first filter."""
    _kept.pop(filter, None)


def _traced() -> bool:
    """Whether a graph is written down, in which the filters must not become constants."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing


def _settled(filters: Sequence[Tensor]) -> bool:
    """Whether filters are plain values that no derivative, batch or mode of torch follows."""
    if torch._C._len_torch_dispatch_stack():
        return False
    recorded = torch.is_grad_enabled()
    for one in filters:
        if type(one) not in (Tensor, nn.Parameter) or (recorded and one.requires_grad):
            return False
        if not one.is_cpu and (one.is_meta or one.is_inference()):
            return False
        if torch._C._functorch.is_functorch_wrapped_tensor(one):
            return False
        if forward_ad.unpack_dual(one).tangent is not None:
            return False
    return True


def _unchanged(kept: _Kept, filters: Sequence[Tensor]) -> bool:
    if kept.versions:
        same = all(one is other for one, other in zip(kept.filters, filters[1:], strict=True))
        return same and kept.versions == _versions(filters)
    return all(
        one.dtype == other.dtype and other.is_cpu and torch.equal(one, other)
        for one, other in zip(kept.filters, filters, strict=True)
    )


def _versions(filters: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((one._version, one.data_ptr()) for one in filters)


def _keep(filters: Sequence[Tensor], settings: Settings) -> _Kept:
    """Derive the banks in float64, and remember what from."""
    check_filters(settings.names, filters)
    dtype, device = filters[0].dtype, filters[0].device
    with torch.inference_mode(False), torch.no_grad():
        exact = [one.detach().to("cpu", torch.float64, copy=True) for one in filters]
        made = _build(exact, settings, dtype, device, fixed=True)
        if _by_value(device):
            return _Kept(tuple(one.detach().clone() for one in filters), (), made)
    # Not the first, which would live as long as what is kept for it.
    return _Kept(tuple(filters[1:]), _versions(filters), made)


def _by_value(device: torch.device) -> bool:
    """Whether filters are compared by value, as that waits for nothing."""
    return device.type == "cpu"


def _followed(filters: Sequence[Tensor], settings: Settings) -> Banks:
    """Derive the banks so that gradients, tangents and graphs see how."""
    check_filters(settings.names, filters)
    dtype = filters[0].dtype
    exact = [one.to(torch.promote_types(dtype, torch.float32)) for one in filters]
    fixed = torch.compiler.is_compiling() and not any(one.requires_grad for one in filters)
    return _build(exact, settings, dtype, filters[0].device, fixed)


def _build(
    filters: Sequence[Tensor],
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    fixed: bool,
) -> Banks:
    extension(settings.mode)
    named = {name[1:]: taps for name, taps in zip(settings.names, filters, strict=True)}
    above = synthesis_taps if settings.names[0].startswith("g") else analysis_taps

    def bank(taps: dict[str, Taps]) -> Bank:
        return Bank(taps, settings.sizes, dtype, device, fixed, settings.backend)

    def level1(symmetric: bool) -> Bank:
        return bank(
            {
                role: level1_taps(named[f"{digit}o"], symmetric)
                for role, digit in ROLES
                if f"{digit}o" in named
            }
        )

    symmetric = level1(True)
    trees = {
        role: above(named[f"{digit}a"], named[f"{digit}b"], role != "low")
        for role, digit in ROLES
        if f"{digit}a" in named
    }
    return Banks(
        symmetric if settings.mode == "symmetric" else level1(False),
        symmetric,
        bank(trees) if trees else symmetric,
    )
