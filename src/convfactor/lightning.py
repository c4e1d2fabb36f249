"""A step after training with Lightning: the trained model is made faster.

Works with ``lightning`` and with ``pytorch_lightning``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from convfactor.model.trees import mapped
from convfactor.planning.optimization import optimize
from convfactor.plans.plan import Plan

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """The base of callbacks, of the package that the process uses already where it uses one.

    Raises:
        ImportError: Neither package is installed.
    """
    installed = [name for name in PACKAGES if find_spec(name.partition(".")[0])]
    used = [name for name in installed if name in sys.modules]
    for name in (*used, *installed):
        return import_module(f"{name}.callbacks").Callback
    raise ImportError(
        "convfactor.lightning needs Lightning, which is not installed: "
        "pip install 'convfactor[lightning]'"
    )


class OptimizeAfterFit(_callback()):  # type: ignore[misc]
    """Run ``convfactor.optimize`` on the trained module when ``trainer.fit`` ends.

    With ``attribute`` the faster model takes the place of that part of the module, so that
    ``trainer.test`` and ``trainer.predict`` run it; checkpoints that were written hold the
    original. Without, the module stays as it is, and ``fast`` is a faster copy of it that knows no
    trainer. Of several processes the first one optimizes.

    Args:
        attribute: Qualified name of a module in the ``LightningModule``; empty for all of it.
        example_inputs: As for ``optimize``; None takes the module's ``example_input_array``.
        **options: Further arguments of ``optimize``; inputs and calibration batches are brought to
            the device of the module.

    Attributes:
        fast: The faster model; None before the end.
        plan: Its plan; None before the end.

    Raises:
        ValueError: At the end, where there is no such module or no example input.

    Example:
        >>> import torch
        >>> from convfactor.lightning import OptimizeAfterFit
        >>> crops = [torch.rand(4, 1, 32, 32) for _ in range(8)]
        >>> callback = OptimizeAfterFit("network", tolerance=0.01, calibration=crops)
        >>> trainer = lightning.Trainer(max_epochs=3, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.fit(module, batches)  # doctest: +SKIP
        >>> print(callback.plan)  # the table, once the trainer has ended
        None
    """

    def __init__(self, attribute: str = "", *, example_inputs: Any = None, **options: Any) -> None:
        """Keep what is asked."""
        super().__init__()
        self.attribute = attribute
        self.example_inputs = example_inputs
        self.options = options
        self.fast: nn.Module | None = None
        self.plan: Plan | None = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Optimize.

        Args:
            trainer: The trainer.
            pl_module: The module that was trained.
        """
        if not trainer.is_global_zero:
            return
        target = self._target(pl_module)
        inputs = self.example_inputs
        if inputs is None:
            inputs = pl_module.example_input_array
        if inputs is None:
            raise ValueError(
                "example_inputs must be what the module takes: give them to OptimizeAfterFit, or "
                "set example_input_array of the module"
            )
        options = dict(self.options)
        if options.get("calibration") is not None:
            options["calibration"] = _moved(list(options["calibration"]), pl_module.device)
        # A copy of the module would copy the trainer with its data and loggers.
        pl_module.trainer = None
        try:
            with torch.enable_grad():
                self.fast, self.plan = optimize(target, _moved(inputs, pl_module.device), **options)
        finally:
            pl_module.trainer = trainer
        if self.attribute:
            pl_module.set_submodule(self.attribute, self.fast)

    def _target(self, pl_module: nn.Module) -> nn.Module:
        """The module to optimize."""
        try:
            return pl_module.get_submodule(self.attribute)
        except AttributeError as error:
            names = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise ValueError(
                f"attribute must name a module of {type(pl_module).__name__}, such as {names}, got "
                f"{self.attribute!r}"
            ) from error


def _moved(value: Any, device: torch.device) -> Any:
    """Bring tensors to a device."""
    return mapped(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)
