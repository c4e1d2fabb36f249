"""Calibration batches as users have them: read, stripped of labels, checked and split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from convfactor.model.inputs import Inputs, ModelInputs, Workload
from convfactor.model.trees import leaves
from convfactor.plans.circumstances import HeldOut

HELD_OUT_FRACTION = 0.25
NOT_BATCHES = (Tensor, np.ndarray, str, bytes, os.PathLike, Mapping)
# What is told apart beside tensors and arrays; other objects may have no fixed text.
VALUES = (bool, int, float, complex, str, bytes, np.generic)
# Parts of the keys under which data sets hold what a model is trained to give.
LABELS = ("label", "target")


@dataclass(frozen=True)
class Split:
    """Calibration batches, part to fit on and part to verify on.

    Attributes:
        fit: What to fit on.
        held_out: What to verify on.
        labels: Where the labels were that were dropped; empty where there were none.
    """

    fit: tuple[ModelInputs, ...]
    held_out: tuple[ModelInputs, ...]
    labels: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[ModelInputs, ...]:
        """All batches."""
        return (*self.fit, *self.held_out)

    @property
    def identity(self) -> HeldOut:
        """How much there is, and a digest that tells data apart."""
        digest = hashlib.sha256()
        for batch in self.all:
            for path, value in leaves((batch.args, dict(batch.kwargs))):
                if isinstance(value, Tensor):
                    plain = value.detach().cpu().contiguous().flatten()
                    digest.update(plain.view(torch.uint8).numpy().tobytes())
                elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
                    digest.update(f"{path} {value.dtype} {value.shape}".encode())
                    digest.update(value.tobytes())
                elif isinstance(value, VALUES):
                    digest.update(f"{path} {value!r}".encode())
        return HeldOut(len(self.fit), len(self.held_out), digest.hexdigest(), self.labels)


def split(calibration: Iterable[Any], *examples: ModelInputs) -> Split:
    """Read calibration batches and keep a quarter of them, at least one, for verification.

    Labels are dropped: what a batch holds beside something that looks like the example inputs. A
    single batch is split along its first dimension.

    Args:
        calibration: Batches as the model takes them, or with labels; an iterable is read once and
            kept.
        examples: The example inputs, of which a batch must have the shapes of one, but for the
            first dimension and the image size.

    Raises:
        TypeError: ``calibration`` is not an iterable of batches, or a batch holds no tensor.
        ValueError: It is empty, holds one sample only, or a batch does not fit the example.
    """
    if isinstance(calibration, NOT_BATCHES) or not isinstance(calibration, Iterable):
        raise TypeError(
            "calibration must be an iterable of batches, for instance a list of tensors, "
            f"got {_described(calibration)}{_way_out(calibration)}"
        )
    batches, labels = [], set[str]()
    for i, value in enumerate(calibration):
        if isinstance(value, Inputs) and value.weight != 1:
            raise ValueError(
                f"calibration batch {i} must count once, got times({value.weight:g}); times is for "
                "example_inputs, repeat the batch instead"
            )
        batch, places = _unlabelled(value, examples)
        batches.append(read_inputs(f"calibration batch {i}", batch))
        _check(i, batches[-1], examples)
        labels.update(places)
    if not batches:
        raise ValueError(
            "calibration must hold at least one batch, got none; leave it out for white noise"
        )
    if len(batches) == 1:
        batches = _samples(batches[0])
    held = max(1, round(HELD_OUT_FRACTION * len(batches)))
    # Evenly spread, so that sorted data is not split into different kinds of picture.
    chosen = {round((i + 0.5) * len(batches) / held - 0.5) for i in range(held)}
    return Split(
        tuple(b for i, b in enumerate(batches) if i not in chosen),
        tuple(b for i, b in enumerate(batches) if i in chosen),
        tuple(sorted(labels)),
    )


def read_workload(value: Any) -> Workload:
    """Read ``example_inputs``: one call in any form, or several as ``Inputs``.

    Raises:
        TypeError: Some are ``Inputs`` and some are not, or one holds no tensor.
        ValueError: All tensors of one are empty.
    """
    several = isinstance(value, (tuple, list)) and any(isinstance(one, Inputs) for one in value)
    if not several:
        call = read_inputs("example_inputs", value)
        return Workload((call,), (value.weight if isinstance(value, Inputs) else 1.0,))
    others = {type(one).__name__ for one in value if not isinstance(one, Inputs)}
    if others:
        raise TypeError(
            "example_inputs must be one call or a list of convfactor.Inputs, got a list of Inputs "
            f"and {' and '.join(sorted(others))}; wrap every call: Inputs(x, ...)"
        )
    calls = (read_inputs(f"example_inputs[{i}]", one) for i, one in enumerate(value))
    return Workload(tuple(calls), tuple(one.weight for one in value))


def read_inputs(argument: str, value: Any) -> ModelInputs:
    """Read what a model is to be called with, which must hold a tensor.

    Args:
        argument: What the user calls it.
        value: A tensor, a tuple or list of arguments, a mapping of keyword arguments, or Inputs.

    Raises:
        TypeError: There is no tensor in it.
        ValueError: All tensors in it are empty.
    """
    inputs = ModelInputs.read(value)
    if not inputs.tensors:
        leaves = tree_leaves((inputs.args, dict(inputs.kwargs)))
        arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves)
        lists = isinstance(value, Mapping) and any(isinstance(v, list) for v in value.values())
        way_out = "; ask the processor for return_tensors='pt'" if lists else ""
        if arrays and not lists:
            way_out = "; use torch.from_numpy"
        raise TypeError(
            f"{argument} must hold a tensor, such as torch.rand(1, 3, 24, 24), "
            f"got {_described(value)}{way_out}"
        )
    if not any(tensor.numel() for tensor in inputs.tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"{argument} must hold values, got nothing but empty tensors of shape {shapes}; "
            "leave it out, or give one with samples"
        )
    return inputs


def _unlabelled(value: Any, examples: Sequence[ModelInputs]) -> tuple[Any, tuple[str, ...]]:
    """Drop the labels of a batch: the rest looks like an example, where the whole does not.

    Returns:
        The batch, and where its labels were.
    """
    for batch, labels in _readings(value, "batch"):
        inputs = ModelInputs.read(batch)
        if any(_same_arguments(inputs, one) and _looks_like(inputs, one) for one in examples):
            return batch, labels
    return value, ()


def _readings(value: Any, name: str) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """A batch as it is, and then without what may be its labels."""
    yield value, ()
    if isinstance(value, Mapping):
        keys = [key for key in value if any(part in str(key).lower() for part in LABELS)]
        rest = {key: value[key] for key in value if key not in keys}
        yield rest, tuple(f"{name}[{key!r}]" for key in keys)
    elif isinstance(value, (tuple, list)) and len(value) > 1:
        first, *others = (f"{name}[{i}]" for i in range(len(value)))
        # Arguments in a container of their own, such as ((left, right), label), or no container.
        for rest, labels in _readings(value[0], first):
            yield rest, (*labels, *others)
        for count in range(2, len(value)):
            yield value[:count], tuple(others[count - 1 :])


def _same_arguments(batch: ModelInputs, example: ModelInputs) -> bool:
    """Whether two calls give the same arguments."""
    return len(batch.args) == len(example.args) and batch.kwargs.keys() == example.kwargs.keys()


def _looks_like(batch: ModelInputs, example: ModelInputs) -> bool:
    """Whether the tensors of two calls differ in the first dimension and the image size at most."""
    mine, wanted = batch.tensors, example.tensors
    return len(mine) == len(wanted) and all(
        a.dim() == b.dim() and a.dtype == b.dtype and (a.dim() < 2 or a.shape[1] == b.shape[1])
        for a, b in zip(mine, wanted, strict=True)
    )


def _check(index: int, batch: ModelInputs, examples: Sequence[ModelInputs]) -> None:
    """Refuse a batch that does not look like the example inputs."""
    mine = batch.tensors
    if not any(_looks_like(batch, example) for example in examples):
        wanted = [example.tensors for example in examples]
        raise ValueError(
            f"calibration batch {index} must look like the example inputs "
            f"({' or '.join(map(_form, wanted))}; first and image sizes may differ), got "
            f"{_form(mine)}{_remedy(mine, wanted)}"
        )
    for t in mine:
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise ValueError(
                f"calibration batch {index} must be finite, got Inf or NaN in it; leave it out"
            )


def _form(tensors: Sequence[Tensor]) -> str:
    """Shapes and dtypes in words."""
    return f"shapes {[tuple(t.shape) for t in tensors]}, dtypes {[str(t.dtype) for t in tensors]}"


def _remedy(mine: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]]) -> str:
    """Say how a batch becomes one that looks like the example inputs."""
    lengths = [len(one) for one in wanted]
    if len(mine) > max(lengths):
        return "; give only what the model takes and drop the rest"
    dtypes = [t.dtype for t in mine]
    if len(mine) in lengths and dtypes not in [[t.dtype for t in one] for one in wanted]:
        return "; convert it to the dtype of the example inputs"
    return ""


def _described(value: Any) -> str:
    """Name the type of a value, and of what it holds."""
    name = type(value).__name__
    held = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, tuple, list)) or not held:
        return "None" if value is None else name
    return f"{name} of {' and '.join(sorted({type(leaf).__name__ for leaf in held}))}"


def _way_out(calibration: Any) -> str:
    """Say how to make batches of what is none."""
    if isinstance(calibration, (str, bytes, os.PathLike)):
        return "; load the file and give a list of batches"
    if isinstance(calibration, np.ndarray):
        return "; use torch.from_numpy and put a single batch in a list"
    if isinstance(calibration, torch.utils.data.Dataset):
        return "; give a torch.utils.data.DataLoader of it"
    if callable(calibration):
        return "; call it and give what it returns"
    return "; put a single batch in a list"


def _samples(batch: ModelInputs) -> list[ModelInputs]:
    """Split one batch along its first dimension."""
    sizes = {t.shape[0] for t in batch.tensors if t.dim() > 0}
    count = sizes.pop() if len(sizes) == 1 else 0
    if count < 2:
        raise ValueError(
            "calibration must hold at least two samples, got one; give more, as a part of them is "
            "kept to verify the error on data that the fit did not see"
        )

    return [
        batch.map(lambda t, i=i: t[i : i + 1] if t.dim() > 0 else t)  # type: ignore[misc]
        for i in range(count)
    ]
