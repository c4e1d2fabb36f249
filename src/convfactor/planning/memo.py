"""What a run has solved, kept for a run that goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from convfactor.conv.cascade import Cascade
from convfactor.factorization.factorization import Factorization
from convfactor.model.digests import digest
from convfactor.planning.frontier import Look
from convfactor.plans import storage


@dataclass(frozen=True)
class Memo:
    """Answers by what was asked, one file each; no pickle.

    Attributes:
        folder: Where they are kept; None keeps nothing.
    """

    folder: Path | None

    def recall(self, task: Look) -> list[Factorization] | None:
        """The answers to a task that was solved before, measured anew; or None."""
        if self.folder is None:
            return None
        with contextlib.suppress(Exception):  # what is damaged is solved again
            device = str(task.factorizer.weight.device)
            tensors = safetensors.torch.load_file(self._path(task), device)
            answers = []
            for i, structure in enumerate(task.structures):
                if f"{i}.0" in tensors:
                    weights = [tensors[f"{i}.{j}"] for j in range(len(structure.stages))]
                    answers.append(task.factorizer.measure(Cascade.of(structure, weights)))
            return answers
        return None

    def keep(self, task: Look, answers: Sequence[Factorization]) -> None:
        """Write the answers to a task, as a whole or not at all."""
        if self.folder is None:
            return
        tensors = {
            f"{i}.{j}": stage.weight.cpu().contiguous()
            for i, answer in enumerate(answers)
            for j, stage in enumerate(answer.stages)
        }
        storage.replace_file(self._path(task), safetensors.torch.save(tensors))

    def _path(self, task: Look) -> Path:
        """A name that says what was asked."""
        assert self.folder is not None
        own = task.factorizer
        asked = (own.kernel, own.seed, own.ridge, task.structures)
        tensors = {
            "weight": own.weight,
            "inputs": own.scales.inputs,
            "outputs": own.scales.outputs,
            "mean": None if own.moments is None else own.moments.mean,
            "covariance": None if own.moments is None else own.moments.covariance,
        }
        known = {name: value for name, value in tensors.items() if value is not None}
        name = hashlib.sha256(f"{asked!r} {digest(known)}".encode()).hexdigest()
        return self.folder / f"{name[:32]}.safetensors"
