"""Where and on what a plan was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch


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
    """

    fit: int
    held_out: int
    sha256: str

    def __str__(self) -> str:
        """Tell how much there is."""
        return (
            f"{self.fit} calibration {'batch' if self.fit == 1 else 'batches'}, errors on "
            f"{self.held_out} {'other' if self.held_out == 1 else 'others'} ({self.sha256[:12]})"
        )


Calibration = WhiteNoise | HeldOut
