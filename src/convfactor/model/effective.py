"""The convolution that a module computes, read off its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv.calls import ConvCall, read_call
from convfactor.conv.forms import Form
from convfactor.conv.geometry import ConvGeometry, PaddingMode
from convfactor.conv.same import Same
from convfactor.model.copies import isolated
from convfactor.model.digests import digest
from convfactor.model.outputs import close
from convfactor.model.watching import Onlooker

MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")


class NotPlainError(ValueError):
    """A module computes more than one convolution with fixed numbers."""


@dataclass(frozen=True, eq=False)
class Effective:
    """What a module computes in evaluation mode.

    Attributes:
        weight: As torch stores it.
        bias: The bias, or None.
        form: How it is a plain convolution of images.
        geometry: The integers of that one.
    """

    weight: Tensor
    bias: Tensor | None
    form: Form
    geometry: ConvGeometry


def effective(module: nn.Module, form: Form, size: tuple[int, ...]) -> Effective:
    """Read the convolution that a module computes off a call, and check that it is no more.

    The one convolution that its forward calls is taken, with the padding that the forward adds to
    the input; the result must be what the module gives, on images of several sizes. Zeros whose
    number depends on the size are taken where they are those of TensorFlow's "same".

    Args:
        module: The module; it is left as it was.
        form: How its convolution is a plain one.
        size: Shape of an image that the plain one reads.

    Raises:
        NotPlainError: It computes something else.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    form = replace(form, same=None)
    with _evaluated(module), isolated(0), torch.no_grad():
        images = [_image(size, 0, like)]
        calls = [_call(module, form, images[0])]
        for more in range(1, max(calls[0].geometry.stride) + 1):
            images.append(_image(size, more, like))
            calls.append(_call(module, form, images[-1]))
    first = calls[0]
    if not all(torch.equal(other.weight, first.weight) for other in calls):
        raise NotPlainError("its weight depends on the input")
    if all(other.geometry == first.geometry for other in calls):
        return first
    same = Same.of(first.geometry)
    for image, call in zip(images, calls, strict=True):
        pads = same.pads(image.shape[-2], image.shape[-1])
        if form.dims != 2 or call.geometry != replace(first.geometry, padding=pads):
            raise NotPlainError("its padding depends on the size of the input")
    geometry = replace(first.geometry, padding=(0, 0, 0, 0))
    return replace(first, form=replace(form, same=same), geometry=geometry)


def state_digest(module: nn.Module) -> str:
    """Digest of what a module computes its weight from."""
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}".encode()
    tensors = {"": torch.frombuffer(bytearray(name), dtype=torch.uint8)}
    tensors |= dict(module.named_parameters()) | dict(module.named_buffers())
    for name, part in module.named_modules():  # such as a gain that is a number
        own = {k: v for k, v in vars(part).items() if k[0] != "_" and k != "training"}
        text = repr(sorted((k, v) for k, v in own.items() if isinstance(v, (int, float, str))))
        tensors[f"{name}:"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return digest(tensors)


class _Recorder(Onlooker):
    """Keeps the convolutions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[ConvCall] = []

    def look(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Keep a convolution."""
        call = read_call(func, args, kwargs)
        if call is not None:
            self.calls.append(call)


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Have a module in evaluation mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _image(size: tuple[int, ...], more: int, like: Tensor) -> Tensor:
    """A random image of one sample, larger by some pixels."""
    *_, channels, height, width = size
    rows = height + more if height > 1 else height
    return torch.randn(1, channels, rows, width + more).to(like.device, like.dtype)


def _call(module: nn.Module, form: Form, image: Tensor) -> Effective:
    """Run a module on an image, and read what it computed."""
    x = image.squeeze(-2) if form.dims == 1 else image
    with _Recorder() as recorder:
        try:
            output = module(x)
        except Exception as error:  # whatever a user's forward raises
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise NotPlainError(f"its forward does not take an image alone: {reason}") from error
    if len(recorder.calls) != 1:
        raise NotPlainError(f"its forward calls {len(recorder.calls)} convolutions")
    call = recorder.calls[0]
    if call.geometry is None or call.form != form:
        raise NotPlainError(call.obstacle or "its forward calls another kind of convolution")
    geometry = _padded(image, form.input(call.input), call.geometry)
    trains = any(parameter.requires_grad for parameter in module.parameters())
    weight, bias = (
        None if value is None else value.detach().clone().requires_grad_(trains)
        for value in (call.weight, call.bias)
    )
    assert weight is not None
    same = isinstance(output, Tensor) and output.shape[:1] == x.shape[:1]
    if not same or not close(output, form.convolve(x, weight, bias, geometry)):
        raise NotPlainError("it computes more than its convolution")
    return Effective(weight, bias, form, geometry)


def _padded(image: Tensor, padded: Tensor, geometry: ConvGeometry) -> ConvGeometry:
    """Add to a geometry what was padded before the convolution was called."""
    if padded.shape == image.shape and torch.equal(padded, image):
        return geometry
    rows, cols = (padded.shape[i] - image.shape[i] for i in (-2, -1))
    own = geometry.padding
    for mode in MODES if min(rows, cols) >= 0 else ():
        if mode != "zeros" and any(own):
            break
        for top in range(rows + 1):
            for left in range(cols + 1):
                pads = (left, cols - left, top, rows - top)
                if _is_padded(image, padded, pads, mode):
                    sums = [a + b for a, b in zip(own, pads, strict=True)]
                    return replace(
                        geometry, padding=(sums[0], sums[1], sums[2], sums[3]), padding_mode=mode
                    )
    raise NotPlainError("it changes the input before it convolves")


def _is_padded(
    image: Tensor, padded: Tensor, pads: tuple[int, int, int, int], mode: PaddingMode
) -> bool:
    """Whether an image with a padding is another image."""
    left, _, top, _ = pads
    height, width = image.shape[-2:]
    if not torch.equal(padded[..., top : top + height, left : left + width], image):
        return False
    try:
        whole = F.pad(image, pads, mode="constant" if mode == "zeros" else mode)
    except RuntimeError:  # more than the mode can fill
        return False
    return torch.equal(whole, padded)
