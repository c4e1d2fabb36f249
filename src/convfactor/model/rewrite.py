"""Put the cascades of a plan into a model: modules are swapped, weights of calls replaced.

The forward that runs afterwards is the one that ran before. A functional call sees, in place of
its weight, a ``FactorizedWeight`` that runs the cascade; only in a ``torch.fx`` graph, where every
call is a node of its own, nodes are replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.weights import FactorizedWeight
from convfactor.errors import PlanMismatchError
from convfactor.model import graphs, transforms
from convfactor.model.digests import fingerprint
from convfactor.model.sites import is_transform

if TYPE_CHECKING:
    from convfactor.plans.plan import Entry, Plan


# Makes the layer of an entry, named by its index, in place of a weight and a bias.
Make = Callable[[int, Tensor, Tensor | None], CascadeConv2d]


def apply(model: nn.Module, plan: Plan, make: Make | None = None) -> nn.Module:
    """Rewrite a model in place and return it (its replacement where the root itself changes).

    Args:
        model: A copy that may be changed.
        plan: What to do.
        make: Makes other layers than those of the plan.

    Raises:
        PlanMismatchError: A layer is missing, or its weight is not the planned one; found before
            anything is changed.
    """
    for i in plan.replaced:
        check(model, plan.entries[i])
    make = plan.layer if make is None else make
    new: dict[nn.Module, nn.Module] = {}
    functional = []
    for i in plan.replacements:
        entry, layer = plan.entries[i], functools.partial(make, i)
        if entry.kind == "module":
            new |= _cascades(model, entry, layer)
        else:
            functional.append((entry, layer, _tensor(model, entry.weight_name)))
    for entry in plan.entries:
        if entry.kind == "transform" and entry.replaced:
            modules = {model.get_submodule(owner) for owner in _owners(model, entry)}
            new |= {module: transforms.replacement(module) for module in modules}
    model = _swap(model, new)
    for entry, layer, weight in functional:
        model = _factorize_calls(model, entry, layer, weight)
    return model


def check(model: nn.Module, entry: Entry) -> None:
    """Compare the weights of a layer with the planned ones.

    Raises:
        PlanMismatchError: It is missing, or has other weights.
    """
    if entry.kind == "transform":
        _check_transform(model, entry)
        return
    names = [entry.weight_name]
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    missing = sorted({*entry.owners} - modules)
    if missing and not isinstance(model, fx.GraphModule):
        raise PlanMismatchError(
            f"layer {entry.name}: the model has no module {missing[0]!r}; apply the plan to the "
            "model that was planned"
        )
    if entry.kind == "module":
        names = [f"{owner}.weight".lstrip(".") for owner in _owners(model, entry)]
    for name in names:
        try:
            weight = _tensor(model, name)
        except AttributeError as error:
            raise PlanMismatchError(
                f"layer {entry.name}: the model has no {name}; apply the plan to the model that "
                "was planned"
            ) from error
        if fingerprint(weight) != entry.fingerprint:
            raise PlanMismatchError(
                f"layer {entry.name}: {name} (shape {tuple(weight.shape)}, {weight.dtype}) is not "
                f"the weight that was planned, in {entry.dtype}; load the planned weights in that "
                "dtype, or plan anew"
            )


def _check_transform(model: nn.Module, entry: Entry) -> None:
    """Compare the filters of a transform with the planned ones."""
    for owner in _owners(model, entry):
        try:
            module = model.get_submodule(owner)
        except AttributeError as error:
            raise PlanMismatchError(f"transform {entry.name}: the model has no {owner}") from error
        if not is_transform(module) or (transforms.fingerprint(module) != entry.fingerprint):
            raise PlanMismatchError(
                f"transform {entry.name}: {owner} is not the transform that was planned; plan anew"
            )


def _tensor(model: nn.Module, name: str) -> Tensor:
    """Look up a parameter or buffer by its qualified name."""
    owner, _, attribute = name.rpartition(".")
    value = getattr(model.get_submodule(owner), attribute)
    if not isinstance(value, Tensor):
        raise AttributeError(f"{name} is not a tensor")
    return value


def _cascades(
    model: nn.Module, entry: Entry, make: Callable[[Tensor, Tensor | None], CascadeConv2d]
) -> dict[nn.Module, nn.Module]:
    """The layers for the modules of an entry; several modules with tied weights stay tied."""
    made: dict[nn.Module, nn.Module] = {}
    first: CascadeConv2d | None = None
    for owner in _owners(model, entry):
        conv = model.get_submodule(owner)
        if conv in made:
            continue
        if not isinstance(conv, nn.Conv2d) or ConvGeometry.from_conv(conv) != entry.geometry:
            raise PlanMismatchError(f"layer {entry.name}: {owner} is not the planned convolution")
        layer = make(conv.weight, conv.bias).train(conv.training)
        first = first or layer
        layer.tie(first)
        made[conv] = layer
    return made


def _owners(model: nn.Module, entry: Entry) -> list[str]:
    """The names under which a model holds an entry; graphs keep only those that they call."""
    if not isinstance(model, fx.GraphModule):
        return list(entry.owners)
    present = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [owner for owner in entry.owners if owner in present] or list(entry.owners)


def _swap(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
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
                value[key] = exchanged(value[key])
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(exchanged, value))
        elif type(value) in (tuple, set):
            return type(value)(map(exchanged, value))
        return value

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                vars(module)[name] = exchanged(value)


def _factorize_calls(
    model: nn.Module,
    entry: Entry,
    make: Callable[[Tensor, Tensor | None], CascadeConv2d],
    weight: Tensor,
) -> nn.Module:
    """Let the functional calls with a weight run a cascade."""
    geometry = entry.geometry
    assert geometry is not None
    found = False
    for module in list(model.modules()):
        if isinstance(module, fx.GraphModule) and graphs.calls(module, weight, geometry):
            model = _swap(model, {module: graphs.replace(module, weight, geometry, make)})
            found = True
    first: CascadeConv2d | None = None
    for module, name in list(_holders(model, weight)):
        if isinstance(module, fx.GraphModule):
            continue
        layer = make(weight, None).train(module.training)
        first = first or layer
        layer.tie(first)
        delattr(module, name)
        # Past the methods of the module, whose class may have others of its own.
        module._modules[graphs.free_name(module, f"{name}_cascade")] = layer
        vars(module)[name] = FactorizedWeight(layer)
        _exchange(model, {id(weight): vars(module)[name]})
        found = True
    if not found:
        raise PlanMismatchError(
            f"layer {entry.name}: its call was not found in {entry.owners[0]!r}; plan anew"
        )
    return model


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
