"""Wavelet transforms of pytorch_wavelets inside a model, and their faster equals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convfactor.latency import Timing, compare
from convfactor.model import digests
from convfactor.model.finding import Select
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import is_transform
from convfactor.model.trees import leaves

SECONDS = 1.0


@dataclass(eq=False)
class TransformSite:
    """One transform of a model.

    Attributes:
        names: Its qualified names.
        module: The transform.
        calls: The arguments of its calls in one run of the model.
        obstacle: Why it is left alone, or None.
    """

    names: tuple[str, ...]
    module: nn.Module
    calls: list[ModelInputs] = field(default_factory=list)
    obstacle: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A transform beside its faster equal on the calls that the model makes.

    Attributes:
        error: Relative error of the outputs, root mean square.
        before: Seconds of the original, all calls of one run.
        after: Seconds of the other.
    """

    error: float
    before: Timing
    after: Timing


def find(model: nn.Module, inputs: ModelInputs, select: Select | None) -> list[TransformSite]:
    """Run a model once and list its transforms with the calls that they get.

    Args:
        model: The model; it is left as it was.
        inputs: Arguments to run it with.
        select: Keeps a transform as it is where it returns False for (name, module).
    """
    sites: dict[nn.Module, TransformSite] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_transform(module):
            site = sites.setdefault(module, TransformSite((), module))
            site.names += (name,)
    if not sites:
        return []
    for site in sites.values():
        if site.module._forward_hooks or site.module._forward_pre_hooks:
            site.obstacle = "it has hooks, which a new module would lose"
    with ExitStack() as hooks:
        for site in sites.values():
            hook = site.module.register_forward_pre_hook(_recorder(site), with_kwargs=True)
            hooks.callback(hook.remove)
        inputs.run(model)
    for site in sites.values():
        if site.obstacle is None and not site.calls:
            site.obstacle = "not called with the example inputs"
        if select is not None and not select(site.names[0], site.module):
            site.obstacle = "not selected"
    return list(sites.values())


def replacement(module: nn.Module) -> nn.Module:
    """Build the faster equal of a transform.

    Raises:
        ValueError: Its arguments are not supported.
    """
    from convfactor import wavelets  # only models that use wavelets load it

    try:
        made: nn.Module = getattr(wavelets, type(module).__name__).from_module(module)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return made


def fingerprint(module: nn.Module) -> str:
    """Digest of a transform's filters and arguments."""
    digest = hashlib.sha256(f"{type(module).__name__} {_arguments(module)}".encode())
    for taps in module.state_dict().values():  # filters that became parameters count as well
        digest.update(digests.fingerprint(taps).encode())
    return digest.hexdigest()


def measure(site: TransformSite, fast: nn.Module, device: torch.device) -> Comparison:
    """Compare a transform with its equal on the recorded calls, interleaved."""
    wrong = power = 0.0
    for call in site.calls:
        outputs = zip(_floats(call.run(site.module)), _floats(call.run(fast)), strict=True)
        for true, got in outputs:
            wrong += float((got.double() - true.double()).square().sum())
            power += float(true.double().square().sum())

    def run(module: nn.Module) -> Callable[[], object]:
        return lambda: [call.run(module) for call in site.calls]

    before, after = compare([run(site.module), run(fast)], device, SECONDS)
    error = math.sqrt(wrong / power) if power else math.inf if wrong else 0.0
    return Comparison(error, before, after)


def _recorder(site: TransformSite) -> Callable[..., None]:
    """A hook that keeps copies of the arguments."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copies, which later in-place operations of the model do not change.
        site.calls.append(ModelInputs(args, kwargs).map(lambda x: x.detach().clone()))

    return record


def _floats(output: Any) -> Iterator[Tensor]:
    """Tensors of an output."""
    return (leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))


def _arguments(module: nn.Module) -> list[tuple[str, str]]:
    """The arguments that a transform was made with, as far as they are plain values."""
    values = {k: _plain(v) for k, v in vars(module).items() if k != "training"}
    return sorted((k, str(v)) for k, v in values.items() if v is not None)


def _plain(value: Any) -> Any:
    """A string, an integer, or a list of integers, which may say something for every level."""
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, (list, tuple, np.ndarray)) and all(
        isinstance(one, (int, np.integer, np.bool_)) for one in value
    ):
        return [int(one) for one in value]
    return None
