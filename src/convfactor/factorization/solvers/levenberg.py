"""Solver for kernels with one input channel per group: single-channel and depthwise ones.

All channels and all starts are fitted together by batched Levenberg-Marquardt. The starts are the
exact split of the separable part, stages peeled off one after the other, and random ones; pairs
of stages of the best answer are then merged and split again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.chains import Layout, branches, embed, pack
from convfactor.factorization.solvers.efforts import DRAFT, MANY, Plan, affordable
from convfactor.factorization.solvers.problem import Effort, Problem, Progress
from convfactor.factorization.solvers.reduction import Reduction
from convfactor.factorization.solvers.refine import Fit, Kernels, compose, refine
from convfactor.factorization.solvers.starts import drawn, folded, join, lifted, separable_start

_FLOOR = 1e-12
_PAIRS = 15
_LARGEST = 169
_SETTLED = 1e-9
_SOLVED = 1e-26
_SPLIT = 1e-20
# Where there are many channels, a costly way is tried on a few of them first, and on the
# others if it solves one of those or takes this share off their squared error.
_FEW, _GAIN = 8, 0.2


def handles(problem: Problem, structure: Structure) -> bool:
    """Tell whether ``solve`` is made for a problem and a structure."""
    groups, out_per_group, inputs = problem.target.shape[:3]
    if inputs != 1:
        return False
    try:
        branches(structure, groups, out_per_group)
    except ValueError:
        return False
    return True


def solve(
    problem: Problem,
    structure: Structure,
    *,
    starts: Sequence[Cascade] = (),
    seed: int = 0,
    ridge: float = 0.0,
    effort: Effort = "full",
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> Cascade:
    """Find the best chains for every channel.

    Args:
        problem: Its target has one input channel per group, and any number of output channels.
        structure: One chain, or several in parallel, for every output channel, as
            ``chain_structure`` makes them; stages of any size, stride and dilation.
        starts: Cascades of this structure or a smaller one (fewer or smaller stages, fewer
            branches) to start from as well; the answer is never worse than any of them.
        seed: Seed of the random starts.
        ridge: White noise added to the input, relative to its mean power.
        effort: "draft" for an answer good enough to search with, "full" for the best one.
        progress: Called with the share of the work done and the relative error reached.
        budget: Time to stop after, with the best so far; None for no end.

    Returns:
        A balanced float64 cascade of exactly this structure.

    Raises:
        ValueError: The structure mixes channels in another way or does not fit in the window, the
            target is not finite, or a start does not fit in the structure.
    """
    groups, out_per_group, inputs = problem.target.shape[:3]
    if inputs != 1:
        raise ValueError(f"problem.target must have one input channel per group, got {inputs}")
    if not bool(problem.target.isfinite().all()):
        raise ValueError("problem.target must be finite, it holds Inf or NaN")
    count = branches(structure, groups, out_per_group)
    layout = Layout.of(structure)
    fit, scale = _normalise(problem, structure, ridge)
    given = []
    for start in starts:
        smaller = branches(start.structure, groups, out_per_group)
        kernels = [k.to(fit.target) for k in embed(start, structure, count, smaller)]
        size = torch.where(scale > 0, scale, 1)[:, None, None, None]
        given.append([*kernels[:-1], kernels[-1] / size])

    def tell(share: float, losses: Tensor) -> None:
        if progress:
            power = scale / torch.where(scale > 0, scale, 1).amax()
            progress(share, float(((losses * power**2).sum() / (power**2).sum()).sqrt()))

    generator = torch.Generator().manual_seed(seed)
    budget = Budget() if budget is None else budget
    channels, pixels = fit.target.shape
    plan = affordable(channels, count * layout.taps, pixels, effort)
    search = _Search(plan, generator, budget)
    best = search.run(fit, layout, count, given, tell)
    cascade = pack(structure, _zeroed(best, fit.target)).balanced()
    last = cascade.stages[-1]
    last = replace(last, weight=last.weight * scale[:, None, None, None])
    return replace(cascade, stages=(*cascade.stages[:-1], last))


def _normalise(problem: Problem, structure: Structure, ridge: float) -> tuple[Fit, Tensor]:
    """Restrict the problem to the structure's span and give every channel unit output power."""
    reduction = Reduction.of(problem, structure, ridge)
    target = reduction.target.flatten(0, 1)
    groups, outputs = problem.target.shape[:2]
    roots = None
    if reduction.covariance is not None:
        values, vectors = torch.linalg.eigh(reduction.covariance)
        # The floor decides what a degenerate metric leaves open.
        roots = vectors * values.clamp_min(_FLOOR).sqrt()[:, None]
    group = torch.arange(groups, device=target.device).repeat_interleave(outputs)
    peak = target.abs().amax(1)
    peak = torch.where(peak > 0, peak, 1)
    fit = Fit(target / peak[:, None], group, roots)
    power = fit.weigh(fit.target[:, None])[:, 0].norm(dim=1)
    power = torch.where(power > 0, power, 1)
    scale = peak * power * reduction.scale.repeat_interleave(outputs)
    return replace(fit, target=fit.target / power[:, None]), scale


