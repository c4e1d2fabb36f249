"""Tracing that never fails, and the rewrite as a torch.fx pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from convfactor import optimization, rewrite
from convfactor.layers import CascadeConv2d
from convfactor.plans import Plan
from convfactor.sites import is_transform

WHOLE = "untraced"
LEAVES = (nn.Conv2d, CascadeConv2d)


class Untraced(nn.Module):
    """A module that can't be traced, as a leaf with one input for all arguments."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module."""
        super().__init__()
        self.module = module

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)


def trace(model: nn.Module) -> GraphModule:
    """Trace a model; modules whose forward can't be traced are leaves of the graph.

    A model that can't be traced itself becomes a graph with one call, so that a pass can enter it
    by its modules. The graph shares its parameters and buffers with the model, which is not
    changed, whatever its forward assigns while it is traced.

    Args:
        model: Any module.
    """
    if isinstance(model, GraphModule):
        return model
    if _traces(model) and not isinstance(model, LEAVES):
        try:
            stand_in = copy.deepcopy(model, {id(t): t for t in _tensors(model)})
            opaque = {module for module in stand_in.modules() if not _traces(module)}
            graph = _Partial(opaque).trace(stand_in)
            return GraphModule(stand_in, graph, type(model).__name__)
        except Exception:  # forwards that trace one by one may still not trace together
            pass
    root = nn.Module()
    root.add_module(WHOLE, Untraced(model))
    graph = Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    graph.output(graph.call_module(WHOLE, (args, kwargs)))
    return GraphModule(root, graph, type(model).__name__)


def _traces(module: nn.Module) -> bool:
    """Whether a module's own forward can be traced."""
    if module.__module__.startswith("torch.nn.") and "forward" not in vars(module):
        return True
    try:
        rewrite.trace_own_forward(module)
    except Exception:  # whatever a user's forward raises under tracing
        return False
    return True


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


class _Partial(Tracer):
    """Keeps torch's own modules, cascades and what can't be traced as leaves."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, LEAVES) or is_transform(m) or m in self._opaque
        return leaf or super().is_leaf_module(m, module_qualified_name)


class FactorizeConvs(PassBase):
    """Replace large-kernel convolutions of a graph by cascades.

    Requires a ``GraphModule``, as ``trace`` or ``torch.fx.symbolic_trace`` return it; ensures
    that the result computes the same within the plan's tolerance. The graph that comes in, and
    the modules that it shares with a model, stay as they are.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        tolerance: float | None = None,
        example_inputs: Any = None,
        **options: Any,
    ) -> None:
        """Set up the pass with a plan, or with what is needed to make one.

        Args:
            plan: Plan of the traced model.
            tolerance: Largest relative error of a layer, for a plan made in the pass.
            example_inputs: Inputs to run the graph with.
            **options: Further arguments of ``convfactor.plan``.

        Raises:
            ValueError: Neither a plan nor a tolerance with example inputs is given, or both are.
        """
        super().__init__()
        given = [tolerance is not None, example_inputs is not None, bool(options)]
        if any(given) if plan is not None else not all(given[:2]):
            raise ValueError(
                "give either a plan, or tolerance and example_inputs (with any other argument of "
                "convfactor.plan)"
            )
        self._plan = plan
        self._request = {"tolerance": tolerance, "example_inputs": example_inputs, **options}

    def requires(self, graph_module: nn.Module) -> None:
        """Check the input.

        Raises:
            TypeError: It is not a GraphModule.
        """
        if not isinstance(graph_module, GraphModule):
            raise TypeError(
                f"graph must be a torch.fx.GraphModule, got {type(graph_module).__name__}; "
                "trace the model first with convfactor.fx.trace"
            )

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite a copy of the graph."""
        plan = self._plan
        if plan is None:
            plan = optimization.plan(graph_module, **self._request)
        result = copy.deepcopy(graph_module)
        whole = getattr(result, WHOLE, None)
        if isinstance(whole, Untraced) and self._plan is not None:
            whole.module = rewrite.apply(whole.module, plan)
        else:
            rewritten = rewrite.apply(result, plan)
            assert isinstance(rewritten, GraphModule)
            result = rewritten
        result.graph.lint()
        return PassResult(result, bool(plan.replaced))
