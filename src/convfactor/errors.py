"""Errors that a caller may want to tell apart, and how messages name what came."""

from __future__ import annotations

from collections.abc import Iterable


class ToleranceError(ValueError):
    """No cascade that is cheaper than the original meets the tolerance.

    Example:
        >>> import torch
        >>> from convfactor import ToleranceError, factorize
        >>> noise = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
        >>> try:
        ...     factorize(noise, 1e-6, strict=True)
        ... except ToleranceError:
        ...     print("kept as it is")
        kept as it is
    """


class PlanMismatchError(ValueError):
    """A plan does not belong to the model it is applied to.

    Example:
        >>> import torch
        >>> from convfactor import PlanMismatchError, plan
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7))
        >>> _ = torch.nn.init.ones_(model[0].weight)
        >>> decided = plan(model, torch.rand(1, 1, 16, 16), objective="macs", progress=False)
        >>> try:
        ...     decided.apply(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7)))
        ... except PlanMismatchError:
        ...     print("other weights")
        other weights
    """


def kind_of(value: object) -> str:
    """Name what came where something of another type was wanted."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name what is alike, as the end of a message; empty where nothing is."""
    from difflib import get_close_matches  # slow to load, for the few who need it

    near = get_close_matches(name, [other for other in dict.fromkeys(known) if other != name])
    return f"; did you mean {' or '.join(near)}?" if near else ""
