"""Trace models into ``torch.fx`` graphs: never fail, and never freeze what could change."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer

from convfactor.conv.layer import CascadeConv2d
from convfactor.model.copies import copied, isolated, quiet, told
from convfactor.model.freezing import freezes, module_state, profiled, random_state, same_state
from convfactor.model.inputs import ModelInputs
from convfactor.model.outputs import difference
from convfactor.model.transforms import is_transform

WHOLE = "untraced"
MOST_ATTEMPTS = 50
LEAVES = (nn.Conv2d, CascadeConv2d)
IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem,
    operator.ipow, operator.iand, operator.ior,
)  # fmt: skip


class Untraced(nn.Module):
    """A module that can't be traced, as a leaf with one input for all arguments."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module."""
        super().__init__()
        self.module = module

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)


def trace(model: nn.Module, example_inputs: Any = None) -> GraphModule:
    """Trace a model; modules whose forward can't be traced are leaves of the graph.

    A forward that asks for types, handles errors, enters contexts, draws random numbers or
    changes its module can't be traced either: a graph would hold what it decided once. A model
    that can't be traced itself becomes a graph with one call, so that a pass can enter it by its
    modules. Arguments that are not given take their defaults as constants.

    The graph shares its parameters and buffers with the model, which is not changed.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of arguments or a mapping of keyword arguments. With
            them the graph is run and compared with the model, twice in a row; where it differs the
            whole model is a leaf.

    Raises:
        ValueError: The model does not run on the example inputs.

    Example:
        >>> import torch
        >>> from convfactor.fx import trace
        >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 5), torch.nn.ReLU()))
        >>> [node.target for node in graph.graph.nodes]
        ['input', '0', '1', 'output']
    """
    if isinstance(model, GraphModule):
        return model
    inputs = None if example_inputs is None else ModelInputs.read(example_inputs)
    if inputs is not None:
        _try(model, inputs)
    result = _entered(model, inputs)
    if result is not None and inputs is not None and not _agrees(result, model, inputs):
        result = None
    return _whole(model) if result is None else result


def _whole(model: nn.Module) -> GraphModule:
    """A graph with one call."""
    root = nn.Module()
    root.add_module(WHOLE, Untraced(model))
    graph = Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    graph.output(graph.call_module(WHOLE, (args, kwargs)))
    return GraphModule(root, graph, type(model).__name__)


def _entered(model: nn.Module, inputs: ModelInputs | None) -> GraphModule | None:
    """Trace a model, with ever more kinds of module as leaves; None where the root is one."""
    if isinstance(model, (*LEAVES, torch.jit.ScriptModule)) or "forward" in vars(model):
        return None
    if type(model).__call__ is not nn.Module.__call__:
        return None
    if model._forward_hooks or model._forward_pre_hooks or is_transform(model):
        return None
    opaque: set[object] = set()
    try:
        given = _given(model, inputs)
        for _ in range(MOST_ATTEMPTS):
            stand_in = copied(model, tuple(model.parameters()))
            with isolated(0):
                tracer = _Partial(stand_in, opaque, given)
                graph = tracer.attempt()
            if not tracer.suspects:
                break
            if _kind(stand_in) in tracer.suspects or tracer.suspects <= opaque:
                return None
            opaque |= tracer.suspects
        else:
            return None
    except Exception:  # whatever a model leads copying and tracing to raise
        return None
    for mine, original in zip(stand_in.modules(), model.modules(), strict=True):
        if not isinstance(mine, torch.jit.ScriptModule):
            mine._buffers.update(original._buffers)
    return GraphModule(stand_in, graph, type(model).__name__)


def _given(model: nn.Module, inputs: ModelInputs | None) -> frozenset[str]:
    """The arguments that are inputs of the graph; the others keep their defaults."""
    signature = inspect.signature(model.forward)
    if inputs is not None:
        return frozenset(signature.bind(*inputs.args, **inputs.kwargs).arguments)
    needed = (p for p in signature.parameters.values() if p.default is p.empty)
    return frozenset(p.name for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _agrees(graph: GraphModule, model: nn.Module, inputs: ModelInputs) -> bool:
    """Whether a graph computes what its model does, twice in a row."""
    try:
        with isolated(0), quiet(graph):
            return difference(copied(model), copied(graph), [inputs]) is None
    except Exception:  # whatever a graph raises that does not fit its model
        return False


def _try(model: nn.Module, inputs: ModelInputs) -> None:
    """Refuse inputs that a model does not take."""
    try:
        with isolated(0):
            inputs.run(copied(model))
    except Exception as error:
        raise ValueError(
            f"example_inputs must be what the model takes, but it raised {told(error)}"
        ) from error


def _kind(module: nn.Module) -> object:
    """What modules with the same forward share; one with its own is known by that forward."""
    return vars(module).get("forward") or type(module)


class _Partial(Tracer):
    """Keeps torch's own modules, cascades and what can't be traced as leaves."""

    def __init__(self, model: nn.Module, opaque: set[object], given: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.suspects: set[object] = set()
        self._opaque = opaque
        self._given = given
        self._stack = [model]
        self._drawn = random_state()
        self._constants: set[object] = set()

    def attempt(self) -> Graph:
        """Trace, and note the kinds of module that would be frozen or that raise."""
        before = [module_state(module) for module in self.model.modules()]
        graph = Graph()
        try:
            with profiled(self._observe):
                graph = self.trace(self.model)
        except Exception:
            self.suspects.add(_kind(self._stack[-1]))
        self._boundary()
        for module, state in zip(list(self.model.modules()), before, strict=False):
            script = isinstance(module, torch.jit.ScriptModule)
            if not script and not same_state(state, module_state(module)):
                self.suspects.add(_kind(module))
        if any(_is_in_place(node) for node in graph.nodes):
            self.suspects |= self._constants  # each run would change them further
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as it is."""
        leaf = (
            isinstance(m, (*LEAVES, torch.jit.ScriptModule))
            or is_transform(m)
            or _kind(m) in self._opaque
        )
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Follow which module's forward runs."""
        self._boundary()
        self._stack.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self._boundary()
        self._stack.pop()
        return result

    def create_arg(self, a: Any) -> Any:
        """Note which module makes a tensor that becomes a constant."""
        plain = isinstance(a, Tensor) and not isinstance(a, nn.Parameter)
        if plain and a not in self.tensor_attrs:
            self._constants.add(_kind(self._stack[-1]))
        return super().create_arg(a)

    def _proxy_placeholder(self, name: str, concrete: Any, sig: Any, fn: Any) -> Any:
        """Leave out the arguments that are not given."""
        plain = name.lstrip("*")
        if plain in self._given:
            return super()._proxy_placeholder(name, concrete, sig, fn)
        if name.startswith("*"):
            return () if name.count("*") == 1 else {}
        return sig.parameters[plain].default

    def _boundary(self) -> None:
        """Note who has drawn random numbers since the last one."""
        now = random_state()
        if now != self._drawn:
            self.suspects.add(_kind(self._stack[-1]))
            self._drawn = now

    def _observe(self, code: CodeType) -> None:
        """Note who runs code that a graph would freeze."""
        if freezes(code):
            self.suspects.add(_kind(self._stack[-1]))


def _is_in_place(node: Any) -> bool:
    """Whether a node writes into its input."""
    if node.op == "call_method":
        return bool(node.target.endswith("_") and not node.target.startswith("__"))
    return node.op == "call_function" and (node.target in IN_PLACE or "out" in node.kwargs)
