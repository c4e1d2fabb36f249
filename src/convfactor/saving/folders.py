"""Save a rewritten model, and load it into a fresh one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from convfactor.errors import kind_of
from convfactor.model.copies import copied
from convfactor.model.digests import digest
from convfactor.model.pretrained import is_pretrained
from convfactor.model.sites import inside
from convfactor.plans import storage
from convfactor.plans.records import LARGEST, converter, opened, sealed, told
from convfactor.saving import pretrained
from convfactor.saving.description import Description, describe
from convfactor.saving.rebuilding import rebuild
from convfactor.saving.state import Layout, put, taken

FORMAT = 1
# Not model.safetensors, which from_pretrained would load without the exchanged layers.
FILES = storage.Pair("convfactor.json", "convfactor.safetensors")


@dataclass(frozen=True)
class _Record:
    """What the JSON holds."""

    description: Description
    layout: Layout


def save(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a rewritten model to a folder that needs no other weights; no pickle.

    ``convfactor.json`` holds what was exchanged, read off the model as it is, trained further or
    cast, and ``convfactor.safetensors`` its state. An older version is replaced as a whole. Of a
    model of transformers the configuration is written as well.

    Args:
        model: What ``optimize`` or ``Plan.apply`` returned; any other model with a state of
            tensors, too.
        folder: Made if it does not exist.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: It holds what can't be written without pickle, or ``folder`` holds weights
            that ``from_pretrained`` would take for those of this model.
        OSError: The disk is full, or may not be written; an older version stays as it was.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> from convfactor import save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Conv2d(1, 1, 5), folder)
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['convfactor.json', 'convfactor.safetensors']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    path = Path(folder)
    tensors, layout = taken(model)
    record = converter({}).unstructure(_Record(describe(model), layout))
    sha256 = digest(tensors)
    text = sealed({"format": FORMAT, "tensors_sha256": sha256, **record})
    if len(text) > LARGEST:
        raise ValueError(
            f"model must take at most {LARGEST} characters of JSON, got {len(text)}; save parts "
            "of it by themselves"
        )
    if is_pretrained(model):
        pretrained.check_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        pretrained.save_configuration(model, path)
    storage.write(path, text, tensors, sha256, FILES)


def load(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load what ``save`` wrote into a fresh model.

    Args:
        folder: Written by ``save``, or by ``convfactor optimize --output``.
        model: A new model of the class that was optimized, of any values; it is not touched.

    Returns:
        A copy of ``model`` with the layers, values, dtypes and memory formats that were saved, on
        the device and in the mode of ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        FileNotFoundError: The folder does not hold a model.
        ValueError: The files are damaged, were changed, or are of another format.
        PlanMismatchError: ``model`` is of another class, or was made with other arguments.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from convfactor import load, save
        >>> fast = nn.Conv2d(1, 1, 5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(fast, folder)
        ...     again = load(folder, nn.Conv2d(1, 1, 5))
        >>> again.weight.equal(fast.weight)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {kind_of(model)}")
    path = Path(folder)
    try:
        record, tensors = _read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file leads the readers to raise
        raise ValueError(
            f"{path} does not hold a model that can be read: {told(error)[:500]}"
        ) from error
    twin = rebuild(copied(model), record.description)
    put(twin, tensors, record.layout)
    return twin


def _read(folder: Path) -> tuple[_Record, dict[str, Tensor]]:
    """Read the files, and check that they belong together."""
    sha256, values = opened(storage.read_record(folder, FILES), FORMAT)
    record = converter({}).structure(values, _Record)
    tensors = storage.read_tensors(folder, sha256, FILES)
    first = {name: group[0] for group in record.layout.tied for name in group}
    for cascade in record.description.cascades:
        stages = "stages" if cascade.form.is_plain else "plain.stages"
        for i, stage in enumerate(cascade.structure.stages):
            name = inside(cascade.names[0], f"{stages}.{i}.weight")
            tensor = tensors.get(first.get(name, name))
            if tensor is None or tuple(tensor.shape) != stage.weight_shape:
                raise ValueError(f"{name} is not a tensor of the shape {stage.weight_shape}")
    return record, tensors
