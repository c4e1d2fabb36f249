"""Solve one kernel for one structure, and measure what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.moments import Moments
from convfactor.conv.scales import Scales
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorization import Factorization
from convfactor.factorization.families import Family
from convfactor.factorization.solvers import Problem, Request, Size, constraints, solve
from convfactor.factorization.solvers.request import Effort

# Called with a structure that is being solved, the share of the work done and the error reached.
Report = Callable[[Structure, float, float], None]


def silent(structure: Structure, share: float, error: float) -> None:
    """Report nothing; unlike a lambda, it can be sent to another process."""


SECONDS_PER_STAGE = 1.0
MOST_MEMORY = 4 << 30


@dataclass(frozen=True, eq=False)
class Factorizer:
    """One kernel in one metric, ready to be solved for any structure.

    Attributes:
        weight: (C_out, C_in/groups, kH, kW), on the device to solve on.
        kernel: The convolution.
        moments: Moments of its input patches, or None for white noise.
        preserve_dc: Whether to keep every kernel's sum exactly.
        ridge: White noise added to the input patches, relative to their mean power.
        seed: Seed of the random starts.
        report: Called while a structure is solved.
        budget: Time that all solves together may take.
        scales: How much its channels count.
    """

    weight: Tensor
    kernel: ConvGeometry
    moments: Moments | None = None
    preserve_dc: bool = False
    ridge: float = 0.0
    seed: int = 0
    report: Report = silent
    budget: Budget = field(default_factory=Budget)
    scales: Scales = field(default_factory=Scales)

    def problem(self, structure: Structure) -> Problem:
        """The problem on the smallest window that holds the kernel and the structure."""
        problem = Problem.from_weight(
            self.weight, self.kernel.groups, self.moments, self.margin(structure)
        )
        return replace(problem, target=self.scales.kernel(problem.target))

    def fits(self, structure: Structure) -> bool:
        """Whether the moments reach as far as the structure spans, and it can be solved at all."""
        wanted = self.margin(structure)
        reach = wanted if self.moments is None else self.moments.margin
        within = all(w <= have for w, have in zip(wanted, reach, strict=True))
        return within and not self.too_large(structure)

    def too_large(self, structure: Structure, starts: int = 1, calibrated: bool = False) -> str:
        """Say why a structure can't be solved in the memory and time allowed; empty if it can.

        Args:
            structure: The structure.
            starts: Starts of every channel that are held at once.
            calibrated: Whether there will be moments, where there are none yet.
        """
        window = tuple(
            k + 2 * m for k, m in zip(self.kernel.kernel_size, self.margin(structure), strict=True)
        )
        metric = calibrated or self.moments is not None or self.preserve_dc
        size = Size.of(structure, (window[0], window[1]), metric, starts)
        if size.memory > MOST_MEMORY:
            return f"takes some {size.memory / 2**30:.0f} GB, and {MOST_MEMORY >> 30} are allowed"
        if size.seconds > self.budget.seconds:
            allowed = f"{self.budget.seconds:g} s are allowed"
            return f"takes {size.seconds:.2g} s for the first step alone, and {allowed}"
        return ""

    def margin(self, structure: Structure) -> Pair:
        """Taps that the structure reaches beyond the kernel, at most, per side."""
        rows, cols = (
            max(-o, o + span - k, 0)
            for o, span, k in zip(
                structure.offset, structure.span, self.kernel.kernel_size, strict=True
            )
        )
        return rows, cols

    def unchanged(self) -> Factorization:
        """The kernel as a cascade of itself."""
        kernel, weight = self.kernel, self.weight
        family = Family(kernel, (kernel.kernel_size,), (kernel.stride,), ((1, 1),))
        nothing = torch.zeros((), dtype=torch.float64, device=weight.device)
        return Factorization(
            cascade=Cascade.of(family.structure(()), [weight]),
            error=0.0,
            channel_errors=nothing.repeat(kernel.out_channels),
            bias_shift=nothing.repeat(kernel.out_channels),
            noise_gain=0.0,
            residual=nothing.expand(weight.shape),
            origin=(0, 0),
            geometry=kernel,
            exact=True,
        )

    def attempt(
        self,
        structure: Structure,
        effort: Effort = "full",
        starts: Sequence[Cascade] = (),
        needed: float = 0.0,
    ) -> Factorization:
        """Solve for one of several structures, leaving time for the others."""
        seconds = max(SECONDS_PER_STAGE * len(structure.stages), self.budget.left / 2)
        own = replace(self, budget=self.budget.part(seconds))
        return own.solve(structure, effort, starts, needed)

    def solve(
        self,
        structure: Structure,
        effort: Effort = "full",
        starts: Sequence[Cascade] = (),
        needed: float = 0.0,
    ) -> Factorization:
        """Solve for a structure, round, and measure what came out."""
        problem = self.problem(structure)
        aim = constraints.weigh_dc(problem) if self.preserve_dc else problem
        request = Request(
            aim,
            structure,
            starts=[self.scales.cascade(start) for start in starts],
            seed=self.seed,
            ridge=self.ridge,
            effort=effort,
            needed=0.0 if self.preserve_dc else needed,  # of another metric
            progress=lambda share, error: self.report(structure, share, error),
            budget=self.budget,
        )
        return self.measure(self.scales.inverse.cascade(solve(request)), problem)

    def measure(self, cascade: Cascade, problem: Problem | None = None) -> Factorization:
        """Apply the constraint, round to the weight's dtype and compute the errors."""
        problem = self.problem(cascade.structure) if problem is None else problem
        if self.preserve_dc:
            weighed = constraints.preserve_dc(problem, self.scales.cascade(cascade))
            cascade = self.scales.inverse.cascade(weighed)
        rounded = _rounded(cascade, self.weight.dtype)
        residual = self._residual(problem, rounded)
        shift = residual.new_zeros(self.kernel.out_channels)
        if self.moments is not None:
            margin = (-problem.origin[0], -problem.origin[1])
            mean = self.moments.cropped(margin).mean.to(residual.device)
            shift = -torch.einsum("gop,gp->go", residual.flatten(2), mean).flatten()
        exact = problem.error(self.scales.cascade(cascade)) <= problem.exact
        return self._described(problem, rounded, residual, shift, exact)

    def retouched(self, cascade: Cascade, bias_shift: Tensor) -> Factorization:
        """Measure a cascade that was changed after it was rounded, and the bias with it.

        Args:
            cascade: In the weight's dtype.
            bias_shift: Float64 (C_out,), what the bias takes up.
        """
        problem = self.problem(cascade.structure)
        residual = self._residual(problem, cascade)
        return self._described(problem, cascade, residual, bias_shift, False)

    def _residual(self, problem: Problem, cascade: Cascade) -> Tensor:
        """Composed kernel minus the weight, on the problem's window."""
        return self.scales.inverse.kernel(problem.residual(self.scales.cascade(cascade)))

    def _described(
        self, problem: Problem, rounded: Cascade, residual: Tensor, shift: Tensor, exact: bool
    ) -> Factorization:
        """Put the figures of a rounded cascade together."""
        weighed = self.scales.cascade(rounded)
        return Factorization(
            cascade=rounded,
            error=problem.error(weighed),
            channel_errors=problem.channel_errors(weighed).flatten(),
            bias_shift=shift,
            noise_gain=rounded.noise_gain(),
            residual=residual.flatten(0, 1),
            origin=problem.origin,
            geometry=self.kernel,
            calibrated=self.moments is not None,
            exact=exact,
        )


def _rounded(cascade: Cascade, dtype: torch.dtype) -> Cascade:
    """Round to a dtype, with no weight above what it holds: float16 ends at 65504.

    The last stage carries the scale; what is too much there is moved to the first.
    """
    most = torch.finfo(dtype).max
    weights = [stage.weight for stage in cascade.stages]
    peak = float(weights[-1].abs().max())
    if peak > most:
        weights[-1] = weights[-1] * (most / peak)
        weights[0] = weights[0] * (peak / most)
    within = [weight.clamp(-most, most) for weight in weights]
    return Cascade.of(cascade.structure, within).to(dtype)
