"""Put the cascades of a plan into a model: modules are swapped, forwards rewritten."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from convfactor import transforms
from convfactor.digests import fingerprint as fingerprint
from convfactor.errors import PlanMismatchError
from convfactor.geometry import ConvGeometry
from convfactor.layers import CascadeConv2d
from convfactor.sites import is_transform

if TYPE_CHECKING:
    from convfactor.plans import Entry, Plan, Replacement


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Rewrite a model in place and return it (its replacement where the root itself changes).

    Args:
        model: A copy that may be changed.
        plan: What to do.

    Raises:
        PlanMismatchError: A layer is missing, or its weight is not the planned one; found before
            anything is changed.
    """
    for i in plan.replaced:
        _check(model, plan.entries[i])
    forwards: dict[nn.Module, list[tuple[Entry, Replacement, Tensor]]] = {}
    for i, replacement in plan.replacements.items():
        entry = plan.entries[i]
        if entry.kind == "functional":
            weight = _tensor(model, entry.weight_name)
            inlined = isinstance(model, fx.GraphModule) and _calls(model, weight, entry.geometry)
            owner = model if inlined else _owner(model, entry)
            forwards.setdefault(owner, []).append((entry, replacement, weight))
    new: dict[nn.Module, nn.Module] = {}
    for i, replacement in plan.replacements.items():
        if plan.entries[i].kind == "module":
            new |= _cascades(model, plan.entries[i], replacement)
    for entry in plan.entries:
        if entry.kind == "transform" and entry.replaced:
            modules = {model.get_submodule(owner) for owner in _owners(model, entry)}
            new |= {module: transforms.replacement(module) for module in modules}
    model = _swap(model, new)
    for owner, replacements in forwards.items():
        model = _swap(model, {owner: _new_forward(owner, replacements)})
    return model


def obstacle(model: nn.Module, owner: str, weight_name: str, geometry: ConvGeometry) -> str | None:
    """Why a functional call can't be replaced, or None."""
    module = model.get_submodule(owner)
    try:
        graph = trace_own_forward(module)
    except Exception as error:  # whatever a user's forward raises under tracing
        first = str(error).strip().splitlines()[:1]
        return f"functional call in a forward that can't be traced ({': '.join(first)})"
    if _calls(graph, _tensor(model, weight_name), geometry):
        return None
    return "functional call whose arguments are computed in the forward"


def trace_own_forward(module: nn.Module) -> fx.GraphModule:
    """Trace what a module's forward does in evaluation, with every child as a leaf.

    Raises:
        TypeError: The forward was replaced on the instance, where the tracer does not look.
    """
    if isinstance(module, fx.GraphModule):
        return module
    if "forward" in vars(module):
        raise TypeError("its forward was replaced on the instance")
    stand_in = copy.copy(module)  # takes up what the forward assigns to its module
    stand_in.training = False
    return fx.GraphModule(stand_in, _OwnForward().trace(stand_in), type(module).__name__)


