"""Convolution nodes of a ``torch.fx`` graph: found, and replaced by cascades."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from convfactor.conv.calls import SIGNATURES, ConvCall, read_call
from convfactor.conv.forms import Form
from convfactor.conv.framed import Layer, tie
from convfactor.conv.geometry import ConvGeometry


def calls(
    graph: fx.GraphModule, weight: Tensor, form: Form, geometry: ConvGeometry
) -> list[fx.Node]:
    """The nodes of a graph that convolve with a weight in one way, all else being given."""
    reads = ((node, _read(node, graph)) for node in graph.graph.nodes)
    return [
        node
        for node, call in reads
        if call and call.weight is weight and (call.form, call.geometry) == (form, geometry)
    ]


def replace(
    graph: fx.GraphModule,
    weight: Tensor,
    form: Form,
    geometry: ConvGeometry,
    make: Callable[[Tensor, Tensor | None], Layer],
) -> fx.GraphModule:
    """Make a graph whose convolutions with a weight are cascades; one module for every bias.

    Args:
        graph: The graph, which is changed.
        weight: The weight that they have.
        form: How they are plain convolutions.
        geometry: The geometry of those.
        make: Makes the module in place of a weight and a bias.
    """
    layers: dict[fx.Node, tuple[str, Layer]] = {}
    first: Layer | None = None
    made: dict[str | None, tuple[str, Layer]] = {}
    for node in calls(graph, weight, form, geometry):
        parameter = _argument(node, "bias")
        bias = None if parameter is None else str(parameter.target)
        if bias not in made:
            values = None if bias is None else operator.attrgetter(bias)(graph)
            layer = make(weight, values).train(graph.training)
            first = first or layer
            tie(layer, first, bias=False)
            made[bias] = free_name(graph, "cascade"), layer
            graph.add_module(*made[bias])
        layers[node] = made[bias]
    return with_layers(graph, layers)


def with_layers(
    graph: fx.GraphModule, layers: Mapping[fx.Node, tuple[str, Layer]]
) -> fx.GraphModule:
    """Make a graph whose convolutions are modules.

    Args:
        graph: The graph, which is changed.
        layers: Name and module for the node of a convolution.
    """
    for node, (name, layer) in layers.items():
        x, *parameters = (_argument(node, what) for what in ("input", "weight", "bias"))
        graph.add_submodule(name, layer)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (x,)))
        graph.graph.erase_node(node)
        for parameter in parameters:
            if parameter is not None and not parameter.users:
                graph.graph.erase_node(parameter)
    # A new GraphModule takes over only what the graph still uses: the old weights go.
    result = fx.GraphModule(graph, graph.graph, type(graph).__name__)
    result.training = graph.training
    return result


def weight_of(
    graph: fx.GraphModule, node: fx.Node, form: Form, geometry: ConvGeometry
) -> Tensor | None:
    """The weight with which a node of a graph convolves in one way; None for another node."""
    call = _read(node, graph)
    same = call is not None and (call.form, call.geometry) == (form, geometry)
    return call.weight if call is not None and same else None


def free_name(module: nn.Module, wanted: str) -> str:
    """A name for a child that is not taken."""
    taken = {*module._modules, *module._parameters, *module._buffers, *vars(module)}
    index, name = 0, wanted
    while name in taken or hasattr(type(module), name):
        index, name = index + 1, f"{wanted}_{index}"
    return name


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a convolution, given by position or by name."""
    position = SIGNATURES[node.target].index(name)
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _read(node: fx.Node, graph: fx.GraphModule) -> ConvCall | None:
    """A convolution of a graph with its tensors; None where its arguments are computed."""
    if not callable(node.target) or node.target not in SIGNATURES:
        return None
    x, weight, bias = (_argument(node, name) for name in ("input", "weight", "bias"))
    for value in (weight, bias):
        if value is not None and not (isinstance(value, fx.Node) and value.op == "get_attr"):
            return None
    if weight is None or not set(node.all_input_nodes) <= {x, weight, bias}:
        return None
    names = SIGNATURES[node.target]
    bound = {**dict(zip(names, node.args)), **node.kwargs}  # noqa: B905 - defaults left out
    bound |= {"weight": operator.attrgetter(str(weight.target))(graph)}
    return read_call(node.target, (), bound)
