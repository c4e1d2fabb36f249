"""Where and on what a plan was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field

import torch

from convfactor.plans.words import counted


@dataclass(frozen=True)
class Environment:
    """Where a plan was made; its times hold there.

    Attributes:
        torch_version: Version of torch.
        device: Name of the device.
        machine: Processor and number of cores.
        threads: Threads that torch uses.
        load: Threads of all processes that ran in the minute before; 0 where nothing is timed.
    """

    torch_version: str
    device: str
    machine: str
    threads: int
    load: float = field(default=0.0, compare=False)

    @property
    def busy(self) -> bool:
        """Whether more ran than this process alone can have been."""
        return self.load > self.threads + 1

    @property
    def crowd(self) -> str:
        """What ran beside this process, in words."""
        return f"a load of {self.load:.1f} with {counted(self.threads, 'thread')} in use"

    def to_dict(self) -> dict[str, str | int]:
        """Where times hold, for other programs."""
        return {
            "torch": self.torch_version,
            "device": self.device,
            "machine": self.machine,
            "threads": self.threads,
        }

    @classmethod
    def current(cls, device: torch.device, timed: bool) -> Environment:
        """Describe this process.

        Args:
            device: Where the model is.
            timed: Whether anything is timed, so that the load counts.
        """
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return cls(
            torch_version=str(torch.__version__),
            device=name,
            machine=f"{platform.machine()}, {counted(os.cpu_count() or 1, 'core')}",
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0] if timed and hasattr(os, "getloadavg") else 0.0,
        )


@dataclass(frozen=True)
class WhiteNoise:
    """No data: errors are those of the weights."""

    def __str__(self) -> str:
        """Name it."""
        return "white noise"


@dataclass(frozen=True)
class HeldOut:
    """Calibration batches, the errors measured on those that the fit has not seen.

    Attributes:
        fit: Number of batches to fit on.
        held_out: Number of batches to measure on.
        sha256: Digest of all their tensors, which tells data apart.
        labels: Where in a batch the labels were that were dropped, such as "batch[1]".
        model: Digest of the model that ran on them, as what a layer reads depends on all in front
            of it; empty in plans of older versions.
        measured: Number of batches that layers were measured on where memory did not hold what
            they read in all; None for all.
    """

    fit: int
    held_out: int
    sha256: str
    labels: tuple[str, ...] = ()
    model: str = field(default="", compare=False)
    measured: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Tell how much there is."""
        labels = f" without the labels in {' and '.join(self.labels)}" if self.labels else ""
        part = "" if self.measured is None else f"{self.measured} of "
        return (
            f"{counted(self.fit, 'calibration batch', 'calibration batches')}{labels}, errors on "
            f"{part}{counted(self.held_out, 'other')}"
        )


@dataclass(frozen=True)
class Call:
    """A call of the model that was made to find its layers, and timed.

    Attributes:
        shapes: Of the tensors that it was given.
        weight: How often it counts.
        added: Whether it is a calibration batch that reaches layers which no other call reaches.
    """

    shapes: tuple[tuple[int, ...], ...]
    weight: float
    added: bool

    def __str__(self) -> str:
        """Tell it."""
        shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.shapes)
        added = ", a calibration batch, for the layers that only it reaches" if self.added else ""
        return f"{self.weight:g} x ({shapes}){added}"


Calibration = WhiteNoise | HeldOut
