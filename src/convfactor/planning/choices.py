"""What may be chosen for the layers of a model, what it saves and what it does to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convfactor.planning.effects import Effect
from convfactor.planning.frontier import Frontier, Point
from convfactor.planning.knapsack import Option, choose

# The whole budget must be worth this share of the model's time, and a part of it that part: what
# saves next to nothing is not worth an error.
LEAST_RETURN = 0.05

# For some of the layers, by their number, a point of their frontier.
Choice = Mapping[int, Point]


@dataclass(frozen=True)
class Choices:
    """The frontiers of some layers.

    Attributes:
        frontiers: What each layer can save, and at which error.
        effects: What its error does to the model.
        whole: What the model costs, in the unit of the prices.
    """

    frontiers: Sequence[Frontier]
    effects: Sequence[Effect]
    whole: float

    def best(self, allowance: float) -> Choice:
        """What saves the most, its effects together within an allowance."""
        least = LEAST_RETURN * self.whole / max(allowance, 1e-30)
        points = [frontier.points() for frontier in self.frontiers]
        options = []
        for frontier, effect, own in zip(self.frontiers, self.effects, points, strict=True):
            parts = [(point, effect.part(point.error)) for point in own]
            options.append([Option(frontier.saved(p) - least * part, part) for p, part in parts])
        picks = choose(options, allowance)
        return {i: points[i][pick] for i, pick in enumerate(picks) if pick is not None}

    def confirmed(self, allowance: float) -> Choice:
        """The same, once what is chosen was timed carefully."""
        while True:
            choice = self.best(allowance)
            # All of them are timed before the next choice, which takes a while.
            confirmed = [self.frontiers[i].confirms(point) for i, point in choice.items()]
            if all(confirmed):
                return choice

    def expected(self, choice: Choice) -> float:
        """The part of the budget that the effects of a choice add up to."""
        return sum(self.effects[i].part(point.error) for i, point in choice.items())

    def saved(self, choice: Choice) -> float:
        """What a choice saves."""
        return sum(self.frontiers[i].saved(point) for i, point in choice.items())

    def cost(self, choice: Choice) -> float:
        """What the model costs with a choice, relative to the original."""
        return 1 - self.saved(choice) / self.whole if self.whole else 1.0
