"""What became of a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convfactor.planning.bench import Trial
from convfactor.planning.choices import Choice, Choices
from convfactor.planning.quality import Quality
from convfactor.plans.plan import Plan
from convfactor.plans.spending import Offer, Share, Spending

# Allowances, relative to that of the choice, for which the frontier of the model is told.
FRONTIER = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.5, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, eq=False)
class Try:
    """A choice, solved, refined and measured.

    Attributes:
        choice: What was chosen.
        trials: Its solutions.
        plan: The plan with them.
        solved: The loss after solving.
        refined: The loss after refinement; None where that was not done or did not help.
    """

    choice: Choice
    trials: Mapping[int, Trial]
    plan: Plan
    solved: float
    refined: float | None = None

    @property
    def loss(self) -> float:
        """The loss in the end."""
        return self.solved if self.refined is None else self.refined


def account(
    choices: Choices,
    quality: Quality,
    names: Sequence[str],
    best: Try | None,
    tries: Sequence[Try],
    seconds: float,
) -> Spending:
    """Say what became of a budget.

    Args:
        choices: What could be chosen.
        quality: What the budget was spent on.
        names: The layers, in the order of the choices.
        best: What was taken, if anything.
        tries: All that was tried.
        seconds: How long that took.
    """
    choice: Choice = {} if best is None else best.choice
    # The sum of the effects is off by this factor, as far as the tries tell.
    latest = best or (tries[-1] if tries else None)
    expected = 0.0 if latest is None else choices.expected(latest.choice)
    off = quality.part(latest.loss) / expected if latest and expected else 1.0
    off = off if math.isfinite(off) else 1.0
    costs = [choices.cost(one.choice) for one in tries]
    offers = {c: Offer(c, one.loss, True) for c, one in zip(costs, tries, strict=True)}
    for share in FRONTIER:
        other = choices.best(share * (expected or 1.0))
        lost = quality.of_part(off * choices.expected(other))
        offer = Offer(choices.cost(other), lost, False)
        offers.setdefault(offer.cost, offer)
    shares = [
        Share(
            names[i],
            off * choices.effects[i].part(point.error),
            choices.frontiers[i].saved(point) / choices.whole,
        )
        for i, point in choice.items()
    ]
    return Spending(
        limit=quality.limit,
        before=quality.before,
        solved=None if best is None else best.solved,
        refined=None if best is None else best.refined,
        samples=quality.samples,
        shares=tuple(shares),
        chosen=Offer(choices.cost(choice), 0.0 if best is None else best.loss, True),
        offers=tuple(sorted(offers.values(), key=lambda offer: -offer.cost)),
        seconds=seconds,
    )
