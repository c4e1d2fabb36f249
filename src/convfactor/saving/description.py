"""What was exchanged in a rewritten model, read off the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from convfactor.conv.forms import Form
from convfactor.conv.framed import CascadeConvNd, Layer, plain_of
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import Structure
from convfactor.conv.weights import FactorizedWeight
from convfactor.model.folding import Folded
from convfactor.model.transforms import KINDS

# What a wavelet transform may be made with.
ARGUMENTS = (
    "mode", "o_dim", "ri_dim", "J", "skip_hps", "include_scale", "magbias", "combine_colour",
)  # fmt: skip


@dataclass(frozen=True)
class SavedCascade:
    """A ``CascadeConv2d``, or a ``CascadeConvNd`` around one.

    Attributes:
        names: The qualified names that the model has for it.
        form: How the convolution that it stands for is a plain one.
        geometry: The integers of that one.
        structure: Its stages.
        bias: Whether it has a bias.
        memory_format: Format in which it runs, as torch names it; empty for None.
        output_format: Format of its output, likewise.
    """

    names: tuple[str, ...]
    form: Form
    geometry: ConvGeometry
    structure: Structure
    bias: bool
    memory_format: str
    output_format: str


@dataclass(frozen=True)
class SavedCall:
    """A weight for functional calls that runs a cascade.

    Attributes:
        owner: Qualified name of the module that has the weight.
        attribute: Name of the weight in it.
        child: Name of the cascade in it.
    """

    owner: str
    attribute: str
    child: str


@dataclass(frozen=True)
class SavedNode:
    """A node of a ``torch.fx`` graph that calls a cascade.

    Attributes:
        graph: Qualified name of the graph's module.
        position: Which of the nodes that do not read attributes it is.
        target: Name of the cascade in that module.
    """

    graph: str
    position: int
    target: str


@dataclass(frozen=True)
class SavedTransform:
    """A transform of ``convfactor.wavelets``.

    Attributes:
        names: The qualified names that the model has for it.
        kind: Name of its class.
        arguments: What it was made with, as text.
        backend: What computes it.
        sizes: Portions in which its levels are computed.
    """

    names: tuple[str, ...]
    kind: str
    arguments: tuple[str, ...]
    backend: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """Everything about a rewritten model that its class does not tell.

    Attributes:
        model: Qualified name of the class, for messages.
        cascades: The cascades.
        calls: The weights of functional calls that run them.
        nodes: The nodes of graphs that call them.
        transforms: The wavelet transforms.
        folded: The qualified names of batch normalizations and paddings that were folded into a
            layer.
    """

    model: str
    cascades: tuple[SavedCascade, ...]
    calls: tuple[SavedCall, ...]
    nodes: tuple[SavedNode, ...]
    transforms: tuple[SavedTransform, ...]
    folded: tuple[str, ...]


def describe(model: nn.Module) -> Description:
    """Read off a model what was exchanged in it.

    Raises:
        ValueError: It holds a cascade of another class.
    """
    cascades: dict[Layer, tuple[str, ...]] = {}
    folded: list[str] = []
    inner = {module.plain for module in model.modules() if isinstance(module, CascadeConvNd)}
    transforms: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in inner:
            continue
        if isinstance(module, Layer):
            if type(plain_of(module)) is not CascadeConv2d:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, which can't be rebuilt from a file; "
                    "save a model whose cascades are plain CascadeConv2d"
                )
            cascades[module] = (*cascades.get(module, ()), name)
        elif isinstance(module, Folded):
            folded.append(name)
        elif is_fast_transform(module):
            transforms[module] = (*transforms.get(module, ()), name)
    return Description(
        model=_class_name(model),
        cascades=tuple(_cascade(layer, names) for layer, names in cascades.items()),
        calls=tuple(_calls(model)),
        nodes=tuple(_nodes(model)),
        transforms=tuple(_transform(module, names) for module, names in transforms.items()),
        folded=tuple(folded),
    )


def is_fast_transform(module: nn.Module) -> bool:
    """Whether a module is a transform of ``convfactor.wavelets``, which need not be loaded."""
    kind = type(module)
    return kind.__name__ in KINDS and kind.__module__.startswith("convfactor.wavelets.")


def arguments(transform: nn.Module) -> tuple[str, ...]:
    """What a transform was made with, but for its filters, which are in its state."""
    values = {name: getattr(transform, name, None) for name in ARGUMENTS}
    return tuple(f"{name}={value!r}" for name, value in values.items() if value is not None)


def plain_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph that do not read attributes, which exchanging a call leaves in place."""
    return [node for node in graph.graph.nodes if node.op != "get_attr"]


def _class_name(model: nn.Module) -> str:
    """The class of a model; every graph has one of its own."""
    if isinstance(model, fx.GraphModule):
        return "torch.fx.GraphModule"
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _cascade(whole: Layer, names: tuple[str, ...]) -> SavedCascade:
    layer = plain_of(whole)
    return SavedCascade(
        names,
        whole.form,
        layer.geometry,
        layer.structure,
        layer.bias is not None,
        _format_name(layer.memory_format),
        _format_name(layer.output_format),
    )


def _format_name(value: torch.memory_format | None) -> str:
    return "" if value is None else str(value).removeprefix("torch.")


def _calls(model: nn.Module) -> Iterator[SavedCall]:
    """The weights that run cascades, where modules hold them under a name of their own."""
    for owner, module in model.named_modules():
        children = {id(child): name for name, child in module._modules.items()}
        for attribute, value in vars(module).items():
            if isinstance(value, FactorizedWeight):
                child = children.get(id(value._layer), "")
                if child.startswith(f"{attribute}_"):  # else another place that holds it as well
                    yield SavedCall(owner, attribute, child)


def _nodes(model: nn.Module) -> Iterator[SavedNode]:
    """The nodes that call cascades."""
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            for position, node in enumerate(plain_nodes(module)):
                if node.op != "call_module":
                    continue
                if isinstance(module.get_submodule(str(node.target)), Layer):
                    yield SavedNode(name, position, str(node.target))


def _transform(module: Any, names: tuple[str, ...]) -> SavedTransform:
    kind = type(module).__name__
    return SavedTransform(names, kind, arguments(module), module.backend, tuple(module.sizes))
