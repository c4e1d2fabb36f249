"""The whole model as the judge of a plan: what changes more than its layers explain is undone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from convfactor.conv.accuracy import ErrorMeter
from convfactor.conv.layer import CascadeConv2d
from convfactor.model import rewrite
from convfactor.model.agreement import output_errors
from convfactor.model.copies import copied, quiet, told
from convfactor.model.inputs import ModelInputs
from convfactor.model.outputs import RUNS, difference, runs, structural_difference
from convfactor.model.reasons import Reason
from convfactor.planning.stand_ins import exact_layer
from convfactor.plans.decisions import Replaced
from convfactor.plans.plan import Plan

# How many times the error of all layers together may be found at the output: measured on
# networks for images it is 0.7 to 1.5 times.
AMPLIFICATION = 4.0
# How many times the planned error of a layer, which may be that of white noise, data may show.
STRAY = 30.0


class Probe(CascadeConv2d):
    """Computes what the original did, and measures a cascade on the same inputs."""

    fast: CascadeConv2d
    calls = 0

    def watch(self, fast: CascadeConv2d, meter: ErrorMeter) -> Probe:
        """Take the cascade to measure, and the sums to add to."""
        self.fast, self.meter = fast, meter
        return self

    def convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Run the original convolution, and the cascade beside it."""
        true = super().convolve(input, bias)
        self.calls += 1
        # Transforms of torch.func let no value be read.
        if true.numel() and not is_functorch_wrapped_tensor(true):
            self.meter.add(true, self.fast.convolve(input, bias))
        return true


