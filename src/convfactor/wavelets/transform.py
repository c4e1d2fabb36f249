"""What both directions of the transform share: filters as buffers, and what derives from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from convfactor.wavelets.banded import Taps
from convfactor.wavelets.banks import Bank, Sizes, bank, level1_taps, replace
from convfactor.wavelets.filters import Array, Filters, as_buffer
from convfactor.wavelets.tuning import fastest_sizes

MODES = (
    "symmetric",
    "zero",
    "per",
    "periodization",
    "constant",
    "reflect",
    "replicate",
    "periodic",
)

Module = TypeVar("Module", bound="Transform")


class Banks(NamedTuple):
    """The filters of all levels.

    Attributes:
        level1: Level 1.
        level1_symmetric: Level 1 with symmetric extension, whatever the mode.
        above: All other levels.
    """

    level1: Bank
    level1_symmetric: Bank
    above: Bank


class Transform(nn.Module):
    """Six filters under the names of pytorch_wavelets, and the matrices made from them.

    Args:
        kind: First letter of the filters' names: g synthesis, h analysis.
        filters: Low and high filter of level 1; low a, low b, high a, high b of the others.
        biort: As the user gave it.
        qshift: As the user gave it.
        o_dim: Dimension of the orientations.
        ri_dim: Dimension of the real and imaginary parts.
        mode: Extension at the border.
    """

    def __init__(
        self,
        kind: str,
        filters: Iterable[Array],
        biort: Filters,
        qshift: Filters,
        o_dim: int,
        ri_dim: int,
        mode: str,
    ) -> None:
        """Check the arguments and keep the filters."""
        super().__init__()
        for name, dim in (("o_dim", o_dim), ("ri_dim", ri_dim)):
            if not -6 <= dim < 6:
                raise ValueError(f"{name} must lie in -6..5, got {dim}")
        if o_dim % 6 == ri_dim % 6:
            raise ValueError(f"o_dim and ri_dim must differ, got {o_dim} and {ri_dim}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.biort = biort
        self.qshift = qshift
        self.o_dim = o_dim
        self.ri_dim = ri_dim
        self.mode = mode
        self.sizes = Sizes()
        self._filters = [kind + suffix for suffix in ("0o", "1o", "0a", "0b", "1a", "1b")]
        for name, taps in zip(self._filters, filters, strict=True):
            self.register_buffer(name, as_buffer(taps))
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]
        self._prepare()

    def retile(self, sizes: Sizes) -> None:
        """Compute the levels in other portions; the result stays the same."""
        self.sizes = sizes
        self._prepare()

    def extra_repr(self) -> str:
        """Name the arguments."""
        names = [
            f"{key}={value!r}" if isinstance(value, str) else f"{key}=(...)"
            for key, value in (("biort", self.biort), ("qshift", self.qshift))
        ]
        return ", ".join([*names, f"o_dim={self.o_dim}, ri_dim={self.ri_dim}, mode={self.mode!r}"])

    def _above(self, filters: list[Tensor]) -> tuple[Taps, Taps]:
        """Low and high filter of the levels above 1 from those of both trees."""
        raise NotImplementedError

    def _keep_fastest(self, inputs: object) -> dict[Sizes, float]:
        times = fastest_sizes(self, inputs)
        self.retile(min(times, key=times.__getitem__))
        return times

    def _copy_filters(self, reference: nn.Module) -> None:
        """Take over filters, device, dtype and training mode."""
        buffer = next(reference.buffers())
        self.to(buffer.device, buffer.dtype)
        self.load_state_dict(reference.state_dict())
        self.train(reference.training)

    def _banks(self) -> Banks:
        return replace(self._names, str, self._buffers.__getitem__)

    def _prepare(self) -> None:
        """Derive the matrices from the filters, in float64, and keep them as buffers."""
        buffers = [self.get_buffer(name) for name in self._filters]
        device, dtype = buffers[0].device, buffers[0].dtype
        # On the meta device the shapes alone count.
        filters = [
            torch.zeros(buffer.shape, dtype=torch.float64, device="cpu")
            if buffer.is_meta
            else buffer.to("cpu", torch.float64)
            for buffer in buffers
        ]

        def level1(symmetric: bool) -> Bank:
            low, high = (level1_taps(taps, symmetric) for taps in filters[:2])
            return bank(low, high, self.sizes, dtype, device)

        above = bank(*self._above(filters[2:]), self.sizes, dtype, device)
        banks = Banks(level1(self.mode == "symmetric"), level1(True), above)
        names: list[str] = []

        def keep(tensor: Tensor) -> str:
            names.append(f"block{len(names)}")
            self.register_buffer(names[-1], tensor, persistent=False)
            return names[-1]

        self._names = replace(banks, Tensor, keep)

    def _apply(self: Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self


def check_reference(reference: nn.Module, name: str) -> Any:
    """Return a module of pytorch_wavelets, or raise TypeError."""
    kind = type(reference)
    if kind.__name__ != name or not kind.__module__.startswith("pytorch_wavelets"):
        raise TypeError(f"reference must be a pytorch_wavelets.{name}, got {kind.__qualname__}")
    return reference


def _prepare_again(module: Transform, incompatible: object) -> None:
    module._prepare()
