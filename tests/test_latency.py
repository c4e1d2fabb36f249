from __future__ import annotations

import time

import torch

from convfactor.latency import FEWEST_ROUNDS, MOST_ROUNDS, compare

CPU = torch.device("cpu")


def test_calls_are_interleaved_and_without_gradients():
    order: list[str] = []

    def call(name: str) -> None:
        assert not torch.is_grad_enabled()
        order.append(name)
        time.sleep(0.002)  # long enough not to be repeated

    timings = compare([lambda: call("a"), lambda: call("b")], CPU, seconds=0.05)
    assert torch.is_grad_enabled()
    assert len(timings) == 2
    assert order == ["a", "b"] * (len(order) // 2)
    assert FEWEST_ROUNDS <= len(order) // 2 <= MOST_ROUNDS + 2


def test_short_calls_are_repeated():
    calls: list[None] = []
    (timing,) = compare([lambda: calls.append(None)], CPU, seconds=0)
    assert len(calls) > 10 * FEWEST_ROUNDS
    assert 0 < timing.low <= timing.median <= timing.high


def test_times_are_seconds():
    _, slow = compare([lambda: None, lambda: time.sleep(0.01)], CPU, seconds=0)
    assert slow.low >= 0.01
