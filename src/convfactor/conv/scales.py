"""How much the channels around a convolution count, in what it reads and in what is read of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from convfactor.conv.cascade import Cascade

# A channel never counts for less than this beside the one that counts most.
LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class Scales:
    """Weights of the channels in the metric; a kernel is solved as it looks with them applied.

    Attributes:
        inputs: Float64 (C_in,), what the input's channels are scaled by; None for all the same.
        outputs: Float64 (C_out,), what the output's channels are scaled by; None for all the same.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @property
    def inverse(self) -> Scales:
        """What undoes them."""
        inputs, outputs = (
            None if own is None else own.reciprocal() for own in (self.inputs, self.outputs)
        )
        return Scales(inputs, outputs)

    def kernel(self, kernel: Tensor) -> Tensor:
        """Apply them to a kernel, (groups, out, in, H, W)."""
        groups = len(kernel)
        if self.inputs is not None:
            kernel = kernel * self.inputs.to(kernel).view(groups, 1, -1, 1, 1)
        if self.outputs is not None:
            kernel = kernel * self.outputs.to(kernel).view(groups, -1, 1, 1, 1)
        return kernel

    def cascade(self, cascade: Cascade) -> Cascade:
        """Apply them to a cascade, in float64; one that nothing scales stays as it is."""
        stages = list(cascade.stages)
        for index, own in ((0, Scales(self.inputs)), (-1, Scales(None, self.outputs))):
            if own.inputs is None and own.outputs is None:
                continue
            stage = stages[index]
            weight = own.kernel(stage.weight.double().unflatten(0, (stage.groups, -1)))
            stages[index] = replace(stage, weight=weight.flatten(0, 1))
        return replace(cascade, stages=tuple(stages))


def relative(scale: Tensor) -> Tensor | None:
    """Scales of channels beside the largest; None where they are all the same, or no numbers.

    Args:
        scale: (C,), of any sign.
    """
    size = scale.detach().double().abs()
    largest = size.max()
    if not bool(size.isfinite().all() & (largest > 0)) or bool((size == largest).all()):
        return None
    return (size / largest).clamp_min(LEAST)
