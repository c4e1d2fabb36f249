"""Exported programs: taken apart into a graph that can be rewritten, and exported again."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_unflatten

from convfactor.model.copies import copied, told
from convfactor.model.inputs import ModelInputs

GUARDS = "_guards_fn"  # the module that checks the shapes of inputs
# Arguments of operators that say that a module was in training mode, and operators that are so.
TRAINING = ("training", "train")
TRAINED = ("_native_batch_norm_legit_functional", "_batch_norm_with_update")
LARGEST = 2**62  # sizes above are no bounds
WAY_OUT = "optimize the nn.Module that it was exported from, and export the result"


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """The graph of a program as a module with its signature, which shares its weights.

    Raises:
        ValueError: It was exported in training mode.
    """
    for node in program.graph.nodes:
        if _trains(node):
            raise ValueError(
                f"model must be exported in evaluation mode, but {node.name} is in training mode: "
                "call model.eval(), then torch.export.export"
            )
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    # A module of its own can be put into evaluation mode, and checks no inputs in hooks.
    return fx.GraphModule(graph, graph.graph)


def inputs_of(program: ExportedProgram) -> ModelInputs:
    """The example inputs that a program was exported with.

    Raises:
        ValueError: It does not hold them.
    """
    if program.example_inputs is None:
        raise ValueError(
            "model must hold the example inputs that it was exported with, to be exported again: "
            "set program.example_inputs = (args, kwargs)"
        )
    args, kwargs = program.example_inputs
    return ModelInputs(tuple(args), dict(kwargs))


def exported(graph: nn.Module, program: ExportedProgram) -> ExportedProgram:
    """Export a rewritten graph as the program that it was made from.

    Args:
        graph: What ``graph_of`` gave, rewritten; it is left as it was.
        program: The program, whose signature, dynamic shapes and dialect are kept.

    Raises:
        ValueError: torch can't export it again with these.
    """
    bare = copied(graph)
    assert isinstance(bare, fx.GraphModule)
    inputs = inputs_of(program)
    for node in list(bare.graph.nodes):
        if node.op == "call_module" and node.target == GUARDS:
            bare.graph.erase_node(node)
    bare.delete_all_unused_submodules()
    bare.recompile()
    _hide_buffers(bare, program.graph_signature.non_persistent_buffers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own workings
            result = torch.export.export(
                bare,
                inputs.args,
                dict(inputs.kwargs),
                dynamic_shapes=_dynamic_shapes(bare, program),
                strict=False,
            )
            if program.dialect != result.dialect:
                result = result.run_decompositions()
    except Exception as error:  # whatever torch raises
        raise ValueError(f"model can't be exported again: {told(error)}; {WAY_OUT}") from error
    _name_outputs(result, program)
    _check(result, program)
    return result


def _hide_buffers(graph: nn.Module, names: Iterable[str]) -> None:
    """Keep buffers out of the state, which a graph that is made anew forgets."""
    held = {name for name, _ in graph.named_buffers()}
    for name in held.intersection(names):
        owner, _, last = name.rpartition(".")
        graph.get_submodule(owner)._non_persistent_buffers_set.add(last)


def _trains(node: fx.Node) -> bool:
    """Whether a node computes what it does in training mode only."""
    if not isinstance(node.target, OpOverload):
        return False
    if node.target.overloadpacket.__name__ in TRAINED:
        return True
    arguments = node.target._schema.arguments
    given = {a.name: value for a, value in zip(arguments, node.args)} | dict(node.kwargs)  # noqa: B905 - defaults left out
    return any(given.get(name) is True for name in TRAINING)


def _user_inputs(program: ExportedProgram) -> list[fx.Node]:
    """The placeholders of what a program is called with."""
    names = [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    ]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name] for name in names]


def _sizes(node: fx.Node) -> dict[int, Any]:
    """The sizes of an input that are not fixed, by dimension."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return {}
    sizes: list[Any] = list(value.shape)
    return {i: s.node.expr for i, s in enumerate(sizes) if isinstance(s, torch.SymInt)}