class _OwnForward(fx.Tracer):
    """Enters no child."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _check(model: nn.Module, entry: Entry) -> None:
    """Compare the weights of a layer with the planned ones."""
    if entry.kind == "transform":
        _check_transform(model, entry)
        return
    names = [entry.weight_name]
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


def _owner(model: nn.Module, entry: Entry) -> nn.Module:
    """The module whose forward makes a call."""
    try:
        return model.get_submodule(entry.owners[0])
    except AttributeError as error:
        raise PlanMismatchError(
            f"layer {entry.name}: the model has no module {entry.owners[0]!r}; apply the plan to "
            "the model that was planned"
        ) from error


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
    model: nn.Module, entry: Entry, replacement: Replacement
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
        layer = CascadeConv2d.from_conv(conv, replacement, entry.torch_format)
        first = first or layer
        _tie(layer, first)
        made[conv] = layer
    return made


def _owners(model: nn.Module, entry: Entry) -> list[str]:
    """The names under which a model holds an entry; graphs keep only those that they call."""
    if not isinstance(model, fx.GraphModule):
        return list(entry.owners)
    present = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [owner for owner in entry.owners if owner in present] or list(entry.owners)


def _tie(layer: CascadeConv2d, first: CascadeConv2d, bias: bool = True) -> None:
    """Share the parameters of another layer, as the originals did."""
    for mine, other in zip(layer.stages, first.stages, strict=True):
        mine.weight = other.weight
        if bias:
            mine.bias = other.bias


def _swap(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put modules in place of others, under all their names."""
    if model in new:
        return new[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                setattr(module, name, new[child])
    return model


def _new_forward(
    module: nn.Module, replacements: list[tuple[Entry, Replacement, Tensor]]
) -> fx.GraphModule:
    """Make a GraphModule of a module, its functional calls replaced by cascades."""
    try:
        holder = trace_own_forward(module)
    except Exception as error:
        raise PlanMismatchError(
            f"layer {replacements[0][0].name}: the forward of the module that calls it, "
            f"{type(module).__name__}, is not the planned one: it can't be traced ({error})"
        ) from error
    graph = holder.graph
    for entry, replacement, weight in replacements:
        nodes = _calls(holder, weight, entry.geometry)
        if not nodes or entry.geometry is None:
            raise PlanMismatchError(
                f"layer {entry.name}: its call was not found in {entry.owners[0]!r}"
            )
        names: dict[str | None, str] = {}
        first: CascadeConv2d | None = None
        for node in nodes:
            parameters = [_argument(node, 1, "weight"), _argument(node, 2, "bias")]
            bias = None if parameters[1] is None else str(parameters[1].target)
            if bias not in names:
                layer = CascadeConv2d.from_weight(
                    weight,
                    None if bias is None else _tensor(holder, bias),
                    replacement,
                    entry.geometry,
                    entry.torch_format,
                ).train(module.training)
                first = first or layer
                _tie(layer, first, bias=False)
                names[bias] = _free_name(holder)
                holder.add_module(names[bias], layer)
            with graph.inserting_before(node):
                call = graph.call_module(names[bias], (_argument(node, 0, "input"),))
            node.replace_all_uses_with(call)
            graph.erase_node(node)
            for parameter in parameters:
                if parameter is not None and not parameter.users:
                    graph.erase_node(parameter)
    # A new GraphModule takes over only what the graph still uses: the old weights go.
    result = fx.GraphModule(holder, graph, type(holder).__name__)
    result.training = module.training
    return result


def _calls(holder: fx.GraphModule, weight: Tensor, geometry: ConvGeometry | None) -> list[fx.Node]:
    """The nodes of a graph that convolve with a weight in one geometry."""
    reads = ((node, _read_node(node, holder)) for node in holder.graph.nodes)
    return [node for node, call in reads if call and call[0] is weight and call[1] == geometry]


def _is_conv2d(node: fx.Node) -> bool:
    """Whether a node is a functional 2-D convolution."""
    return node.op == "call_function" and node.target is F.conv2d


def _argument(node: fx.Node, index: int, name: str) -> Any:
    """An argument given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _read_node(node: fx.Node, module: nn.Module) -> tuple[Tensor, ConvGeometry] | None:
    """Weight and geometry of a convolution node; None where they are computed."""
    if not _is_conv2d(node):
        return None
    weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
    for value in (weight, bias):
        if value is not None and not (isinstance(value, fx.Node) and value.op == "get_attr"):
            return None
    if not set(node.all_input_nodes) <= {_argument(node, 0, "input"), weight, bias}:
        return None
    tensor = _tensor(module, str(weight.target))
    names = ("stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args[3:], strict=False))
    given |= {key: node.kwargs[key] for key in names if key in node.kwargs}
    return tensor, ConvGeometry.from_weight(tensor, **given)


def _free_name(holder: nn.Module) -> str:
    """A submodule name that is not taken."""
    index = 0
    while hasattr(holder, f"cascade_{index}"):
        index += 1
    return f"cascade_{index}"
