"""The plan of a model: what it decides, applied, shown and kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, overload

from torch import Tensor, nn
from torch.export import ExportedProgram

from convfactor.conv.layer import CascadeConv2d
from convfactor.errors import kind_of
from convfactor.model import planned, programs, rewrite
from convfactor.model.copies import copied
from convfactor.model.formats import channels_last
from convfactor.model.reasons import Reason
from convfactor.model.rewrite import Exchange
from convfactor.plans import pages, records, reverting, storage, tables
from convfactor.plans.decisions import Entry, Kept, Replaced, Swapped
from convfactor.plans.selection import matching, merged
from convfactor.plans.views import Views

L = TypeVar("L", bound=CascadeConv2d)
LEFT_OUT = "left out of the plan"


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Views):
    """Decisions on every large kernel of one model; printing it gives the report.

    Attributes:
        entries: The decisions in the order of the calls.
        settings: What was asked for.
        environment: Where it was measured.
        calibration: What the errors were measured on.
        whole: The whole model before and after; None where nothing was applied.
        spending: What became of a budget for the whole model; None where each layer had its own.
        calls: The calls that stand for the use of the model; times are those of all of them.

    Example:
        >>> import torch
        >>> from convfactor import plan
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7), torch.nn.Conv2d(1, 1, 5))
        >>> _ = torch.nn.init.ones_(model[0].weight)
        >>> decided = plan(
        ...     model, torch.rand(1, 1, 16, 16), 1e-4, objective="macs", select="0", progress=False
        ... )
        >>> [(entry.name, entry.replaced) for entry in decided.entries]
        [('0', True), ('1', False)]
        >>> type(decided.apply(model)[0]).__name__
        'CascadeConv2d'
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
            raise TypeError(f"model must be a torch.nn.Module, got {kind_of(model)}")
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
        decision, geometry = entry.decision, entry.subject.laid
        assert isinstance(decision, Replaced)
        assert geometry is not None
        return kind.from_weight(weight, bias, decision, geometry, decision.torch_format)

    def extended(self, entry: Entry) -> Plan:
        """Add one decision."""
        return replace(self, entries=(*self.entries, entry))

    def keeping(self, index: int, reason: Reason | str) -> Plan:
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

    def without(self, *layers: str) -> Plan:
        """Keep some layers as they are.

        What was measured of the whole model, its memory format and what became of a budget for it
        are left out, as nobody has measured the rest by itself.

        Args:
            *layers: Names as in the table, of modules or of weights; ``fnmatch`` reads them, so
                that ``"stem.*"`` is all of a block.

        Raises:
            ValueError: There is no such layer.
        """
        return self._keeping_all(matching(self.entries, layers))

    def only(self, *layers: str) -> Plan:
        """Keep all other layers as they are; see ``without``.

        Args:
            *layers: Names, as for ``without``.

        Raises:
            ValueError: There is no such layer.
        """
        return self._keeping_all({*range(len(self.entries))} - matching(self.entries, layers))

    def merge(self, other: Plan) -> Plan:
        """Put two plans of one model into one.

        A layer that one of them replaces is replaced. Both must have been made alike: with a
        tolerance for each layer, of which the larger is noted, the other settings, machine and
        calibration data being the same. The whole model counts as not measured.

        Args:
            other: A plan of the same model, for instance with another ``select``.

        Raises:
            PlanMismatchError: It is of another model.
            ValueError: Both replace a layer, or they were not made alike.
        """
        entries, settings = merged(self, other)
        return replace(self, entries=entries, settings=settings, whole=None, spending=None)

    def revert(self, fast: nn.Module, original: nn.Module, *layers: str) -> nn.Module:
        """Give a rewritten model the layers of the original back.

        Args:
            fast: What ``apply`` made of ``original``, trained further or not; it is not touched.
            original: The model that was planned, with its weights; it is not touched.
            *layers: Those to revert, named as for ``without``; all by default.

        Returns:
            A copy of ``original`` in which the other layers are replaced, and whatever both have
            has the values of ``fast``.

        Raises:
            ValueError: There is no such layer.
            PlanMismatchError: ``original`` is not the model that was planned, or ``fast`` was not
                made by this plan.
        """
        left = self.without(*(layers or ("*",))) if self.entries else self
        swapped = [i for i in self.replaced if isinstance(self.entries[i].decision, Swapped)]
        gone = (self.entries[i].subject for i in swapped if not left.entries[i].replaced)
        owners = [owner for subject in gone for owner in subject.owners]
        whole, part = (
            reverting.applied(copied(original), plan.exchanges, plan.layer) for plan in (self, left)
        )
        model = reverting.carry_over(fast, whole, part, owners)
        last = self.whole is not None and self.whole.memory_format == "channels_last"
        return channels_last(model) if last and left.replaced else model

    def _keeping_all(self, indices: Iterable[int]) -> Plan:
        """Keep layers that the user does not want to be replaced."""
        start = replace(self, whole=None, spending=None)
        return functools.reduce(lambda plan, i: plan.keeping(i, LEFT_OUT), indices, start)

    def __str__(self) -> str:
        """Table of the decisions with the whole model under it, as wide as the terminal."""
        return tables.to_text(self)

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
        return storage.written(
            pages.to_html(self, {} if model is None else self._kernels(model)), path
        )

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make the record that ``save`` keeps beside the weights, and write it to a file."""
        return storage.written(records.write(self)[0], path)

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
            i: planned.plain_weight(model, entry.subject)
            for i, entry in enumerate(self.entries)
            if isinstance(entry.decision, Replaced)
        }
