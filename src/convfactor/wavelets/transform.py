"""What the modules share: filters as buffers, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from convfactor.wavelets import checks, kernels
from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import Array, Filters, as_buffer
from convfactor.wavelets.prepared import Settings, forget

Module = TypeVar("Module", bound="Filtered")


class Filtered(nn.Module):
    """Filters under the names of pytorch_wavelets.

    They are read at every call: edited, loaded or moved filters count, and trainable ones get
    their gradients.

    Args:
        filters: Filters in signal-processing order, by name: g synthesis, h analysis; 0 low,
            1 high, 2 the diagonals' own; o level 1, a and b the trees of the others.
        mode: Extension at the border.
        backend: What computes it, see `kernels`.
    """

    def __init__(self, filters: Mapping[str, Array], mode: str, backend: str) -> None:
        """Check the arguments and keep the filters."""
        super().__init__()
        checks.extension(mode)
        kernels.check(backend)
        self.mode = mode
        self.backend = backend
        self.sizes = Sizes()
        self._names = tuple(filters)
        for name, taps in filters.items():
            self.register_buffer(name, as_buffer(taps))

    def retile(self, sizes: Sizes) -> None:
        """Compute the levels in other portions; the result stays the same."""
        self.sizes = sizes

    def _filters(self) -> tuple[Tensor, ...]:
        return tuple([getattr(self, name) for name in self._names])

    def _settings(self) -> Settings:
        return Settings(self._names, self.mode, self.sizes, self.backend)

    def _take_over(self, reference: Any) -> None:
        """Take over filters, device, dtype, training mode, and which filters are trainable."""
        for name in self._names:
            taps = getattr(reference, name)
            copied = taps.detach().clone()
            if isinstance(taps, nn.Parameter):
                copied = nn.Parameter(copied, taps.requires_grad)
            setattr(self, name, copied)
        self.train(reference.training)

    def _apply(self: Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        forget(getattr(self, self._names[0]))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Transform(Filtered):
    """A direction of the transform.

    Args:
        filters: As for `Filtered`.
        biort: As the user gave it.
        qshift: As the user gave it.
        o_dim: Dimension of the orientations.
        ri_dim: Dimension of the real and imaginary parts.
        mode: Extension at the border.
        backend: What computes it, see `kernels`.
    """

    def __init__(
        self,
        filters: Mapping[str, Array],
        biort: Filters,
        qshift: Filters,
        o_dim: int,
        ri_dim: int,
        mode: str,
        backend: str = "auto",
    ) -> None:
        """Check the arguments and keep the filters."""
        checks.dimensions(o_dim, ri_dim)
        super().__init__(filters, mode, backend)
        self.biort = biort
        self.qshift = qshift
        self.o_dim = o_dim
        self.ri_dim = ri_dim

    def extra_repr(self) -> str:
        """Name the arguments."""
        names = [
            f"{key}={value!r}" if isinstance(value, str) else f"{key}=(...)"
            for key, value in (("biort", self.biort), ("qshift", self.qshift))
        ]
        return ", ".join([*names, f"o_dim={self.o_dim}, ri_dim={self.ri_dim}, mode={self.mode!r}"])

    def _take_over(self, reference: Any) -> None:
        super()._take_over(reference)
        self.biort, self.qshift = reference.biort, reference.qshift


def check_reference(reference: nn.Module, name: str) -> Any:
    """Return a module of pytorch_wavelets, or raise TypeError."""
    kind = type(reference)
    if kind.__name__ != name or not kind.__module__.startswith("pytorch_wavelets"):
        raise TypeError(f"reference must be a pytorch_wavelets.{name}, got {kind.__qualname__}")
    return reference
