"""Take replacements back, and carry over what was trained since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from convfactor.conv.layer import CascadeConv2d
from convfactor.errors import PlanMismatchError
from convfactor.model import rewrite
from convfactor.model.rewrite import Exchange

# One layer that a plan makes: the index of its entry, and which of that entry's it is.
Place = tuple[int, int]


@dataclass(frozen=True)
class Applied:
    """A model to which a plan was applied.

    Attributes:
        model: The rewritten model.
        layers: The cascades in it.
    """

    model: nn.Module
    layers: Mapping[Place, CascadeConv2d]

    def prefixes(self) -> dict[Place, str]:
        """Where the cascades' tensors are in the model's state."""
        names = {module: name for name, module in self.model.named_modules()}
        return {
            place: f"{names[layer]}.".lstrip(".")
            for place, layer in self.layers.items()
            if layer in names
        }


def applied(
    model: nn.Module,
    exchanges: Callable[[Callable[[int, Tensor, Tensor | None], CascadeConv2d]], list[Exchange]],
    layer: Callable[[int, Tensor, Tensor | None], CascadeConv2d],
) -> Applied:
    """Rewrite a copy, and remember its cascades.

    Args:
        model: The copy.
        exchanges: Makes the exchanges of a plan with a function for its layers.
        layer: That function.
    """
    layers: dict[Place, CascadeConv2d] = {}
    counts: Counter[int] = Counter()

    def make(index: int, weight: Tensor, bias: Tensor | None) -> CascadeConv2d:
        made = layers[index, counts[index]] = layer(index, weight, bias)
        counts[index] += 1
        return made

    return Applied(rewrite.apply(model, exchanges(make)), layers)


def carry_over(fast: nn.Module, whole: Applied, part: Applied, own: Collection[str]) -> nn.Module:
    """Load the state of a rewritten model into one in which less is replaced.

    Args:
        fast: The rewritten model, trained further or not.
        whole: What the plan makes of the original.
        part: What less of the plan makes of it; its state is changed.
        own: Qualified names of the modules that keep the tensors that they have in ``part``.

    Returns:
        The model of ``part``.

    Raises:
        PlanMismatchError: ``fast`` was not made by this plan.
    """
    state, planned, result = (m.state_dict() for m in (fast, whole.model, part.model))
    odd = sorted(state.keys() ^ planned.keys()) or sorted(
        name for name in state if _shape(state[name]) != _shape(planned[name])
    )
    if odd:
        raise PlanMismatchError(
            f"fast must be what this plan makes of original, but they differ in {odd[0]!r}; give "
            "the model that plan.apply returned, or one with its layers"
        )
    sources = whole.prefixes()
    moved = {prefix: sources[place] for place, prefix in part.prefixes().items()}
    left = tuple(f"{name}.".lstrip(".") for name in own)
    for name in result:
        prefix = next((p for p in moved if name.startswith(p)), None)
        source = name if prefix is None else moved[prefix] + name.removeprefix(prefix)
        if source in state and (prefix is not None or not name.startswith(left)):
            result[name] = state[source]
    part.model.load_state_dict(result)
    return part.model


def _shape(value: object) -> object:
    """What has to agree."""
    return getattr(value, "shape", None)