def _dynamic_shapes(graph: fx.GraphModule, program: ExportedProgram) -> dict[str, Any]:
    """The dynamic shapes of a program as ``torch.export.export`` takes them."""
    dims: dict[Any, Any] = {}
    for symbol, allowed in program.range_constraints.items():
        if not symbol.is_Symbol:
            continue  # what is said of others follows from theirs
        low, high = _bounds(allowed)
        finite = {} if high == math.inf else {"max": int(high)}
        dims[symbol] = Dim(str(symbol), min=int(max(low, 0)), **finite)
    shapes = [
        {i: _dimension(size, dims) for i, size in _sizes(node).items()} or None
        for node in _user_inputs(program)
    ]
    args, kwargs = tree_unflatten(shapes, program.call_spec.in_spec)
    return dict(inspect.signature(graph.forward).bind(*args, **kwargs).arguments)


def _dimension(size: Any, dims: dict[Any, Any]) -> Any:
    """A size: a dimension, or one derived from another by a factor and a summand."""
    if size in dims:
        return dims[size]
    if len(size.free_symbols) == 1:
        (symbol,) = size.free_symbols
        factor, summand = size.coeff(symbol, 1), size.coeff(symbol, 0)
        whole = factor.is_Integer and summand.is_Integer
        if symbol in dims and whole and size == factor * symbol + summand:
            return int(factor) * dims[symbol] + int(summand)
    return Dim.AUTO


def _bounds(allowed: Any) -> tuple[float, float]:
    """The least and the largest size that are allowed."""
    return float(allowed.lower), math.inf if allowed.upper > LARGEST else float(allowed.upper)


def _name_outputs(result: ExportedProgram, program: ExportedProgram) -> None:
    """Give the outputs of a new program the names that they had."""
    nodes = {node.name: node for node in result.graph.nodes}
    specs = zip(result.graph_signature.output_specs, program.graph_signature.output_specs)  # noqa: B905 - checked elsewhere
    for mine, wanted in specs:
        if mine.kind == wanted.kind == OutputKind.USER_OUTPUT and mine.arg.name in nodes:
            name = wanted.arg.name
            if name != mine.arg.name and name not in nodes:
                nodes[name] = node = nodes.pop(mine.arg.name)
                node.name = mine.arg.name = name


def _signature(program: ExportedProgram) -> dict[str, Any]:
    """What callers of a program rely on."""
    signature = program.graph_signature
    return {
        "inputs": signature.user_inputs,
        "number of outputs": len(signature.user_outputs),
        "buffers that it changes": sorted(signature.buffers_to_mutate.values()),
        "inputs that it changes": sorted(signature.user_inputs_to_mutate.values()),
        "dynamic dimensions": [sorted(_sizes(node)) for node in _user_inputs(program)],
    }


def _check(result: ExportedProgram, program: ExportedProgram) -> None:
    """Refuse a new program that can't be called as the original."""
    mine, wanted = _signature(result), _signature(program)
    for what, value in wanted.items():
        if mine[what] != value:
            raise ValueError(
                f"model can't be exported again: its {what} would be {mine[what]}, not {value}; "
                f"{WAY_OUT}"
            )
    for (before, old), (after, new) in zip(_ranges(program), _ranges(result), strict=True):
        if new[0] > max(old[0], 2) or new[1] < old[1]:
            raise ValueError(
                f"model can't be exported again: the size {before} in {old} would be {after} in "
                f"{new}; {WAY_OUT}"
            )


def _ranges(program: ExportedProgram) -> Iterator[tuple[str, tuple[float, float]]]:
    """The sizes of inputs that are plain symbols, with the values that they may take."""
    sizes: Iterable[Any] = (s for n in _user_inputs(program) for s in _sizes(n).values())
    for size in sizes:
        if size in program.range_constraints:
            yield str(size), _bounds(program.range_constraints[size])