def _zeroed(kernels: Kernels, target: Tensor) -> Kernels:
    """Let the chains of all-zero channels pass their input on and end in zeros."""
    empty = (target == 0).all(1)[:, None, None, None]
    shifts = []
    for kernel in kernels[:-1]:
        shift = torch.zeros_like(kernel)
        shift[..., kernel.shape[-2] // 2, kernel.shape[-1] // 2] = 1
        shifts.append(torch.where(empty, shift, kernel))
    return [*shifts, torch.where(empty, 0, kernels[-1])]


class _Search:
    """Finds starts, refines them and keeps the best.

    Candidates are kernels per stage of shape (channels * starts, branches, kH, kW), the starts of
    a channel next to each other.
    """

    def __init__(self, plan: Plan, generator: torch.Generator, budget: Budget) -> None:
        self.plan = plan
        self.generator = generator
        self.budget = budget

    def run(
        self,
        fit: Fit,
        layout: Layout,
        count: int,
        given: Sequence[Kernels] = (),
        tell: Callable[[float, Tensor], None] = lambda share, losses: None,
    ) -> Kernels:
        """Fit chains with ``count`` branches; one answer per channel."""
        direct = [*given, folded(fit, layout, count)]
        if all(spacing == (1, 1) for spacing in layout.spacings):
            direct.append(separable_start(fit, layout, count))
        channels = len(fit.target)
        starts = join(direct, channels)
        runners = len(starts[0]) // channels
        balanced, scores = refine(fit.repeat(runners), starts, layout, 0)
        losses, first = scores.view(channels, runners).min(1)
        best = [k.unflatten(0, (channels, -1))[torch.arange(channels), first] for k in balanced]
        # An exact split stays as it is: its stages are in the order of the least rounding.
        inexact = todo = (losses > _SPLIT).nonzero()[:, 0]
        if todo.numel() == 0:
            return best
        entered = [k.unflatten(0, (channels, -1))[todo].flatten(0, 1) for k in starts]
        found, losses[todo] = self._race(fit.take(todo), layout, entered)
        _put(best, todo, found)
        ways: list[Callable[[Fit, Kernels], Kernels]] = []
        if count > 1:
            ways.append(lambda part, _: self._boost(part, layout, count))
        if self.plan.random:
            ways.append(lambda part, _: self._random(part, layout, count, self.plan.random))
        cheap = len(ways)
        if count == 1 and len(layout.sizes) > 2:
            if self.plan.peeled:
                ways.append(lambda part, _: self._peel(part, layout))
            ways += [lambda part, now: self._resplit(part, layout, now)] * self.plan.rounds
        for done, way in enumerate(ways):
            tell((done + 1) / (len(ways) + 1), losses)
            todo = (losses > _SOLVED).nonzero()[:, 0]
            if done >= cheap and len(todo) > MANY:
                first, todo = todo[:_FEW], todo[_FEW:]
                before = losses[first]
                self._follow(way, fit, layout, best, losses, first)
                after = losses[first]
                if bool((after > _SOLVED).all()) and after.sum() > (1 - _GAIN) * before.sum():
                    break
            self._follow(way, fit, layout, best, losses, todo)
        now = [kernel[inexact] for kernel in best]
        last = refine(fit.take(inexact), now, layout, self.plan.steps, _SETTLED, self.budget)
        _put(best, inexact, last[0])
        return best

    def _follow(
        self,
        way: Callable[[Fit, Kernels], Kernels],
        fit: Fit,
        layout: Layout,
        best: Kernels,
        losses: Tensor,
        todo: Tensor,
    ) -> None:
        """Let starts of one kind race with the best of some channels, and keep what wins."""
        if todo.numel() == 0 or self.budget.used_up():
            return
        part, now = fit.take(todo), [kernel[todo] for kernel in best]
        found, losses[todo] = self._race(part, layout, join([now, way(part, now)], len(todo)))
        _put(best, todo, found)

    def _race(self, fit: Fit, layout: Layout, kernels: Kernels) -> tuple[Kernels, Tensor]:
        """Refine the starts of every channel in heats, each with fewer that survive."""
        channels = len(fit.target)
        losses = kernels[0].new_zeros(len(kernels[0]))
        for steps, survivors in self.plan.heats:
            runners = len(kernels[0]) // channels
            many = fit.repeat(runners)
            kernels, losses = refine(many, kernels, layout, steps, budget=self.budget)
            best = losses.view(channels, runners).topk(min(survivors, runners), 1, False)[1]
            first = torch.arange(channels, device=best.device)[:, None] * runners
            index = (first + best).flatten()
            kernels, losses = [kernel[index] for kernel in kernels], losses[index]
        return kernels, losses

    def _random(self, fit: Fit, layout: Layout, count: int, starts: int) -> Kernels:
        return drawn(fit, layout, count, starts, self.generator)

    def _boost(self, fit: Fit, layout: Layout, count: int) -> Kernels:
        """Fit one branch after the other to what is left."""
        branches: list[Kernels] = []
        left = fit.target
        for _ in range(count):
            size = left.abs().amax(1, keepdim=True)
            size = torch.where(size > 0, size, 1)
            branch = self.run(replace(fit, target=left / size), layout, 1)
            branch[-1] = branch[-1] * size[..., None, None]
            branches.append(branch)
            left = left - compose(branch, layout).flatten(1)
        return [torch.cat(stage, 1) for stage in zip(*branches, strict=True)]

    def _peel(self, fit: Fit, layout: Layout) -> Kernels:
        """Split off the last stage, then the one before it from what remains, and so on."""
        stages = len(layout.sizes)
        halves = layout.merge(range(stages - 1), [stages - 1])
        pair = lifted(fit.target.view(-1, 1, *layout.span), halves)
        if halves.taps <= _LARGEST:
            random = self._random(fit, halves, 1, self.plan.peeled)
            pair, _ = self._race(fit, halves, join([pair, random], len(fit.target)))
        rest, last = pair
        lighter = replace(self.plan, random=8, peeled=8, rounds=0)
        inner = _Search(lighter, self.generator, self.budget)
        return [*inner.run(_plain(rest), layout.select(range(stages - 1)), 1), last]

    def _resplit(self, fit: Fit, layout: Layout, kernels: Kernels) -> Kernels:
        """Merge every two stages to one with free taps, refine, and split it anew."""
        stages = len(layout.sizes)
        pairs = list(itertools.combinations(range(stages), 2))
        order = torch.randperm(len(pairs), generator=self.generator)[:_PAIRS].tolist()
        inner = _Search(DRAFT, self.generator, self.budget)
        found: list[Kernels] = []
        for i, j in (pairs[k] for k in sorted(order)):
            if found and self.budget.used_up():
                break
            rest = [k for k in range(stages) if k not in (i, j)]
            two = layout.select([i, j])
            merged = compose([kernels[i], kernels[j]], two)[:, None]
            whole = [merged, *(kernels[k] for k in rest)]
            relaxed, _ = refine(fit, whole, layout.merge([i, j], rest), 15, budget=self.budget)
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
