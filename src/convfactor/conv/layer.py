"""The drop-in module that runs a cascade in place of a convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv import formats
from convfactor.conv.cascade import Cascade, Factorized
from convfactor.conv.fitting import Zeros, check_fit, kernel_on_taps
from convfactor.conv.fixed import FixedModule
from convfactor.conv.forms import PLAIN
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.structure import Structure
from convfactor.conv.weights import ComposedWeight

_FORMATS = ("memory_format", "output_format")


L = TypeVar("L", bound="CascadeConv2d")


class CascadeConv2d(FixedModule):
    """Run a cascade in place of one ``nn.Conv2d``: same call, same output size, exact borders.

    The input is padded once by the original amount in the original mode; then it is extended with
    zeros, or cropped, to the cascade's span, and every stage runs unpadded, but for zeros that it
    can add by itself.

    The stages are plain ``nn.Conv2d`` in ``stages``; the bias belongs to the last one. The other
    attributes are named as in ``nn.Conv2d`` and tell the original's integers, except that an
    unequal ``padding`` reads (left, right, top, bottom).

    Args:
        geometry: The convolution to stand in for.
        structure: Its cascade, without weights.
        bias: Whether the last stage has a bias.
        memory_format: Format in which the stages run; None takes that of the input and the
            weights, as torch does.
        output_format: Format of the output where the stages run in another one; None takes the
            input's, as a convolution with a contiguous weight does.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: ``structure`` does not fit ``geometry``, or a format is not one of images.

    Example:
        >>> import torch
        >>> from convfactor import Cascade, CascadeConv2d, Stage
        >>> conv, box = torch.nn.Conv2d(1, 1, 5, padding=2), Stage(torch.ones(1, 1, 3, 3))
        >>> layer = CascadeConv2d.from_conv(conv, Cascade((box, box)))
        >>> layer(torch.rand(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    form = PLAIN

    def __init__(
        self,
        geometry: ConvGeometry,
        structure: Structure,
        bias: bool = True,
        memory_format: torch.memory_format | None = None,
        output_format: torch.memory_format | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the stages with torch's random start values."""
        super().__init__()
        check_fit(geometry, structure)
        for name, value in zip(_FORMATS, (memory_format, output_format), strict=True):
            formats.check_format(value, name)
        self.geometry = geometry
        self.structure = structure
        self.memory_format = memory_format
        self.output_format = output_format

        left, right, top, bottom = geometry.padding
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = (top, left) if (top, left) == (bottom, right) else geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding_mode = geometry.padding_mode

        zeros = Zeros.of(geometry, structure)
        self._zeros = zeros.before
        self._lone = geometry.groups == geometry.out_channels > 1
        self._keeps_format = memory_format is None and formats.keeps_format(structure, self._lone)
        biases = [False] * (len(structure.stages) - 1) + [bias]
        each = zip(structure.stages, zeros.stages, biases, strict=True)
        self.stages = nn.Sequential(
            *(
                nn.Conv2d(**asdict(stage), padding=pads, bias=own, device=device, dtype=dtype)
                for stage, pads, own in each
            )
        )
        weight_format = output_format if memory_format is None else memory_format
        if weight_format is not None:
            for conv in _convolutions(self.stages):
                data = conv.weight.detach().to(memory_format=weight_format)
                conv.weight = nn.Parameter(data)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        f: Cascade | Factorized,
        memory_format: torch.memory_format | None = None,
    ) -> CascadeConv2d:
        """Build the layer that replaces a module, with its dtype, device and flags.

        Args:
            conv: The original.
            f: Its cascade, or its factorization, whose ``bias_shift`` goes into the bias.
            memory_format: Format in which the stages run; None leaves it to torch.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv2d``.
            ValueError: The cascade does not fit ``conv``.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
        geometry = ConvGeometry.from_conv(conv)
        layer = cls.from_weight(conv.weight, conv.bias, f, geometry, memory_format)
        return layer.train(conv.training)

    @classmethod
    def from_weight(
        cls: type[L],
        weight: Tensor,
        bias: Tensor | None,
        f: Cascade | Factorized,
        geometry: ConvGeometry,
        memory_format: torch.memory_format | None = None,
    ) -> L:
        """Build the layer that replaces a functional call ``F.conv2d(x, weight, bias, ...)``.

        Args:
            weight: The original weight, (C_out, C_in/groups, kH, kW); its dtype, device,
                ``requires_grad`` and memory format are taken over, its values are not read.
            bias: The original bias, (C_out,), or None.
            f: The cascade, or the factorization, whose ``bias_shift`` goes into the bias.
            geometry: The call's geometry.
            memory_format: Format in which the stages run; None leaves it to torch.

        Raises:
            ValueError: The cascade does not fit ``geometry``.
        """
        cascade = f if isinstance(f, Cascade) else f.cascade
        trains = weight.requires_grad if bias is None else bias.requires_grad
        if not isinstance(f, Cascade):
            shift = f.bias_shift.detach()
            if bias is not None:
                bias = bias.detach().to(shift) + shift
            elif shift.any():
                bias = shift
        layer = cls(
            geometry,
            cascade.structure,
            bias=bias is not None,
            memory_format=memory_format,
            output_format=torch.channels_last if formats.is_channels_last(weight) else None,
            device="meta",  # draws no random weights
            dtype=weight.dtype,
        ).to_empty(device=weight.device)
        with torch.no_grad():
            for conv, stage in zip(_convolutions(layer.stages), cascade.stages, strict=True):
                conv.weight.copy_(stage.weight).requires_grad_(weight.requires_grad)
                if conv.bias is not None and bias is not None:
                    conv.bias.copy_(bias).requires_grad_(trains)
        return layer

    def tie(self, other: CascadeConv2d, bias: bool = True) -> None:
        """Share the parameters of another layer of the same structure.

        Args:
            other: The layer to share with.
            bias: Whether the bias is shared as well.
        """
        for mine, its in zip(_convolutions(self.stages), _convolutions(other.stages), strict=True):
            mine.weight = its.weight
            if bias:
                mine.bias = its.bias

    def cascade(self) -> Cascade:
        """Read the cascade back from the current weights, which it shares."""
        weights = [conv.weight.detach() for conv in _convolutions(self.stages)]
        return Cascade.of(self.structure, weights)

    @property
    def weight(self) -> ComposedWeight:
        """The composed kernel as ``nn.Conv2d`` has it, for code that reads its dtype or device."""
        return ComposedWeight(self)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which belongs to the last stage."""
        return _convolutions(self.stages)[-1].bias

    def composed(self) -> Tensor:
        """Compose the kernel from the current weights, for gradients as well.

        Returns:
            (C_out, C_in/groups, kH, kW) in the dtype of the stages, on the taps of the original
            kernel; what the cascade spans beyond them is left out.
        """
        weights = [conv.weight for conv in _convolutions(self.stages)]
        kernel = kernel_on_taps(Cascade.of(self.structure, weights), self.geometry)
        return kernel.to(weights[0].dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the cascade.

        Args:
            input: (N, C_in, H, W) or (C_in, H, W).

        Returns:
            (N, C_out, H_out, W_out) or (C_out, H_out, W_out), as the original convolution.
        """
        return self.convolve(input, None)

    def convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the cascade as a functional call does, which brings its own bias.

        Args:
            input: (N, C_in, H, W) or (C_in, H, W).
            bias: (C_out,) to add to the layer's own, or None.
        """
        if self.padding_mode != "zeros":
            input = F.pad(input, self.geometry.padding, mode=self.padding_mode)
        x = formats.with_pixels(input) if self._zeros else input
        for amounts in self._zeros:
            x = F.pad(x, amounts)
        if self.memory_format is not None:
            x = formats.to_format(x, self.memory_format)
        *hidden, last = self.stages
        for stage in hidden:
            x = stage(x)
        x = last(x) if bias is None else _biased(last, x, bias)
        return formats.as_original(
            x,
            input,
            self.memory_format,
            self.output_format,
            self._lone,
            self._keeps_format,
            self.padding_mode == "zeros" and len(self.padding) == 4,
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse to be scripted: ``torch.jit.script`` asks here first."""
        raise TypeError(
            "torch.jit.script can't compile a CascadeConv2d; use torch.export, torch.compile or "
            "torch.jit.trace"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Name the formats, which torch.save can't write otherwise."""
        state = self.__dict__.copy()
        for name in _FORMATS:
            state[name] = None if state[name] is None else str(state[name]).removeprefix("torch.")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look the formats up by their names."""
        found = {name: state[name] and getattr(torch, state[name]) for name in _FORMATS}
        super().__setstate__({**state, **found})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Tell the original's geometry, as ``nn.Conv2d`` does, and the cascade."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"] if self.stride != (1, 1) else []
        parts += [f"padding={self.padding}"] if any(self.padding) else []
        parts += [f"dilation={self.dilation}"] if self.dilation != (1, 1) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        parts += [f"cascade={self.structure}"]
        parts += [f"memory_format={self.memory_format}"] if self.memory_format is not None else []
        return ", ".join(parts)


def _biased(stage: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Run a stage with a bias added to its own."""
    assert isinstance(stage, nn.Conv2d)
    total = bias if stage.bias is None else stage.bias + bias
    result: Tensor = stage._conv_forward(x, stage.weight, total)
    return result


def _convolutions(stages: Iterable[nn.Module]) -> list[nn.Conv2d]:
    """List the stages as what they are."""
    return [stage for stage in stages if isinstance(stage, nn.Conv2d)]
