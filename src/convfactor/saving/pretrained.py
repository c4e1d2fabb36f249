"""Folders of models of transformers: the configuration beside the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from convfactor.model.pretrained import NOTE

# What from_pretrained would take for the weights of this model.
PATTERNS = ("model*.safetensors*", "pytorch_model*.bin*", "tf_model.h5", "flax_model.msgpack")


def check_folder(folder: Path) -> None:
    """Refuse a folder with weights that from_pretrained would take for those of the model.

    Raises:
        ValueError: It holds such files.
    """
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            raise ValueError(
                f"folder holds {path.name}, which from_pretrained would load in place of the "
                "rewritten model; save to a folder of its own"
            )


def save_configuration(model: Any, folder: Path) -> None:
    """Write what save_pretrained writes beside the weights.

    Args:
        model: A ``PreTrainedModel``.
        folder: It exists.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.convfactor = {"note": NOTE}
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
