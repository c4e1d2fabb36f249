"""What to do with every large kernel of a model, and what led to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from convfactor.conv.accuracy import OutputErrors
from convfactor.conv.bounds import Bounds
from convfactor.conv.cascade import Cascade
from convfactor.conv.formats import MemoryFormat
from convfactor.conv.structure import Structure
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.model.sites import Subject
from convfactor.plans.circumstances import Calibration, Call, Environment, WhiteNoise
from convfactor.plans.settings import Settings
from convfactor.plans.spending import Spending


@dataclass(frozen=True)
class Cost:
    """What a layer costs as it is, and with something in its place.

    Attributes:
        before: Seconds of the original in the better memory format, all calls of one run; None
            where nothing is timed.
        after: Seconds of the other, conversions included.
        macs_before: Multiplies per output pixel of the original; None for a transform.
        macs_after: Multiplies per output pixel of the other.
    """

    before: Timing | None = None
    after: Timing | None = None
    macs_before: int | None = None
    macs_after: int | None = None

    @property
    def relative(self) -> float:
        """Cost over the original's, in time where there is one; below 1 is cheaper."""
        if self.before is not None and self.after is not None:
            return self.after.median / self.before.median
        assert self.macs_before is not None
        assert self.macs_after is not None
        return self.macs_after / self.macs_before

    def decides(self, bar: float) -> bool:
        """Whether it is clear on which side of a relative cost this is; 1 in 20 times by chance."""
        if self.before is None or self.after is None:
            return True
        doubt = self.relative * math.hypot(self.before.doubt, self.after.doubt)
        return abs(self.relative - bar) > 2 * doubt

    def __str__(self) -> str:
        """Put it into words."""
        ratio = 1 / self.relative if self.relative > 0 else math.inf
        if self.after is None:
            less = f"{ratio:.2f}x fewer multiplies"
            return less if ratio > 1 else f"{1 / ratio:.2f}x the multiplies"
        return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


@dataclass(frozen=True)
class Tried:
    """What was tried for a layer and not taken.

    Attributes:
        structure: The cascade, in input pixels; None for a transform's equal.
        cost: What it costs.
        error: Relative error that the tolerance bounds; None where it was not solved.
        errors: Errors on held-out data; None without calibration.
    """

    structure: Structure | None
    cost: Cost
    error: float | None = None
    errors: OutputErrors | None = None


@dataclass(frozen=True, eq=False)
class Replaced:
    """A cascade takes the layer's place.

    Attributes:
        cascade: The cascade in the layer's dtype, in input pixels.
        bias_shift: Float64 (C_out,), what the bias takes up.
        memory_format: Format in which its stages run.
        cost: What it costs.
        error: Relative error that the tolerance bounds.
        errors: Errors on held-out data; None without calibration.
        weight_error: Relative error of the composed kernel in the metric of the fit.
        bounds: Worst-case bounds of the output error.
        gains: Float64 (C_out,), what the output's channels are scaled by before anybody sees them,
            beside the largest, and in the errors; None where they all count the same.
    """

    label: ClassVar[str] = "replaced"

    cascade: Cascade
    bias_shift: Tensor
    memory_format: MemoryFormat
    cost: Cost
    error: float
    errors: OutputErrors | None
    weight_error: float
    bounds: Bounds
    gains: Tensor | None = None

    @property
    def structure(self) -> Structure:
        """The cascade without its weights."""
        return self.cascade.structure

    @property
    def torch_format(self) -> torch.memory_format | None:
        """Memory format for the layer that runs the cascade."""
        return torch.channels_last if self.memory_format == "channels_last" else None

    @property
    def why(self) -> str:
        """What is gained."""
        return str(self.cost)

    @property
    def tried(self) -> Tried:
        """The same as something that is not taken after all."""
        return Tried(self.structure, self.cost, self.error, self.errors)


Backend: TypeAlias = Literal["torch", "cpp"]


