"""Exchange in a fresh model what was exchanged in the one that was saved."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from convfactor.conv.forms import Form, UnsupportedConvolutionError, of_module
from convfactor.conv.framed import Layer, framed, plain_of
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.errors import PlanMismatchError
from convfactor.model import graphs, rewrite, transforms
from convfactor.model.candidates import is_convolution, is_special
from convfactor.model.folding import Folded
from convfactor.model.norms import NORMS, FoldedNorm
from convfactor.model.pads import FoldedPad, Pads, zeros_of
from convfactor.model.pretrained import annotated
from convfactor.model.sites import inside
from convfactor.saving.description import (
    Description,
    SavedCall,
    SavedCascade,
    SavedNode,
    SavedTransform,
    arguments,
    is_fast_transform,
    plain_nodes,
)


def rebuild(model: nn.Module, saved: Description) -> nn.Module:
    """Give a model the layers of the one that was saved, without their values.

    Args:
        model: A copy that may be changed.
        saved: What was exchanged.

    Returns:
        The model, or what takes its place where the root itself is exchanged.

    Raises:
        PlanMismatchError: It has something else in the place of a layer.
    """
    new: dict[nn.Module, nn.Module] = {}
    by_name = {name: cascade for cascade in saved.cascades for name in cascade.names}
    called = {inside(call.owner, call.child) for call in saved.calls}
    noded = {inside(node.graph, node.target) for node in saved.nodes}
    folded = (_found(model, name) for name in saved.folded)
    pads = [pads for one in folded if one is not None and (pads := zeros_of(one)) is not None]
    for cascade in saved.cascades:
        name = cascade.names[0]
        old = _found(model, name)
        if old is None and (name in called or name in noded):
            continue
        if old is None:
            raise mismatch(name, "nothing", f"a cascade for {_words(cascade.geometry)}", saved)
        new[old] = _in_place_of(old, cascade, saved, pads)
    for transform in saved.transforms:
        new |= _transform(model, transform, saved)
    model = rewrite.swap(model, {old: made for old, made in new.items() if old is not made})
    for call in saved.calls:
        _factorize_call(model, call, by_name[inside(call.owner, call.child)], saved)
    for graph in dict.fromkeys(node.graph for node in saved.nodes):
        nodes = [node for node in saved.nodes if node.graph == graph]
        model = _replace_nodes(model, graph, nodes, by_name, saved)
    return annotated(rewrite.swap(model, _folded(model, saved)))


def mismatch(name: str, found: str, wanted: str, saved: Description) -> PlanMismatchError:
    """Say that a model is not the one that was saved.

    Args:
        name: Of the layer.
        found: What the model has there.
        wanted: What was saved.
        saved: The model that was saved.
    """
    return PlanMismatchError(
        f"layer {name or '(root)'}: the model has {found}, but {wanted} was saved; give load a new "
        f"model of the class {saved.model}, made with the arguments that the saved one was made "
        "with"
    )


def _found(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a name, if there is one."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _in_place_of(
    old: nn.Module, cascade: SavedCascade, saved: Description, pads: Sequence[Pads]
) -> Layer:
    """The layer that takes the place of a convolution, or of a cascade that the class makes.

    Args:
        old: What is there.
        cascade: What was saved.
        saved: The model that was saved.
        pads: Zeros of the paddings that were folded into layers.
    """
    weight: Any = None
    found: tuple[Form, ConvGeometry] | None = None
    if isinstance(old, Layer) and plain_of(old).structure == cascade.structure:
        weight, found = old.stages[0].weight, (old.form, old.geometry)
    elif is_convolution(old):
        weight, found = old.weight, _read(old, cascade)
    alike = found is not None and found[0] == cascade.form
    laid = [] if found is None else [found[1], *(found[1].padded(own) for own in pads)]
    if not alike or cascade.geometry not in laid:
        there = f"a {type(old).__name__}" if found is None else _words(found[1])
        wanted = f"a cascade for {_words(cascade.geometry)}"
        raise mismatch(cascade.names[0], there, wanted, saved)
    return _layer(cascade, weight).train(old.training)


def _folded(model: nn.Module, saved: Description) -> dict[nn.Module, nn.Module]:
    """What takes the place of the normalizations and paddings that are folded into layers."""
    new: dict[nn.Module, nn.Module] = {}
    for name in saved.folded:
        found = _found(model, name)
        if isinstance(found, Folded):
            continue
        if isinstance(found, NORMS):
            new[found] = FoldedNorm.of(found)
        elif found is not None and zeros_of(found) is not None:
            new[found] = FoldedPad.of(found)
        else:
            there = "nothing" if found is None else f"a {type(found).__name__}"
            wanted = "a batch normalization or padding that is folded into a layer"
            raise mismatch(name, there, wanted, saved)
    return new


def _read(conv: nn.Module, cascade: SavedCascade) -> tuple[Form, ConvGeometry] | None:
    """The convolution of a module; one with a forward of its own is known by its weight only."""
    weight: Any = conv.weight
    if is_special(conv):
        shape = cascade.form.weight_shape(cascade.geometry)
        return (cascade.form, cascade.geometry) if tuple(weight.shape) == shape else None
    with contextlib.suppress(UnsupportedConvolutionError):
        return of_module(conv)
    return None


def _layer(cascade: SavedCascade, weight: Tensor) -> Layer:
    """A cascade without its values, on the device of a weight."""
    run, output = (getattr(torch, name) if name else None for name in _formats(cascade))
    layer = CascadeConv2d(
        cascade.geometry,
        cascade.structure,
        cascade.bias,
        run,
        output,
        device=weight.device,
        dtype=weight.dtype,
    )
    return framed(layer.requires_grad_(weight.requires_grad), cascade.form)


def _formats(cascade: SavedCascade) -> tuple[str, str]:
    """The names of a cascade's formats.

    Raises:
        ValueError: One is not that of a format of images.
    """
    for name in (cascade.memory_format, cascade.output_format):
        if name not in ("", "contiguous_format", "channels_last"):
            raise ValueError(f"{cascade.names[0]}: {name!r} is not a memory format")
    return cascade.memory_format, cascade.output_format


def _words(geometry: ConvGeometry) -> str:
    """A convolution in words."""
    size = "x".join(map(str, geometry.kernel_size))
    shown = f"a {size} convolution {geometry.in_channels}->{geometry.out_channels}"
    for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
        value = getattr(geometry, name)
        if value != ConvGeometry.__dataclass_fields__[name].default:
            shown += f", {name} {value}"
    return shown


def _transform(
    model: nn.Module, transform: SavedTransform, saved: Description
) -> dict[nn.Module, nn.Module]:
    """The fast equal of a transform, by what it takes the place of."""
    name, wanted = transform.names[0], f"a {transform.kind}({', '.join(transform.arguments)})"
    old: Any = _found(model, name)
    if old is None or type(old).__name__ != transform.kind:
        found = "nothing" if old is None else f"a {type(old).__name__}"
        raise mismatch(name, found, wanted, saved)
    made: Any = old
    if transforms.is_transform(old):
        made = transforms.replacement(old)
    if not is_fast_transform(made) or arguments(made) != transform.arguments:
        given = f"a {type(old).__name__}({', '.join(arguments(old))})"
        raise mismatch(name, given, wanted, saved)
    made.retile(type(made.sizes)(*transform.sizes))
    made.backend = transform.backend
    return {old: made}


def _factorize_call(
    model: nn.Module, call: SavedCall, cascade: SavedCascade, saved: Description
) -> None:
    """Let the functional calls with a weight run a cascade."""
    name = inside(call.owner, call.attribute)
    wanted = f"a weight of {_words(cascade.geometry)}"
    owner = _found(model, call.owner)
    weight = None if owner is None else getattr(owner, call.attribute, None)
    if owner is None or not isinstance(weight, Tensor):
        raise mismatch(name, "no such tensor", wanted, saved)
    if tuple(weight.shape) != cascade.form.weight_shape(cascade.geometry):
        raise mismatch(name, f"a tensor of shape {tuple(weight.shape)}", wanted, saved)
    layer = _layer(cascade, weight).train(owner.training)
    rewrite.put_weight(model, owner, call.attribute, call.child, layer)


def _replace_nodes(
    model: nn.Module,
    name: str,
    nodes: Sequence[SavedNode],
    cascades: dict[str, SavedCascade],
    saved: Description,
) -> nn.Module:
    """Let nodes of a graph call cascades."""
    graph = _found(model, name)
    if not isinstance(graph, fx.GraphModule):
        found = "nothing" if graph is None else f"a {type(graph).__name__}"
        raise mismatch(name, found, "a torch.fx graph", saved)
    places = plain_nodes(graph)
    layers: dict[fx.Node, tuple[str, Layer]] = {}
    made: dict[str, Layer] = {}
    for node in nodes:
        if _found(graph, node.target) is not None:
            continue  # a module, which was exchanged with the others
        cascade = cascades[inside(name, node.target)]
        wanted = f"a call of {_words(cascade.geometry)}"
        place = places[node.position] if node.position < len(places) else None
        weight = (
            None
            if place is None
            else graphs.weight_of(graph, place, cascade.form, cascade.geometry)
        )
        if place is None or weight is None:
            raise mismatch(node.target, f"the node {place}", wanted, saved)
        layer = made.setdefault(node.target, _layer(cascade, weight).train(graph.training))
        layers[place] = node.target, layer
    if not layers:
        return model
    return rewrite.swap(model, {graph: graphs.with_layers(graph, layers)})
