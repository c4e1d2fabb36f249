"""Estimates of what a solve takes, against what it allocates."""

from __future__ import annotations

import pytest
import torch

from convfactor.conv.geometry import ConvGeometry
from convfactor.factorization.budget import Budget
from convfactor.factorization.families import full, separable_pair
from convfactor.factorization.solvers import Problem, Request, Size, dense
from convfactor.factorization.solvers.chains import chain_structure


def test_more_of_anything_takes_more():
    def size(channels, side, width, metric=False):
        kernel = ConvGeometry(channels, channels, (side, side))
        structure = next(full(kernel)).structure((width,) * ((side - 1) // 2 - 1))
        return Size.of(structure, structure.span, metric)

    plain = size(16, 5, 8)
    for larger in (size(32, 5, 8), size(16, 9, 8), size(16, 5, 16), size(16, 5, 8, metric=True)):
        assert larger.memory > plain.memory
        assert larger.seconds > plain.seconds


@pytest.mark.parametrize("shape", [(64, 64, 5, 5), (8, 8, 15, 15)])
def test_a_dense_solve_allocates_no_more_than_was_said(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    structure = next(full(ConvGeometry.from_shape(weight.shape))).structure(
        (16,) * ((shape[2] - 1) // 2 - 1)
    )
    problem = Problem.from_weight(weight)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        dense.solve(Request(problem, structure, budget=Budget(0)))
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= Size.of(structure, structure.span).memory


def test_a_pair_that_is_decomposed_at_once_needs_little_time():
    kernel = ConvGeometry(256, 256, (5, 5))
    structure = next(separable_pair(kernel)).structure((376,))
    size = Size.of(structure, structure.span)
    assert size.seconds < 10  # what factorize allows by itself
    assert Size.of(structure, structure.span, dense_metric=True).seconds > size.seconds


def test_huge_numbers_are_no_obstacle():
    structure = chain_structure(10**6, 1, [(3, 3)] * 500)
    size = Size.of(structure, (2**60, 2**60))
    assert size.memory > 1e30
    assert size.seconds > 1e20
