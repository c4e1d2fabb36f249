"""Models of transformers: a note in their configuration that from_pretrained does not apply."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from convfactor.conv.framed import Layer

NOTE = (
    "layers of this model were exchanged: save it with convfactor.save(model, folder), make the "
    "model from this configuration and load it with convfactor.load(folder, model); "
    "from_pretrained can't"
)


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers, which has been loaded then."""
    loaded = sys.modules.get("transformers.modeling_utils")
    return loaded is not None and isinstance(model, loaded.PreTrainedModel)


def annotated(model: nn.Module) -> nn.Module:
    """Let what save_pretrained writes of a model tell that its layers were exchanged.

    Args:
        model: Its configurations are its own, as those of a copy.
    """
    for module in model.modules():
        if is_pretrained(module) and any(isinstance(part, Layer) for part in module.modules()):
            config: Any = module.config
            config.convfactor = {"note": NOTE}
    return model
