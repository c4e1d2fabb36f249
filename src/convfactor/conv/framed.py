"""The drop-in module for convolutions of sequences and transposed ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv.fixed import FixedModule
from convfactor.conv.forms import Form
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.weights import ComposedWeight


class CascadeConvNd(FixedModule):
    """Run a cascade in place of a convolution that is no plain ``nn.Conv2d``.

    That is of ``nn.Conv1d``, ``nn.ConvTranspose1d`` or ``nn.ConvTranspose2d``, or of a module that
    pads as much as the image needs. A sequence is given to the cascade as an image of one row. Of a
    transposed convolution the cascade computes all phases as channels, at the resolution of the
    input, and they are interleaved; see ``convfactor.conv.forms``.

    Args:
        plain: The cascade of the plain convolution of images.
        form: How the convolution is that one.

    Example:
        >>> import torch
        >>> from convfactor import optimize
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(8, 8, 9, padding=4))
        >>> _ = torch.nn.init.ones_(model[0].weight)
        >>> fast, plan = optimize(model, torch.rand(1, 8, 64), objective="macs", progress=False)
        >>> fast[0].kernel_size, len(fast[0].stages)
        ((9,), 3)
    """

    def __init__(self, plain: CascadeConv2d, form: Form) -> None:
        """Take the cascade; the attributes are named as in torch's convolutions."""
        super().__init__()
        geometry = plain.geometry
        cut = slice(2 - form.dims, None)
        own = form.transposed
        self.plain = plain
        self.form = form
        self.in_channels = geometry.in_channels
        self.out_channels = form.out_channels(geometry)
        self.kernel_size = form.kernel_size(geometry)
        steps: Sequence[int] = geometry.stride if own is None else own.stride
        added: Sequence[int] = (0, 0) if own is None else own.output_padding
        self.stride = tuple(steps[cut])
        self.dilation = geometry.dilation[cut]
        self.groups = geometry.groups
        self.padding_mode = geometry.padding_mode
        self.transposed = own is not None
        self.padding = geometry.padding[: form.dims] if own is None else own.padding[cut]
        self.output_padding = tuple(added[cut])

    @property
    def geometry(self) -> ConvGeometry:
        """The plain convolution."""
        return self.plain.geometry

    @property
    def stages(self) -> nn.Sequential:
        """The stages of the cascade."""
        return self.plain.stages

    @property
    def weight(self) -> ComposedWeight:
        """The composed kernel as torch's module has it, for code that reads its dtype or device."""
        return ComposedWeight(self)

    @property
    def bias(self) -> Tensor | None:
        """The bias; where the phases have taken up different ones, their mean."""
        bias = self.plain.bias
        if bias is None or self.form.phases == 1:
            return bias
        return bias.view(-1, self.form.phases).mean(1)

    def composed(self) -> Tensor:
        """Compose the kernel from the current weights, in the shape of the original's."""
        return self.form.kernel(self.plain.composed(), self.groups)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the cascade.

        Args:
            input: (N, C_in, ...) or (C_in, ...).
            output_size: As for torch's transposed convolutions, where it chooses among the sizes
                that one size of the input may have come from.

        Returns:
            What the original convolution gives.

        Raises:
            ValueError: A size is asked for that no ``output_padding`` gives.
        """
        output = self.convolve(input, None)
        if output_size is None:
            return output
        dims = self.form.dims
        sides, wanted = tuple(output.shape[-dims:]), tuple(output_size)[-dims:]
        if wanted == sides:
            return output
        least = [side - more for side, more in zip(sides, self.output_padding, strict=True)]
        most = [side + step - 1 for side, step in zip(least, self.stride, strict=True)]
        if len(wanted) != dims or not all(map(_between, least, wanted, most)):
            raise ValueError(
                f"output_size must be between {tuple(least)} and {tuple(most)}, got "
                f"{tuple(output_size)}"
            )
        # What the original computes beyond the size is what zeros behind the input give.
        longer = self.convolve(F.pad(input, (0, 1) * dims), None)
        for axis, side in enumerate(wanted, -dims):
            longer = longer.narrow(axis, 0, side)
        return longer.contiguous()

    def convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the cascade as a functional call does, which brings its own bias."""
        plain = self.plain.convolve(self.form.input(input), self.form.bias(bias))
        return self.form.output(plain)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse to be scripted: ``torch.jit.script`` asks here first."""
        return self.plain.__prepare_scriptable__()

    def extra_repr(self) -> str:
        """Tell the original's integers."""
        kind = "transposed, " if self.transposed else ""
        parts = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{kind}{parts}, stride={self.stride}"


def _between(least: int, value: int, most: int) -> bool:
    """Whether a number is in a range."""
    return least <= value <= most


Layer = CascadeConv2d | CascadeConvNd


def framed(plain: CascadeConv2d, form: Form) -> Layer:
    """Put what a convolution needs around the cascade of its plain one."""
    return plain if form.is_plain else CascadeConvNd(plain, form)


def plain_of(layer: Layer) -> CascadeConv2d:
    """The cascade of the plain convolution in a layer."""
    return layer if isinstance(layer, CascadeConv2d) else layer.plain


def tie(layer: Layer, other: Layer, bias: bool = True) -> None:
    """Share the parameters of another layer of the same structure."""
    plain_of(layer).tie(plain_of(other), bias)
