"""Wavelet transforms of pytorch_wavelets inside a model, and their faster equals."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from convfactor.model import digests
from convfactor.model.candidates import unsupported
from convfactor.model.inputs import ModelInputs
from convfactor.model.reasons import Reason
from convfactor.model.sites import Found, Subject, TransformSite, TurnedAway

KINDS = ("DTCWTInverse", "DTCWTForward", "ScatLayer", "ScatLayerj2")


@dataclass(eq=False)
class Transform:
    """One transform while the model is looked at.

    Attributes:
        owners: Its qualified names.
        module: The transform.
        obstacle: Why it is left alone, or None.
        calls: The arguments of its calls so far.
    """

    owners: tuple[str, ...]
    module: nn.Module
    obstacle: Reason | None
    calls: list[ModelInputs] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call it in a table."""
        return self.owners[0]

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of a call: copies, which the model does not change later."""
        self.calls.append(ModelInputs(args, kwargs).map(lambda x: x.detach().clone()))

    def found(self, obstacle: Reason | None) -> Found:
        """Write down what was seen."""
        filters = self.module.state_dict().values()  # buffers, or parameters as in ScatLayer
        dtype = next((str(one.dtype).removeprefix("torch.") for one in filters), "")
        subject = Subject(
            name=self.name,
            kind="transform",
            owners=self.owners,
            weight_name="",
            dtype=dtype,
            kernel_size=(),
            geometry=None,
            shapes=(),
            fingerprint=fingerprint(self.module),
        )
        if obstacle is not None:
            return TurnedAway(subject, obstacle)
        return TransformSite(subject, self.module, tuple(self.calls))


def is_transform(module: nn.Module) -> bool:
    """Whether a module is one that has a faster equal; pytorch_wavelets need not be installed."""
    kind = type(module)
    return kind.__name__ in KINDS and kind.__module__.startswith("pytorch_wavelets.")


def of_model(model: nn.Module) -> dict[nn.Module, Transform]:
    """The transforms among a model's modules."""
    found: dict[nn.Module, Transform] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_transform(module):
            hooked = module._forward_hooks or module._forward_pre_hooks
            text = "it has hooks, which a new module would lose"
            obstacle = unsupported("it has hooks", text) if hooked else None
            found.setdefault(module, Transform((), module, obstacle)).owners += (name,)
    return found


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


def _arguments(module: nn.Module) -> list[tuple[str, str]]:
    """The arguments that a transform was made with, as far as they are plain values."""
    values = {k: _plain(v) for k, v in vars(module).items() if k != "training"}
    return sorted((k, str(v)) for k, v in values.items() if v is not None)


def _plain(value: Any) -> Any:
    """A string, a number, or a list of integers, which may say something for every level."""
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple, np.ndarray)) and all(
        isinstance(one, (int, np.integer, np.bool_)) for one in value
    ):
        return [int(one) for one in value]
    return None
