"""Estimates of what a solve takes, against what it allocates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import apart, structure

from convfactor.conv.geometry import ConvGeometry
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorizer import Factorizer
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


@pytest.mark.parametrize(
    "stages",
    [
        structure((64, 16, (3, 3)), (16, 64, (3, 3))),
        structure((8, 16, (3, 3)), *[(16, 16, (3, 3))] * 5, (16, 8, (3, 3))),
        structure((8, 48, (1, 1)), apart(48, (11, 11)), (48, 8, (1, 1))),
        structure((8, 48, (1, 1)), apart(48, (9, 1)), apart(48, (1, 9)), (48, 8, (1, 1))),
        structure((8, 24, (1, 1)), apart(24, (7, 7), 48), (48, 8, (1, 1))),
        structure((8, 48, (1, 1)), apart(48, (7, 7), groups=6), (48, 8, (1, 1))),
        structure((48, 24, (1, 1)), (24, 24, (5, 5)), (24, 48, (1, 1))),
    ],
    ids=str,
)
def test_a_dense_solve_takes_about_the_memory_that_was_said(stages, monkeypatch):
    limits = dense._LIMITS["draft"]
    monkeypatch.setitem(dense._LIMITS, "draft", replace(limits, work=0.0, least=6))
    shape = (stages.stages[-1].out_channels, stages.stages[0].in_channels, *stages.span)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Problem.from_weight(weight)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        dense.solve(Request(problem, stages, effort="draft"))
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    peak = max(itertools.accumulate(event.self_cpu_memory_usage for event in events))
    said = Size.of(stages, stages.span).memory
    assert peak / 2 <= said <= 4 * peak


@pytest.mark.parametrize("metric", [False, True])
def test_many_small_groups_are_not_too_large(metric):
    kernel = ConvGeometry(128, 128, (5, 5), groups=32)
    factorizer = Factorizer(torch.zeros(kernel.weight_shape), kernel, budget=Budget(10.0))
    for family in (*full(kernel), *separable_pair(kernel)):
        narrow = family.structure((64,) * (len(family.kernel_sizes) - 1))
        assert not factorizer.too_large(narrow, calibrated=metric)


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