class UnlikeError(Exception):
    """Two outputs can't be compared value by value."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Runs a model beside its rewrite.

    Attributes:
        model: The model that is planned; it is left as it was.
        inputs: The calls that stand for its use.
        held_out: Inputs that the fit has not seen; empty without calibration.
    """

    model: nn.Module
    inputs: Sequence[ModelInputs]
    held_out: Sequence[ModelInputs]
    _known: dict[tuple[int, ...], tuple[float, ...]] = field(default_factory=dict)

    def sound(self, chosen: Plan) -> Plan:
        """Undo the replacements with which the model does not compute what it did.

        First every cascade is a probe that computes exactly what the original layer does: then
        whatever differs comes from the exchange itself, such as a forward that asks what its
        layers are. Then the cascades take their places: what the output is off must not be far
        more than what the layers were measured to be off, on the same data.
        """
        chosen, measured = self._transparent(chosen)
        chosen = self._as_planned(chosen, measured)
        while chosen.replaced:
            limit = self._limit(chosen, measured)
            found = self._fault(chosen, limit)
            if found is None:
                return chosen
            alone = {i: self._fault(only(chosen, i), limit) for i in chosen.replaced}
            guilty = [i for i, fault in alone.items() if fault is not None]
            worst = guilty or [max(chosen.replaced, key=lambda i: measured[i])]
            for i in worst:
                chosen = chosen.keeping(i, _undone(alone[i] or found))
        return chosen

    def errors(self, chosen: Plan) -> tuple[float, ...]:
        """Relative errors of the outputs of the rewritten model, measured once for every choice.

        Raises:
            UnlikeError: They are not of the form of the original's.
        """
        key = tuple(chosen.replaced)
        if key not in self._known:
            fast = chosen.rewrite(copied(self.model))
            batches = self.held_out or self.inputs
            self._known[key] = output_errors(_alike(runs(copied(self.model), fast, batches)))
        return self._known[key]

    def _limit(self, chosen: Plan, measured: dict[int, float]) -> float:
        """The largest error at the output that the layers explain."""
        layers = sum(measured[i] for i in chosen.replaced)
        return max(chosen.settings.layer_tolerance, AMPLIFICATION * layers)

    def _fault(self, chosen: Plan, limit: float) -> str | None:
        """What is wrong with a rewritten model."""
        try:
            with quiet(self.model):
                off = max(self.errors(chosen), default=0.0)
        except UnlikeError as unlike:
            return f"with it, {unlike}"
        except Exception as error:  # whatever a user's forward raises
            return f"with it the model raises {told(error)}"
        if off <= limit:
            return None
        return (
            f"with it the output is {off:.2%} off, where the errors of the layers explain at most "
            f"{limit:.2%}; the model may branch on its values"
        )

    def _as_planned(self, chosen: Plan, measured: dict[int, float]) -> Plan:
        """Undo layers that are far more off on the model's data than the plan says."""
        for i, off in measured.items():
            planned = chosen.entries[i].decision.error or 0.0
            if not off <= max(chosen.settings.layer_tolerance, STRAY * planned):
                reason = f"on the model's data the layer is {off:.2%} off"
                chosen = chosen.keeping(i, _undone(reason))
        return chosen

    def _transparent(self, chosen: Plan) -> tuple[Plan, dict[int, float]]:
        """Undo what can't be exchanged, and measure the errors of the other layers."""
        measured: dict[int, float] = {}
        while chosen.replaced:
            fault, measured = self._probed(chosen)
            if fault is None:
                break
            alone = {i: self._probed(only(chosen, i))[0] for i in chosen.replaced}
            guilty = [i for i, found in alone.items() if found is not None] or chosen.replaced
            for i in guilty:
                chosen = chosen.keeping(i, _undone(alone[i] or fault))
        return chosen, measured

    def _probed(self, chosen: Plan) -> tuple[str | None, dict[int, float]]:
        """Run the model with probes: what differs, and the errors of the layers."""
        meters = _meters(chosen)
        probes: dict[int, list[Probe]] = {i: [] for i in meters}

        def make(index: int, weight: Tensor, bias: Tensor | None) -> CascadeConv2d:
            geometry = chosen.entries[index].subject.laid
            assert geometry is not None
            probe = exact_layer(Probe, geometry, weight, bias)
            probe.watch(chosen.layer(index, weight, bias), meters[index])
            probes[index].append(probe)
            return probe

        try:
            with quiet(self.model):
                model = copied(self.model)
                control = rewrite.apply(copied(self.model), chosen.exchanges(make))
                fault = difference(model, control, self.inputs)
                missing = next((i for i in probes if not _reached(chosen, i, probes[i])), None)
                fault = fault or difference(model, control, self.held_out)
        except Exception as error:  # whatever a user's forward raises
            return f"with it the model raises {told(error)}", {}
        if fault is not None:
            return self._blame(fault), {}
        if missing is not None:
            return "the forward reaches the layer past the module that it is registered in", {}
        planned = {i: chosen.entries[i].decision.error or 0.0 for i in chosen.replaced}
        found = {i: meter.errors().pooled for i, meter in meters.items() if meter.seen}
        return None, planned | found

    def _blame(self, fault: str) -> str:
        """Say why two models differ that should not."""
        batches = [*self.inputs, *self.held_out]
        if difference(copied(self.model), copied(self.model), batches) is not None:
            return (
                f"the model gives other outputs in every run ({fault}), so nothing can be checked"
            )
        return f"{fault} with another layer in its place, which computes the same"


def only(chosen: Plan, index: int) -> Plan:
    """A plan that replaces one layer, and swaps no transform."""
    others = set(chosen.replaced) - {index}
    return functools.reduce(lambda plan, other: plan.keeping(other, ""), others, chosen)


def _meters(chosen: Plan) -> dict[int, ErrorMeter]:
    """What measures the errors of the cascades, as the plan does, by their entries."""
    return {
        i: ErrorMeter(e.decision.cascade.structure.stages[-1].out_channels, e.decision.gains)
        for i, e in enumerate(chosen.entries)
        if isinstance(e.decision, Replaced)
    }


def _undone(fault: str) -> Reason:
    """Why a replacement is taken back."""
    return Reason("unsound", "undone: the model differs", f"undone: {fault}")


def _reached(chosen: Plan, index: int, probes: Sequence[Probe]) -> bool:
    """Whether the calls of a layer, in all runs on the example, have come to its place."""
    calls = sum(chosen.entries[index].subject.calls)
    return sum(probe.calls for probe in probes) >= RUNS * calls


def _alike(pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Pass on pairs of outputs that hold the same things."""
    for true, got in pairs:
        unlike = structural_difference(true, got)
        if unlike is not None:
            raise UnlikeError(unlike)
        yield true, got
