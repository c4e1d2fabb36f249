"""Compare what two models return, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convfactor.model.copies import reseed
from convfactor.model.inputs import ModelInputs
from convfactor.model.trees import leaves

RUNS = 2  # state that a forward changes shows in the second run


def runs(
    first: nn.Module, second: nn.Module, batches: Sequence[ModelInputs]
) -> Iterator[tuple[Any, Any]]:
    """Run two models side by side on every batch, twice in a row, and give their outputs.

    What a model draws at random is the same for both. The models' state moves on: give copies.
    """
    for batch in batches:
        for run in range(RUNS):
            outputs = []
            for model in (first, second):
                reseed(run)
                outputs.append(batch.run(model))
            yield outputs[0], outputs[1]


def difference(first: nn.Module, second: nn.Module, batches: Sequence[ModelInputs]) -> str | None:
    """Where the outputs of two models differ by more than rounding, or None.

    Args:
        first: A model whose state may move on.
        second: Another one.
        batches: What to run them on.
    """
    for true, got in runs(first, second, batches):
        found = structural_difference(true, got)
        if found is not None:
            return found
        for (path, mine), (_, other) in zip(leaves(true), leaves(got), strict=True):
            if not close(mine, other):
                return f"output{path} differs"
    return None


def structural_difference(true: Any, got: Any) -> str | None:
    """How two outputs differ in what holds what, in shapes, dtypes or types, or None."""
    mine, other = dict(leaves(true)), dict(leaves(got))
    if mine.keys() != other.keys():
        path = sorted(mine.keys() ^ other.keys())[0]
        return f"output{path} is there only {'before' if path in mine else 'afterwards'}"
    for path, value in mine.items():
        if _form(value) != _form(other[path]):
            return f"output{path} was {_form(value)} and is {_form(other[path])}"
    return None


def values(leaf: Any) -> Tensor | None:
    """The numbers of a floating-point or complex output; None of what has no error."""
    if isinstance(leaf, (float, complex, np.floating, np.complexfloating)):
        leaf = torch.tensor(complex(leaf) if isinstance(leaf, complex) else float(leaf)).double()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc":
        leaf = torch.from_numpy(leaf.copy())
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or leaf.is_quantized:
        return None
    if leaf.is_complex():
        return torch.view_as_real(leaf.resolve_conj()).movedim(-1, 0).flatten()
    return leaf if leaf.is_floating_point() else None


def _form(leaf: Any) -> str:
    """What must be the same of two outputs, besides the values."""
    if isinstance(leaf, Tensor):
        return f"{tuple(leaf.shape)} {leaf.dtype} on {leaf.device}"
    return type(leaf).__name__


def close(true: Any, got: Any) -> bool:
    """Whether two leaves are the same but for rounding."""
    mine, other = values(true), values(got)
    if mine is None or other is None:
        return _equal(true, got)
    mine, other = mine.double(), other.double()
    eps = torch.finfo(true.dtype).eps if isinstance(true, Tensor) else torch.finfo(torch.float).eps
    scale = float(mine[mine.isfinite()].abs().max()) if bool(mine.isfinite().any()) else 0.0
    near = math.sqrt(eps) * scale
    return bool(torch.isclose(other, mine, rtol=0, atol=near, equal_nan=True).all())


def _equal(true: Any, got: Any) -> bool:
    """Whether two leaves without an error are the same; objects of unknown kind are not judged."""
    if isinstance(true, Tensor):
        return torch.equal(true.to_dense(), got.to_dense()) if not true.is_quantized else True
    if isinstance(true, np.ndarray):
        return bool(np.array_equal(true, got))
    if isinstance(true, (int, str, bytes, bool, type(None), torch.Size, range)):
        return bool(true == got)
    return True
