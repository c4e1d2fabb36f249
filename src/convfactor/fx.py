"""Tracing that never fails, and the rewrite as a torch.fx pass."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from convfactor.model.copies import copied
from convfactor.model.tracing import WHOLE, Untraced, trace
from convfactor.planning import optimization
from convfactor.plans.plan import Plan

__all__ = ["FactorizeConvs", "trace"]


class FactorizeConvs(PassBase):
    """Replace large-kernel convolutions of a graph by cascades.

    Requires a ``GraphModule``, as ``trace`` or ``torch.fx.symbolic_trace`` return it; ensures
    that the result computes the same within the plan's tolerance. The graph that comes in, and
    the modules that it shares with a model, stay as they are.

    Example:
        >>> import torch
        >>> from convfactor.fx import FactorizeConvs, trace
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7), torch.nn.ReLU())
        >>> _ = torch.nn.init.ones_(model[0].weight)
        >>> rewrite = FactorizeConvs(
        ...     tolerance=1e-4, example_inputs=torch.rand(1, 1, 16, 16), objective="macs",
        ...     progress=False,
        ... )
        >>> result = rewrite(trace(model))
        >>> result.modified, type(result.graph_module.get_submodule("0")).__name__
        (True, 'CascadeConv2d')
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
        result = copied(graph_module)
        assert isinstance(result, GraphModule)
        whole = getattr(result, WHOLE, None)
        owners = [owner for entry in plan.entries for owner in entry.subject.owners]
        of_graph = any(owner.partition(".")[0] == WHOLE for owner in owners)
        if isinstance(whole, Untraced) and not of_graph:  # a plan of the model that it wraps
            whole.module = plan.rewrite(whole.module)
        else:
            rewritten = plan.rewrite(result)
            assert isinstance(rewritten, GraphModule)
            result = rewritten
        result.graph.lint()
        return PassResult(result, bool(plan.replaced))
