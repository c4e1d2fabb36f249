"""What became of a budget for a whole model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


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
class Share:
    """What one layer takes of the budget, and gives for it.

    Attributes:
        name: Of the layer.
        part: Part of the budget, as measured with that layer alone.
        saved: What it saves, relative to the cost of the model.
    """

    name: str
    part: float
    saved: float


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
        shares: What each replaced layer takes and gives.
        chosen: What was chosen.
        offers: What else there is, from the slowest to the fastest.
        seconds: How long planning took.
    """

    limit: float
    before: float | None
    solved: float | None
    refined: float | None
    samples: int
    shares: tuple[Share, ...]
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

    def only(self, names: Collection[str], loss: float) -> Spending:
        """What is left where some layers are kept after all.

        Args:
            names: The layers that are still replaced.
            loss: The loss with them.
        """
        shares = tuple(share for share in self.shares if share.name in names)
        return replace(
            self,
            solved=loss if shares and self.refined is None else self.solved if shares else None,
            refined=loss if shares and self.refined is not None else None,
            shares=shares,
            chosen=Offer(1 - sum(share.saved for share in shares), loss, True),
        )
