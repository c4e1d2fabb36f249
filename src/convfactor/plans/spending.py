"""What became of a budget for a whole model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """What the model would cost at which loss.

    Attributes:
        cost: Of the model, relative to the original's.
        loss: How much worse it is: error of the output, or drop of what is evaluated.
        measured: Whether the loss was measured; otherwise it follows from that of single layers.
    """

    cost: float
    loss: float
    measured: bool


@dataclass(frozen=True)
class Spending:
    """How a budget for a whole model was spent.

    Attributes:
        limit: The largest loss allowed.
        before: What the original reaches in the evaluation; None for the error of the output.
        solved: The loss after solving; None where nothing is replaced.
        refined: The loss after training what is replaced; None where that was not done, or did
            not help.
        samples: How many batches or evaluations a loss is measured on.
        shares: Part of the budget that each replaced layer takes, by name, as measured with that
            layer alone.
        chosen: What was chosen.
        offers: What else there is, from the slowest to the fastest.
        seconds: How long planning took.
    """

    limit: float
    before: float | None
    solved: float | None
    refined: float | None
    samples: int
    shares: tuple[tuple[str, float], ...]
    chosen: Offer
    offers: tuple[Offer, ...]
    seconds: float

    @property
    def loss(self) -> float:
        """The loss in the end."""
        return self.chosen.loss

    @property
    def next(self) -> Offer | None:
        """The next faster model, which the budget does not allow."""
        faster = [o for o in self.offers if o.cost < self.chosen.cost and o.loss > self.limit]
        return max(faster, key=lambda offer: offer.cost, default=None)