@dataclass(frozen=True)
class Swapped:
    """The faster equal of a transform takes its place.

    Attributes:
        cost: What it costs.
        error: Relative error of the outputs.
        backend: What computed it when it was timed, as in `convfactor.wavelets`: torch's operations
            alone, or compiled kernels.
    """

    label: ClassVar[str] = "replaced"
    structure: ClassVar[None] = None
    errors: ClassVar[None] = None

    cost: Cost
    error: float
    backend: Backend

    @property
    def why(self) -> str:
        """What is gained, and by what."""
        means = "compiled kernels" if self.backend == "cpp" else "torch's operations"
        return f"{self.cost}, by convfactor.wavelets with {means}"

    @property
    def tried(self) -> Tried:
        """The same as something that is not taken after all."""
        return Tried(None, self.cost, self.error)


@dataclass(frozen=True)
class Kept:
    """The layer stays as it is.

    Attributes:
        reason: Why.
        tried: The closest of what was tried, or None.
    """

    label: ClassVar[str] = "kept"
    structure: ClassVar[None] = None

    reason: Reason
    tried: Tried | None = None

    @property
    def why(self) -> str:
        """The reason in full."""
        return self.reason.text

    @property
    def cost(self) -> Cost | None:
        """What the closest costs."""
        return None if self.tried is None else self.tried.cost

    @property
    def error(self) -> float | None:
        """How far off the closest is."""
        return None if self.tried is None else self.tried.error

    @property
    def errors(self) -> OutputErrors | None:
        """Its errors on held-out data."""
        return None if self.tried is None else self.tried.errors


Decision = Replaced | Swapped | Kept


@dataclass(frozen=True, eq=False)
class Entry:
    """The decision on one large kernel or transform."""

    subject: Subject
    decision: Decision

    @property
    def name(self) -> str:
        """What the layer is called."""
        return self.subject.name

    @property
    def replaced(self) -> bool:
        """Whether something takes the layer's place."""
        return not isinstance(self.decision, Kept)

    @property
    def missed(self) -> bool:
        """Whether it is kept because it could not be replaced within the tolerance."""
        return isinstance(self.decision, Kept) and self.decision.reason.missed

    @property
    def budgeted(self) -> bool:
        """Whether it is kept because the budget for the model, or its time, did not reach it."""
        return isinstance(self.decision, Kept) and self.decision.reason.code in ("budget", "time")

    @property
    def reason(self) -> str:
        """What is gained, or why the layer is kept."""
        return self.decision.why

    @property
    def error(self) -> float | None:
        """Relative error that the tolerance bounds, of what was taken or came closest."""
        return self.decision.error


@dataclass(frozen=True)
class WholeModel:
    """The model before and after, on held-out inputs (the example inputs without calibration).

    Attributes:
        errors: Relative errors of the outputs, one per output tensor.
        before: Seconds of the original in the better memory format; None where nothing is timed.
        after: Seconds of the rewritten model.
        memory_format: The format in which the rewritten model was faster, and is returned.
    """

    errors: tuple[float, ...]
    before: Timing | None
    after: Timing | None
    memory_format: MemoryFormat


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions on every large kernel of one model.

    Attributes:
        entries: The decisions in the order of the calls.
        settings: What was asked for.
        environment: Where it was measured.
        calibration: What the errors were measured on.
        whole: The whole model before and after; None where nothing was applied.
        spending: What became of a budget for the whole model; None where each layer had its own.
        calls: The calls that stand for the use of the model; times are those of all of them.
    """

    entries: tuple[Entry, ...]
    settings: Settings
    environment: Environment
    calibration: Calibration
    whole: WholeModel | None = None
    spending: Spending | None = None
    calls: tuple[Call, ...] = ()

    @property
    def replaced(self) -> list[int]:
        """Indices of the entries that are replaced."""
        return [i for i, entry in enumerate(self.entries) if entry.replaced]

    @property
    def calibrated(self) -> bool:
        """Whether errors were measured on data."""
        return not isinstance(self.calibration, WhiteNoise)
