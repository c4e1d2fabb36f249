"""A record and its tensors: together one or the other version, whenever a run is interrupted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from convfactor.errors import kind_of
from convfactor.model.digests import digest
from convfactor.plans.records import LARGEST

PLAN_FILE, WEIGHTS_FILE = "plan.json", "cascades.safetensors"


@dataclass(frozen=True)
class Pair:
    """The names of two files that belong together.

    Attributes:
        record: That of the JSON.
        weights: That of the tensors.
    """

    record: str
    weights: str

    def waiting(self, sha256: str) -> str:
        """Name of tensors that wait for their record."""
        return f"{self.weights.removesuffix('.safetensors')}.{sha256}.safetensors"


PLAN = Pair(PLAN_FILE, WEIGHTS_FILE)


def write(
    folder: Path, text: str, tensors: Mapping[str, Tensor], sha256: str, pair: Pair = PLAN
) -> None:
    """Replace a record and its tensors.

    The new tensors lie beside the old ones, under a name of their own, until the record that asks
    for them has taken the place of the old one.

    Args:
        folder: Made if it does not exist.
        text: The record.
        tensors: Its tensors.
        sha256: Their digest, which the record holds.
        pair: The names of the files.

    Raises:
        OSError: The disk is full, or may not be written; the older version stays whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / pair.waiting(sha256)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        record, weights = Path(scratch) / pair.record, Path(scratch) / pair.weights
        record.write_text(text, encoding="utf-8")
        weights.write_bytes(save(dict(tensors)))  # save_file would raise an error of its own
        os.replace(weights, fresh)
        os.replace(record, folder / pair.record)
    os.replace(fresh, folder / pair.weights)
    for left in folder.glob(pair.waiting("[0-9a-f]" * 64)):
        left.unlink()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: The file; its folder is made if it does not exist.
        data: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        fresh = Path(scratch) / path.name
        fresh.write_bytes(data)
        os.replace(fresh, path)


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write a text to a file, which is replaced at once, where there is one to write."""
    if path is not None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be the name of a file, got {kind_of(path)}")
        target = Path(path)
        if target.is_dir():
            raise ValueError(f"path must be a file, got the folder {target}")
        replace_file(target, text.encode())
    return text


def read_record(folder: Path, pair: Pair = PLAN) -> str:
    """Read the record.

    Raises:
        FileNotFoundError: There is none, or nothing beside it.
        ValueError: It is too large, or not a text.
    """
    path = folder / pair.record
    if not (path.is_file() and _weights(folder, "[0-9a-f]" * 64, pair)):
        raise FileNotFoundError(f"folder must hold {pair.record} and {pair.weights}: {folder}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{pair.record} has more than {LARGEST} bytes")
    return path.read_text(encoding="utf-8")


def read_tensors(folder: Path, sha256: str, pair: Pair = PLAN) -> dict[str, Tensor]:
    """Read the tensors that belong to a record.

    Raises:
        ValueError: They are damaged, or those of another record.
    """
    for path in _weights(folder, sha256, pair):
        data = path.read_bytes()
        if int.from_bytes(data[:8], "little") > LARGEST:
            raise ValueError(f"{path.name} has a header of more than {LARGEST} bytes")
        tensors: dict[str, Tensor] = load(data)
        if digest(tensors) == sha256:
            return tensors
    raise ValueError(f"{pair.weights} does not hold the tensors that were saved with {pair.record}")


def _weights(folder: Path, sha256: str, pair: Pair) -> list[Path]:
    """The files of tensors: the usual one, and one that an interrupted run left."""
    paths = (folder / pair.weights, *folder.glob(pair.waiting(sha256)))
    return [path for path in paths if path.is_file()]
