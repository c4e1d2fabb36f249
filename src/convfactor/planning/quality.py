"""How much worse a rewritten model is: the error of its output, or what the user measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from convfactor.model.agreement import output_errors
from convfactor.model.copies import copied, isolated, told
from convfactor.model.inputs import ModelInputs
from convfactor.model.outputs import structural_difference

# Calls a model and says how good it is.
Evaluate = Callable[[nn.Module], float]


class Quality(Protocol):
    """What a budget for a whole model is spent on."""

    @property
    def limit(self) -> float:
        """The largest loss allowed."""

    @property
    def samples(self) -> int:
        """How many batches or evaluations a loss is measured on."""

    @property
    def before(self) -> float | None:
        """What the original reaches; None where it is the measure itself."""

    def loss(self, model: nn.Module) -> float:
        """How much worse a rewritten model is than the original; infinite where it fails."""

    def part(self, loss: float) -> float:
        """The part of the limit that a loss takes, such that those of several layers add up."""

    def of_part(self, part: float) -> float:
        """The loss that takes a part of the limit."""


@dataclass(frozen=True, eq=False)
class OutputError:
    """The largest relative error of an output of the model.

    Errors of different layers are nearly independent, so that their squares add up.

    Attributes:
        model: The original; it is left as it was.
        batches: What the outputs are compared on.
        limit: The largest error allowed.
        seed: Of what a model draws at random.
    """

    model: nn.Module
    batches: Sequence[ModelInputs]
    limit: float
    seed: int
    before: None = None

    @property
    def samples(self) -> int:
        """Batches that are compared."""
        return len(self.batches)

    def loss(self, model: nn.Module) -> float:
        """The error of the output."""
        original, rewritten = copied(self.model), copied(model)
        pairs = []
        try:
            for batch in self.batches:
                with isolated(self.seed):
                    true = batch.run(original)
                with isolated(self.seed):
                    got = batch.run(rewritten)
                if structural_difference(true, got) is not None:
                    return math.inf
                pairs.append((true, got))
            return max(output_errors(pairs), default=0.0)
        except Exception:  # whatever a user's forward raises
            return math.inf

    def part(self, loss: float) -> float:
        """Its square, relative to the largest."""
        return (loss / self.limit) ** 2

    def of_part(self, part: float) -> float:
        """Undo that."""
        return self.limit * math.sqrt(part)


@dataclass(frozen=True, eq=False)
class Drop:
    """How much less a rewritten model reaches than the original in what the user measures.

    Attributes:
        evaluate: The user's function.
        before: What the original reaches.
        limit: By how much it may be worse.
        sign: 1 where higher is better, -1 where lower is.
        seed: Of what the function draws at random.
    """

    evaluate: Evaluate
    before: float
    limit: float
    sign: int
    seed: int
    samples: int = 1

    @classmethod
    def of(
        cls, model: nn.Module, evaluate: Evaluate, limit: float, higher_is_better: bool, seed: int
    ) -> Drop:
        """Evaluate the original.

        Raises:
            ValueError: ``evaluate`` raises, or gives no finite number.
        """
        try:
            before = _evaluated(evaluate, model, seed)
        except Exception as error:  # whatever a user's function raises
            raise ValueError(
                f"evaluate must be a function (model) -> float, but it raised {told(error)}"
            ) from error
        if not math.isfinite(before):
            raise ValueError(f"evaluate must give a finite number for the model, got {before}")
        return cls(evaluate, before, limit, 1 if higher_is_better else -1, seed)

    def value(self, model: nn.Module) -> float:
        """What a model reaches."""
        return _evaluated(self.evaluate, model, self.seed)

    def loss(self, model: nn.Module) -> float:
        """By how much a model is worse."""
        try:
            value = self.value(model)
        except Exception:  # whatever a user's function raises
            return math.inf
        return self.sign * (self.before - value) if math.isfinite(value) else math.inf

    def part(self, loss: float) -> float:
        """Its share of the largest drop; what gets better costs nothing."""
        if self.limit > 0:
            return max(0.0, loss) / self.limit
        return 0.0 if loss <= 0 else math.inf

    def of_part(self, part: float) -> float:
        """Undo that."""
        return self.limit * part


def _evaluated(evaluate: Evaluate, model: nn.Module, seed: int) -> float:
    """Call the user's function on a copy, which it may change."""
    with isolated(seed):
        return float(evaluate(copied(model)))
