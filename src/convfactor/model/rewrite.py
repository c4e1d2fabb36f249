"""Put cascades into a model: modules are swapped, weights of calls replaced.

The forward that runs afterwards is the one that ran before. A functional call sees, in place of
its weight, a ``FactorizedWeight`` that runs the cascade; only in a ``torch.fx`` graph, where every
call is a node of its own, nodes are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from convfactor.conv.framed import Layer, framed, tie
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.weights import FactorizedWeight
from convfactor.errors import PlanMismatchError
from convfactor.model import graphs, planned, transforms
from convfactor.model.effective import Effective
from convfactor.model.norms import Affine, FoldedNorm
from convfactor.model.pads import FoldedPad
from convfactor.model.pretrained import annotated
from convfactor.model.sites import Subject

# Makes a layer in place of the weight and the bias of a plain convolution.
Make = Callable[[Tensor, Tensor | None], CascadeConv2d]


@dataclass(frozen=True)
class Exchange:
    """Something else in the place of a subject.

    Attributes:
        subject: What is replaced.
        make: Makes the layer of a convolution; a transform is replaced by its faster equal.
    """

    subject: Subject
    make: Make | None


def apply(model: nn.Module, exchanges: Sequence[Exchange]) -> nn.Module:
    """Rewrite a model in place and return it (its replacement where the root itself changes).

    Args:
        model: A copy that may be changed.
        exchanges: What to do.

    Raises:
        PlanMismatchError: A layer is missing, or its weight is not the planned one; found before
            anything is changed.
    """
    for wrong in planned.check_all(model, [exchange.subject for exchange in exchanges]):
        if wrong is not None:
            raise wrong
    new: dict[nn.Module, nn.Module] = {}
    functional = []
    for subject, make in ((exchange.subject, exchange.make) for exchange in exchanges):
        if make is None:
            modules = {model.get_submodule(owner) for owner in planned.owners(model, subject)}
            new |= {module: transforms.replacement(module) for module in modules}
        elif subject.kind == "module":
            new |= _cascades(model, subject, make)
            if subject.norm:
                norm = planned.norm_of(model, subject)
                new[norm] = FoldedNorm.of(norm)
            if subject.pad:
                pad = planned.pad_of(model, subject)
                new[pad] = FoldedPad.of(pad)
        else:
            functional.append((subject, make, planned.tensor(model, subject.weight_name)))
    model = swap(model, new)
    for subject, make, weight in functional:
        model = _factorize_calls(model, subject, make, weight)
    return annotated(model)


def _cascades(model: nn.Module, subject: Subject, make: Make) -> dict[nn.Module, nn.Module]:
    """The layers for the modules of a subject; several modules with tied weights stay tied."""
    made: dict[nn.Module, nn.Module] = {}
    first: Layer | None = None
    for owner in planned.owners(model, subject):
        conv = model.get_submodule(owner)
        if conv in made:
            continue
        norm = planned.norm_of(model, subject) if subject.norm else None
        layer = _made(planned.read(conv, owner, subject), make, norm).train(conv.training)
        first = first or layer
        tie(layer, first)
        made[conv] = layer
    return made


def _made(conv: Effective, make: Make, norm: nn.Module | None = None) -> Layer:
    """Make the layer that takes the place of a convolution and the normalization behind it."""
    form = conv.form
    weight = _like(conv.weight, form.weight(conv.weight, conv.geometry.groups))
    bias = None if conv.bias is None else _like(conv.bias, form.bias(conv.bias))
    if norm is not None:
        weight, bias = Affine.of(norm).folded(weight, bias, form)
    return framed(make(weight, bias), form)


def _like(original: Tensor, plain: Tensor | None) -> Tensor:
    """What was made of a tensor, to be trained where that is, also where no gradients are kept."""
    assert plain is not None
    return plain.detach().requires_grad_(original.requires_grad)


def swap(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put modules in place of others, under all their names."""
    if model in new:
        return new[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                setattr(module, name, new[child])
    _exchange(model, {id(module): twin for module, twin in new.items()})
    return model


def _exchange(model: nn.Module, new: dict[int, Any]) -> None:
    """Put values in place of others, by identity, where modules hold them in plain containers."""
    entered: set[int] = set()

    def exchanged(value: Any) -> Any:
        if id(value) in new:
            return new[id(value)]
        if isinstance(value, (list, dict)) and id(value) not in entered:
            entered.add(id(value))
            for key in range(len(value)) if isinstance(value, list) else list(value):
                after = exchanged(value[key])
                if after is not value[key]:
                    value[key] = after
        elif type(value) is set:
            for part in [*value]:
                after = exchanged(part)
                if after is not part:
                    value.remove(part)
                    value.add(after)
        elif isinstance(value, tuple) and (type(value) is tuple or hasattr(value, "_fields")):
            parts = [*map(exchanged, value)]
            if any(after is not part for after, part in zip(parts, value, strict=True)):
                return tuple(parts) if type(value) is tuple else type(value)(*parts)
        return value

    for module in model.modules():
        for name, value in vars(module).items():
            after = value if name in ("_modules", "_parameters", "_buffers") else exchanged(value)
            if after is not value:
                vars(module)[name] = after


def _factorize_calls(model: nn.Module, subject: Subject, make: Make, weight: Tensor) -> nn.Module:
    """Let the functional calls with a weight run a cascade."""
    form, geometry = subject.form, subject.geometry
    assert geometry is not None

    def made(weight: Tensor, bias: Tensor | None) -> Layer:
        return _made(Effective(weight, bias, form, geometry), make)

    found = False
    for module in list(model.modules()):
        if isinstance(module, fx.GraphModule) and graphs.calls(module, weight, form, geometry):
            model = swap(model, {module: graphs.replace(module, weight, form, geometry, made)})
            found = True
    first: Layer | None = None
    for module, name in list(_holders(model, weight)):
        if isinstance(module, fx.GraphModule):
            continue
        layer = made(weight, None).train(module.training)
        first = first or layer
        tie(layer, first)
        put_weight(model, module, name, graphs.free_name(module, f"{name}_cascade"), layer)
        found = True
    if not found:
        raise PlanMismatchError(
            f"layer {subject.name}: its call was not found in {subject.owners[0]!r}; plan anew"
        )
    return model


def put_weight(model: nn.Module, module: nn.Module, name: str, child: str, layer: Layer) -> None:
    """Put an object that runs a cascade in the place of a weight.

    Args:
        model: The model, which may hold the weight in plain containers as well.
        module: The module that has the weight.
        name: Name of the weight in it.
        child: Name of the cascade in it.
        layer: The cascade.
    """
    weight = getattr(module, name)
    delattr(module, name)
    # Past the methods of the module, whose class may have others of its own.
    module._modules[child] = layer
    vars(module)[name] = FactorizedWeight(layer)
    _exchange(model, {id(weight): vars(module)[name]})


def _holders(model: nn.Module, weight: Tensor) -> Iterator[tuple[nn.Module, str]]:
    """The modules that hold a tensor as a parameter or buffer, with its name in each."""
    for module in model.modules():
        own: Iterable[tuple[str, Tensor | None]] = (
            *module._parameters.items(),
            *module._buffers.items(),
        )
        for name, tensor in own:
            if tensor is weight:
                yield module, name
