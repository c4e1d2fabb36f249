"""Layers whose integers are read like those of torch's convolutions, and can't be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

INTEGERS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode", "output_padding",
)  # fmt: skip


class FixedModule(nn.Module):
    """A module that was made for one convolution.

    torch's own convolutions read their integers in every call, so that a forward may set them;
    here another value would be read by nobody.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises:
            AttributeError: It is one of the integers, and had another value.
        """
        if name in INTEGERS and name in vars(self) and not _same(value, vars(self)[name]):
            raise AttributeError(
                f"{name} of a {type(self).__name__} can't be set to {value!r}: its cascade was "
                f"made for {vars(self)[name]!r}; set it before the model is optimized, or leave "
                "the layer out by select"
            )
        super().__setattr__(name, value)


def _same(value: object, known: object) -> bool:
    """Whether a value means what is known; one int stands for as many as there are."""
    if isinstance(known, tuple):
        many = isinstance(value, Sequence) and not isinstance(value, str)
        return (tuple(value) if many else (value,) * len(known)) == known  # type: ignore[arg-type]
    return value == known
