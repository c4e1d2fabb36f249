from __future__ import annotations

from dataclasses import dataclass, field

from convfactor.planning.choices import Choices
from convfactor.planning.effects import Effect


@dataclass(frozen=True)
class Offered:
    """A candidate by its number, as it is priced now."""

    candidate: int
    saving: float
    error: float


@dataclass
class Shelf:
    """A layer whose quick prices promise too much."""

    quick: list[float]
    careful: list[float]
    timed: set[int] = field(default_factory=set)

    def points(self) -> list[Offered]:
        return [
            Offered(i, (self.careful if i in self.timed else self.quick)[i], 0.01 * (i + 1))
            for i in range(len(self.quick))
        ]

    def saved(self, point: Offered) -> float:
        return point.saving

    def confirms(self, point: Offered) -> bool:
        self.timed.add(point.candidate)
        return point.saving == self.careful[point.candidate]


def choices(*shelves: Shelf) -> Choices:
    effects = [Effect.of([(0.01, 0.01)]) for _ in shelves]
    return Choices(shelves, effects, 10.0)


def test_a_lucky_price_is_not_chosen():
    shelf = Shelf(quick=[3.0, 9.0, 4.0], careful=[3.0, 1.0, 3.9])
    assert choices(shelf).best(1.0)[0].candidate == 1
    assert choices(shelf).confirmed(1.0)[0].candidate == 2
    assert shelf.timed == {1, 2}  # what nobody chose is not timed again


def test_every_layer_is_confirmed():
    shelves = Shelf([5.0, 2.0], [0.0, 2.0]), Shelf([1.0], [1.0])
    found = choices(*shelves).confirmed(1.0)
    assert {i: point.candidate for i, point in found.items()} == {0: 1, 1: 0}


def test_what_turns_out_to_save_nothing_is_not_chosen():
    assert choices(Shelf([5.0], [-1.0])).confirmed(1.0) == {}


def test_all_that_is_chosen_is_timed_at_once(monkeypatch):
    shelves = [Shelf([9.0, 2.0], [1.0, 2.0]) for _ in range(20)]
    best, rounds = Choices.best, []

    def counted(self, allowance):
        rounds.append(allowance)
        return best(self, allowance)

    monkeypatch.setattr(Choices, "best", counted)
    found = choices(*shelves).confirmed(1.0)
    assert len(found) == 20
    assert len(rounds) <= 3
