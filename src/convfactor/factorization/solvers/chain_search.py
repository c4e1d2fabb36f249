"""Search for the best chains of every channel: starts, races between them, and second tries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convfactor.conv.grid import Grid
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.efforts import DRAFT, MANY, Plan
from convfactor.factorization.solvers.refine import Fit, Kernels, compose, refine
from convfactor.factorization.solvers.starts import drawn, folded, join, lifted, separable_start

_PAIRS = 15
_LARGEST = 169
_SETTLED = 1e-9
_SOLVED = 1e-26
_SPLIT = 1e-20
# Where there are many channels, a costly way is tried on a few of them first, and on the
# others if it solves one of those or takes this share off their squared error.
_FEW, _GAIN = 8, 0.2


class ChainSearch:
    """Finds starts, refines them and keeps the best.

    Candidates are kernels per stage of shape (channels * starts, branches, kH, kW), the starts of
    a channel next to each other.
    """

    def __init__(self, plan: Plan, generator: torch.Generator, budget: Budget) -> None:
        """Say how much to try, what to draw from, and how long it may take."""
        self.plan = plan
        self.generator = generator
        self.budget = budget

    def run(
        self,
        fit: Fit,
        grid: Grid,
        count: int,
        given: Sequence[Kernels] = (),
        tell: Callable[[float, Tensor], None] = lambda share, losses: None,
    ) -> Kernels:
        """Fit chains with ``count`` branches; one answer per channel."""
        if len(grid.sizes) == 1:  # linear, so that where to start does not matter
            return refine(fit, folded(fit, grid, count), grid, self.plan.steps, _SETTLED)[0]
        direct = [*given, folded(fit, grid, count)]
        if grid.is_plain:
            direct.append(separable_start(fit, grid, count))
        channels = len(fit.target)
        starts = join(direct, channels)
        runners = len(starts[0]) // channels
        balanced, scores = refine(fit.repeat(runners), starts, grid, 0)
        losses, first = scores.view(channels, runners).min(1)
        best = [k.unflatten(0, (channels, -1))[torch.arange(channels), first] for k in balanced]
        # An exact split stays as it is: its stages are in the order of the least rounding.
        inexact = todo = (losses > _SPLIT).nonzero()[:, 0]
        if todo.numel() == 0:
            return best
        entered = [k.unflatten(0, (channels, -1))[todo].flatten(0, 1) for k in starts]
        found, losses[todo] = self._race(fit.take(todo), grid, entered)
        _put(best, todo, found)
        ways: list[Callable[[Fit, Kernels], Kernels]] = []
        if count > 1:
            ways.append(lambda part, _: self._boost(part, grid, count))
        if self.plan.random:
            ways.append(lambda part, _: self._random(part, grid, count, self.plan.random))
        cheap = len(ways)
        if count == 1 and len(grid.sizes) > 2:
            if self.plan.peeled:
                ways.append(lambda part, _: self._peel(part, grid))
            ways += [lambda part, now: self._resplit(part, grid, now)] * self.plan.rounds
        for done, way in enumerate(ways):
            tell((done + 1) / (len(ways) + 1), losses)
            todo = (losses > _SOLVED).nonzero()[:, 0]
            if done >= cheap and len(todo) > MANY:
                first, todo = todo[:_FEW], todo[_FEW:]
                before = losses[first]
                self._follow(way, fit, grid, best, losses, first)
                after = losses[first]
                if bool((after > _SOLVED).all()) and after.sum() > (1 - _GAIN) * before.sum():
                    break
            self._follow(way, fit, grid, best, losses, todo)
        now = [kernel[inexact] for kernel in best]
        last = refine(fit.take(inexact), now, grid, self.plan.steps, _SETTLED, self.budget)
        _put(best, inexact, last[0])
        return best

    def _follow(
        self,
        way: Callable[[Fit, Kernels], Kernels],
        fit: Fit,
        grid: Grid,
        best: Kernels,
        losses: Tensor,
        todo: Tensor,
    ) -> None:
        """Let starts of one kind race with the best of some channels, and keep what wins."""
        if todo.numel() == 0 or self.budget.used_up():
            return
        part, now = fit.take(todo), [kernel[todo] for kernel in best]
        found, losses[todo] = self._race(part, grid, join([now, way(part, now)], len(todo)))
        _put(best, todo, found)

    def _race(self, fit: Fit, grid: Grid, kernels: Kernels) -> tuple[Kernels, Tensor]:
        """Refine the starts of every channel in heats, each with fewer that survive."""
        channels = len(fit.target)
        losses = kernels[0].new_zeros(len(kernels[0]))
        for steps, survivors in self.plan.heats:
            runners = len(kernels[0]) // channels
            many = fit.repeat(runners)
            kernels, losses = refine(many, kernels, grid, steps, budget=self.budget)
            best = losses.view(channels, runners).topk(min(survivors, runners), 1, False)[1]
            first = torch.arange(channels, device=best.device)[:, None] * runners
            index = (first + best).flatten()
            kernels, losses = [kernel[index] for kernel in kernels], losses[index]
        return kernels, losses

    def _random(self, fit: Fit, grid: Grid, count: int, starts: int) -> Kernels:
        return drawn(fit, grid, count, starts, self.generator)

    def _boost(self, fit: Fit, grid: Grid, count: int) -> Kernels:
        """Fit one branch after the other to what is left."""
        branches: list[Kernels] = []
        left = fit.target
        for _ in range(count):
            size = left.abs().amax(1, keepdim=True)
            size = torch.where(size > 0, size, 1)
            branch = self.run(replace(fit, target=left / size), grid, 1)
            branch[-1] = branch[-1] * size[..., None, None]
            branches.append(branch)
            left = left - compose(branch, grid).flatten(1)
        return [torch.cat(stage, 1) for stage in zip(*branches, strict=True)]

    def _peel(self, fit: Fit, grid: Grid) -> Kernels:
        """Split off the last stage, then the one before it from what remains, and so on."""
        stages = len(grid.sizes)
        halves = grid.merge(range(stages - 1), [stages - 1])
        pair = lifted(fit.target.view(-1, 1, *grid.span), halves)
        if halves.taps <= _LARGEST:
            random = self._random(fit, halves, 1, self.plan.peeled)
            pair, _ = self._race(fit, halves, join([pair, random], len(fit.target)))
        rest, last = pair
        lighter = replace(self.plan, random=8, peeled=8, rounds=0)
        inner = ChainSearch(lighter, self.generator, self.budget)
        return [*inner.run(_plain(rest), grid.select(range(stages - 1)), 1), last]

    def _resplit(self, fit: Fit, grid: Grid, kernels: Kernels) -> Kernels:
        """Merge every two stages to one with free taps, refine, and split it anew."""
        stages = len(grid.sizes)
        pairs = list(itertools.combinations(range(stages), 2))
        order = torch.randperm(len(pairs), generator=self.generator)[:_PAIRS].tolist()
        inner = ChainSearch(DRAFT, self.generator, self.budget)
        found: list[Kernels] = []
        for i, j in (pairs[k] for k in sorted(order)):
            if found and self.budget.used_up():
                break
            rest = [k for k in range(stages) if k not in (i, j)]
            two = grid.select([i, j])
            merged = compose([kernels[i], kernels[j]], two)[:, None]
            whole = [merged, *(kernels[k] for k in rest)]
            relaxed, _ = refine(fit, whole, grid.merge([i, j], rest), 15, budget=self.budget)
            split = inner.run(_plain(relaxed[0]), two, 1)
            places = dict(zip([i, j, *rest], [*split, *relaxed[1:]], strict=True))
            found.append([places[k] for k in range(stages)])
        return join(found, len(fit.target))


def _plain(kernels: Tensor) -> Fit:
    """Fit kernels (N, 1, H, W) for white noise."""
    return Fit(kernels.flatten(1), torch.zeros(len(kernels), dtype=torch.long).to(kernels.device))


def _put(kernels: Kernels, index: Tensor, new: Kernels) -> None:
    """Replace the kernels of some channels."""
    for kernel, part in zip(kernels, new, strict=True):
        kernel[index] = part
