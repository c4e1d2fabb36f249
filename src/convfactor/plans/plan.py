"""The plan of a model: what it decides, applied, shown and kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, overload

from torch import Tensor, nn
from torch.export import ExportedProgram

from convfactor.conv.layer import CascadeConv2d
from convfactor.model import programs, rewrite
from convfactor.model.copies import copied
from convfactor.model.formats import channels_last
from convfactor.model.reasons import Reason
from convfactor.model.rewrite import Exchange
from convfactor.plans import pages, records, report, storage
from convfactor.plans.decisions import Decisions, Entry, Kept, Replaced

L = TypeVar("L", bound=CascadeConv2d)


@dataclass(frozen=True, eq=False)
class Plan(Decisions):
    """Decisions on every large kernel of one model; printing it gives the report.

    Attributes:
        entries: The decisions in the order of the calls.
        settings: What was asked for.
        environment: Where it was measured.
        calibration: What the errors were measured on.
        whole: The whole model before and after; None where nothing was applied.
        spending: What became of a budget for the whole model; None where each layer had its own.
        calls: The calls that stand for the use of the model; times are those of all of them.
    """

    @overload
    def apply(self, model: nn.Module) -> nn.Module: ...

    @overload
    def apply(self, model: ExportedProgram) -> ExportedProgram: ...

    def apply(self, model: nn.Module | ExportedProgram) -> nn.Module | ExportedProgram:
        """Rewrite a copy of a model; the model itself is not touched.

        Args:
            model: The model, or the exported program, that was planned, or one with the same
                layers and weights.

        Raises:
            TypeError: ``model`` is neither a module nor a program.
            ValueError: The program can't be exported again.
            PlanMismatchError: A layer is missing, or its weight is not the planned one.
        """
        if isinstance(model, ExportedProgram):
            return programs.exported(self.apply(programs.graph_of(model)), model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_kind(model)}")
        fast = self.rewrite(copied(model))
        if self.whole is not None and self.whole.memory_format == "channels_last":
            fast = channels_last(fast)
        return fast

    def rewrite(self, model: nn.Module) -> nn.Module:
        """Rewrite a model in place and return it, in the memory format that it has.

        Args:
            model: A copy that may be changed.

        Raises:
            PlanMismatchError: As for ``apply``.
        """
        return rewrite.apply(model, self.exchanges(self.layer))

    def exchanges(
        self, make: Callable[[int, Tensor, Tensor | None], CascadeConv2d]
    ) -> list[Exchange]:
        """What is to be exchanged.

        Args:
            make: Makes the layer of an entry, named by its index, in place of a weight and a bias.
        """
        return [
            Exchange(
                self.entries[i].subject,
                functools.partial(make, i)
                if isinstance(self.entries[i].decision, Replaced)
                else None,
            )
            for i in self.replaced
        ]

    def layer(
        self,
        index: int,
        weight: Tensor,
        bias: Tensor | None,
        kind: type[L] = CascadeConv2d,  # type: ignore[assignment]
    ) -> L:
        """Make the layer of a replaced entry.

        Args:
            index: Of the entry.
            weight: The original weight, for its dtype, device, flags and format.
            bias: The original bias, or None.
            kind: Its class.
        """
        entry = self.entries[index]
        decision, geometry = entry.decision, entry.subject.geometry
        assert isinstance(decision, Replaced)
        assert geometry is not None
        return kind.from_weight(weight, bias, decision, geometry, decision.torch_format)

    def extended(self, entry: Entry) -> Plan:
        """Add one decision."""
        return replace(self, entries=(*self.entries, entry))

    def without(self, index: int, reason: Reason | str) -> Plan:
        """Keep one layer after all.

        Args:
            index: Of its entry.
            reason: Why; of a text, the layer counts as one that you did not select.
        """
        entry = self.entries[index]
        if isinstance(reason, str):
            reason = Reason.brief("unselected", reason)
        if not isinstance(entry.decision, Kept):
            entry = replace(entry, decision=Kept(reason, entry.decision.tried))
        return replace(self, entries=(*self.entries[:index], entry, *self.entries[index + 1 :]))

    def __str__(self) -> str:
        """Table of the decisions with the whole model under it."""
        return report.to_text(self)

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        model: nn.Module | ExportedProgram | None = None,
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
        return _written(records.write(self)[0], path)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the plan as JSON and its cascades as safetensors; no pickle.

        An older plan in the folder is replaced as a whole: whenever a run is interrupted, one of
        the two can be read. The JSON holds digests of both files, so that a change is noticed.

        Args:
            folder: Made if it does not exist.

        Raises:
            OSError: The disk is full, or may not be written; an older plan stays as it was.
        """
        storage.write(Path(folder), *records.write(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plan:
        """Read a plan that ``save`` wrote.

        Raises:
            FileNotFoundError: The folder does not hold a plan.
            ValueError: The files are damaged, were changed, or are of another format.
        """
        path = Path(folder)
        try:
            return records.read(
                storage.read_record(path), functools.partial(storage.read_tensors, path), cls
            )
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a damaged file leads the readers to raise
            raise ValueError(f"{path} does not hold a plan that can be read: {error}") from error

    def _kernels(self, model: nn.Module | ExportedProgram) -> dict[int, Tensor]:
        """The original kernels of the replaced layers, by index into ``entries``."""
        if isinstance(model, ExportedProgram):
            model = programs.graph_of(model)
        self.apply(model)  # refuses any other model
        return {
            i: rewrite.plain_weight(model, entry.subject)
            for i, entry in enumerate(self.entries)
            if isinstance(entry.decision, Replaced)
        }


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
        storage.replace_file(target, text.encode())
    return text
