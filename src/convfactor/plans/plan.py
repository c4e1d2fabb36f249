"""What to do with every large kernel of a model, and the files it is kept in."""

from __future__ import annotations

import contextlib
import operator
import os
import platform
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from convfactor.conv.accuracy import OutputErrors
from convfactor.conv.bounds import Bounds
from convfactor.conv.cascade import Cascade, Structure
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.errors import PlanMismatchError
from convfactor.latency import Timing
from convfactor.model import rewrite
from convfactor.model.copies import copied
from convfactor.model.digests import digest
from convfactor.model.sites import InputShape, Kind
from convfactor.planning.pricing import MemoryFormat
from convfactor.plans import pages, records, report, storage
from convfactor.plans.settings import Settings as Settings
from convfactor.plans.storage import PLAN_FILE as PLAN_FILE
from convfactor.plans.storage import WEIGHTS_FILE as WEIGHTS_FILE
from convfactor.plans.validation import check_tensors

Decision = Literal["replaced", "kept"]


@dataclass(frozen=True)
class Environment:
    """Where a plan was made; its times hold there."""

    torch_version: str
    device: str
    machine: str
    threads: int

    @classmethod
    def current(cls, device: torch.device) -> Environment:
        """Describe this process."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return cls(
            torch_version=str(torch.__version__),
            device=name,
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
            threads=torch.get_num_threads(),
        )


@dataclass(frozen=True)
class Entry:
    """The decision on one large kernel and what led to it.

    Attributes:
        name: What the layer is called in the table.
        kind: Module or functional call.
        owners: Qualified names of the module, or of the module whose forward makes the call.
        weight_name: Qualified name of the weight.
        dtype: Dtype of the weight.
        kernel_size: Taps per side.
        geometry: The convolution's integers, None where it is not a 2-D convolution.
        shapes: Input shapes of the calls, with their numbers in one run of the model.
        decision: What is to be done.
        reason: Why.
        missed: Whether it was kept because nothing fast enough met the tolerance.
        fingerprint: Digest of the weight that the cascade stands in for.
        structure: The cascade, in input pixels.
        memory_format: Format in which its stages run.
        error: Relative error that the tolerance bounds.
        errors: Errors on held-out data; None without calibration.
        weight_error: Relative error of the composed kernel in the metric of the fit.
        bounds: Worst-case bounds of the output error.
        before: Seconds of the original in the better memory format, all calls of one run.
        after: Seconds of the cascade, conversions included.
        macs_before: Multiplies per output pixel of the original.
        macs_after: Multiplies per output pixel of the cascade.
    """

    name: str
    kind: Kind
    owners: tuple[str, ...]
    weight_name: str
    dtype: str
    kernel_size: tuple[int, ...]
    geometry: ConvGeometry | None
    shapes: tuple[tuple[InputShape, int], ...]
    decision: Decision
    reason: str
    missed: bool = False
    fingerprint: str = ""
    structure: Structure | None = None
    memory_format: MemoryFormat = "as given"
    error: float | None = None
    errors: OutputErrors | None = None
    weight_error: float | None = None
    bounds: Bounds | None = None
    before: Timing | None = None
    after: Timing | None = None
    macs_before: int | None = None
    macs_after: int | None = None

    @property
    def replaced(self) -> bool:
        """Whether the layer is to be replaced."""
        return self.decision == "replaced"

    @property
    def torch_format(self) -> torch.memory_format | None:
        """Memory format for the layer that runs the cascade."""
        return torch.channels_last if self.memory_format == "channels_last" else None


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
class Replacement:
    """The tensors of one replaced layer; also what ``CascadeConv2d`` is built from.

    Attributes:
        cascade: The cascade in the layer's dtype.
        bias_shift: Float64 (C_out,).
    """

    cascade: Cascade
    bias_shift: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Decisions on every large kernel of one model; printing it gives the report.

    Attributes:
        entries: The decisions in the order of the calls.
        settings: What was asked for.
        environment: Where it was measured.
        metric: What the errors were measured on.
        replacements: The cascades, by index into ``entries``.
        whole: The whole model before and after; None where nothing was applied.
    """

    entries: tuple[Entry, ...]
    settings: Settings
    environment: Environment
    metric: str
    replacements: dict[int, Replacement] = field(default_factory=dict)
    whole: WholeModel | None = None

    def apply(self, model: nn.Module) -> nn.Module:
        """Rewrite a copy of a model; the model itself is not touched.

        Args:
            model: The model that was planned, or one with the same layers and weights.

        Raises:
            TypeError: ``model`` is not a module.
            PlanMismatchError: A layer is missing, or its weight is not the planned one.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_kind(model)}")
        fast = rewrite.apply(copied(model), self)
        if self.whole is not None and self.whole.memory_format == "channels_last":
            fast = channels_last(fast)
        return fast

    def layer(self, index: int, weight: Tensor, bias: Tensor | None) -> CascadeConv2d:
        """Make the layer of a replaced entry.

        Args:
            index: Of the entry.
            weight: The original weight, for its dtype, device, flags and format.
            bias: The original bias, or None.
        """
        entry = self.entries[index]
        assert entry.geometry is not None
        return CascadeConv2d.from_weight(
            weight, bias, self.replacements[index], entry.geometry, entry.torch_format
        )

    @property
    def replaced(self) -> list[int]:
        """Indices of the entries that are to be replaced."""
        return [i for i, entry in enumerate(self.entries) if entry.replaced]

    def extended(self, entry: Entry, replacement: Replacement | None) -> Plan:
        """Add one decision."""
        added = {} if replacement is None else {len(self.entries): replacement}
        return replace(
            self, entries=(*self.entries, entry), replacements={**self.replacements, **added}
        )

    def without(self, index: int, reason: str, missed: bool = False) -> Plan:
        """Keep one layer after all.

        Args:
            index: Of its entry.
            reason: Why.
            missed: Whether it was to be replaced, and what it does to the model forbids that.
        """
        entry = replace(self.entries[index], decision="kept", reason=reason, missed=missed)
        entries = (*self.entries[:index], entry, *self.entries[index + 1 :])
        left = {i: r for i, r in self.replacements.items() if i != index}
        return replace(self, entries=entries, replacements=left)

    def __str__(self) -> str:
        """Table of the decisions with the whole model under it."""
        return report.to_text(self)

    def to_html(
        self, path: str | os.PathLike[str] | None = None, model: nn.Module | None = None
    ) -> str:
        """Make a report as a page that loads nothing else, with pictures of the kernels.

        Args:
            path: File to write as well.
            model: The model that was planned; with it the pictures show the original kernels and
                what is left of them in the error. It is not touched.

        Returns:
            The page.

        Raises:
            PlanMismatchError: ``model`` is not the one that was planned.
        """
        return _written(pages.to_html(self, {} if model is None else self._kernels(model)), path)

    def to_markdown(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make a table of GitHub's Markdown with what ``print`` shows, and write it to a file."""
        return _written(report.to_markdown(self), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make a table for other programs, one line per decision, and write it to a file.

        Numbers have full precision, times are in seconds, and what is unknown is empty.
        """
        return _written(report.to_csv(self), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make the record that ``save`` keeps beside the weights, and write it to a file."""
        return _written(records.write(self, digest(self._tensors())), path)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the plan as JSON and its cascades as safetensors; no pickle.

        An older plan in the folder is replaced as a whole: whenever a run is interrupted, one of
        the two can be read. The JSON holds digests of both files, so that a change is noticed.

        Args:
            folder: Made if it does not exist.

        Raises:
            OSError: The disk is full, or may not be written; an older plan stays as it was.
        """
        tensors = self._tensors()
        sha256 = digest(tensors)
        storage.write(Path(folder), records.write(self, sha256), tensors, sha256)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plan:
        """Read a plan that ``save`` wrote.

        Raises:
            FileNotFoundError: The folder does not hold a plan.
            ValueError: The files are damaged, were changed, or are of another format.
        """
        path = Path(folder)
        try:
            plan, sha256 = records.read(storage.read_record(path), cls)
            tensors = storage.read_tensors(path, sha256)
            return replace(plan, replacements=_replacements(plan.entries, tensors))
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a damaged file leads the readers to raise
            raise ValueError(f"{path} does not hold a plan that can be read: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors to keep, by name."""
        tensors = {}
        for i, replacement in self.replacements.items():
            for j, stage in enumerate(replacement.cascade.stages):
                tensors[_weight_name(i, j)] = _plain(stage.weight)
            tensors[_shift_name(i)] = _plain(replacement.bias_shift)
        return tensors

    def _kernels(self, model: nn.Module) -> dict[int, Tensor]:
        """The original kernels of the replaced layers, by index into ``entries``."""
        self.apply(model)  # refuses any other model
        return {i: _kernel(model, self.entries[i]) for i in self.replacements}


def channels_last(model: nn.Module) -> nn.Module:
    """Bring the weights of 2-D convolutions into channels_last; ``model.to`` refuses 3-D ones.

    For weights that read one channel, ``contiguous`` would leave the strides as they are, and
    torch the convolution in the slower format.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, CascadeConv2d):
            module.output_format = torch.channels_last  # as a convolution with such a weight gives
    return model


def _kernel(model: nn.Module, entry: Entry) -> Tensor:
    """The weight of an entry; a graph may know the module by one of its names only."""
    names = [entry.weight_name, *(f"{owner}.weight" for owner in entry.owners)]
    for name in names:
        with contextlib.suppress(AttributeError):
            weight: Tensor = operator.attrgetter(name)(model)
            return weight
    raise PlanMismatchError(f"layer {entry.name}: the model has none of {', '.join(names)}")


def _kind(value: object) -> str:
    """What came instead."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write a text to a file, which is replaced at once, where there is one to write."""
    if path is not None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be the name of a file, got {_kind(path)}")
        target = Path(path)
        if target.is_dir():
            raise ValueError(f"path must be a file, got the folder {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            fresh.write_text(text, encoding="utf-8", newline="")
            os.replace(fresh, target)
    return text


def _plain(tensor: Tensor) -> Tensor:
    """Copy a tensor to memory of its own, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _weight_name(index: int, stage: int) -> str:
    """Name of a stage's weight in the file."""
    return f"{index}.stages.{stage}.weight"


def _shift_name(index: int) -> str:
    """Name of a change of the bias in the file."""
    return f"{index}.bias_shift"


def _replacements(entries: tuple[Entry, ...], tensors: dict[str, Tensor]) -> dict[int, Replacement]:
    """Pair the structures with their weights; none may be missing, and none be left."""
    found = {}
    left = dict(tensors)
    for i, entry in enumerate(entries):
        if entry.replaced and entry.structure is not None:
            names = [_weight_name(i, j) for j in range(len(entry.structure.stages))]
            try:
                weights = [left.pop(name) for name in names]
                shift = left.pop(_shift_name(i))
            except KeyError as error:
                raise ValueError(f"the tensor {error} is missing") from error
            check_tensors(entry.structure, entry.dtype, weights, shift)
            found[i] = Replacement(entry.structure.cascade(weights), shift)
    if left:
        raise ValueError(f"the tensor {next(iter(left))!r} belongs to no entry")
    return found
