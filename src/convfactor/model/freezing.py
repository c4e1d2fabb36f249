"""What a forward does that leaves no trace in a graph: seen while it is traced."""

from __future__ import annotations

import dis
import functools
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convfactor.model.trees import leaves

# A tracer answers these once and for all: a stand-in is of no type that code may ask for, its
# errors are not those of a tensor, and the contexts that are entered leave no node.
FROZEN = frozenset(
    (
        *("isinstance", "issubclass", "type", "__class__", "is_tensor", "callable"),
        *("hasattr", "getattr", "next", "singledispatch"),
        *("training", "is_grad_enabled", "is_autocast_enabled"),
    )
)
STEPS = frozenset({"SETUP_FINALLY", "SETUP_WITH", "PUSH_EXC_INFO", "STORE_GLOBAL", "MATCH_CLASS"})
# Stands for a generator of random numbers, which is never the same again.
DRAWN = object()
GENERATORS = (random.Random, torch.Generator, np.random.Generator, np.random.RandomState)
# What every module has, and what the tracer puts on its root.
TORCHS, CONSTANT = frozenset(vars(nn.Module())), "_tensor_constant"
# The parts of torch that call the code of models.
CALLERS = ("nn/", "fx/_symbolic_trace.py", "utils/_contextlib.py", "utils/checkpoint.py")
CONTEXTS = ("autograd/grad_mode.py", "amp/autocast_mode.py")


@contextmanager
def profiled(observe: Callable[[CodeType], None]) -> Iterator[None]:
    """Show every Python function that a model's code, or torch for a module, calls."""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and _is_called_by_model(frame):
            observe(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def _is_called_by_model(frame: FrameType) -> bool:
    """Whether a function is not one that torch calls for its own sake, such as of sympy."""
    if frame.f_back is None:
        return False
    caller = Path(frame.f_back.f_code.co_filename).as_posix()
    torchs = Path(torch.__file__).parent.as_posix() + "/"
    return not caller.startswith(torchs) or caller.removeprefix(torchs).startswith(CALLERS)


@functools.lru_cache(maxsize=4096)
def freezes(code: CodeType) -> bool:
    """Whether a function does what leaves no trace in a graph."""
    path = Path(code.co_filename).as_posix()
    if code.co_name == "__enter__" and path.endswith(CONTEXTS):
        return True
    torchs, own = (Path(file).parent.as_posix() + "/" for file in (torch.__file__, __file__))
    standard = sysconfig.get_path("stdlib")
    library = path.startswith(standard) and "-packages" not in path
    if library or path.startswith((torchs, own, "<frozen")):
        return False
    if FROZEN.intersection(code.co_names):
        return True
    return any(step.opname in STEPS for step in dis.get_instructions(code))


def random_state() -> tuple[object, ...]:
    """What tells whether random numbers were drawn."""
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]


def module_state(module: nn.Module) -> dict[str, Any]:
    """What a forward may have changed of its module."""
    own = {k: v for k, v in vars(module).items() if k not in TORCHS and CONSTANT not in k}
    return {path: _kept(leaf) for path, leaf in leaves({**own, "_buffers": module._buffers})}


def _kept(leaf: Any) -> Any:
    """What tells whether a value has changed."""
    if isinstance(leaf, GENERATORS):
        return DRAWN
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def same_state(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a module is as it was."""
    return before.keys() == after.keys() and all(
        _equal(value, after[path]) for path, value in before.items()
    )


def _equal(before: Any, after: Any) -> bool:
    """Whether a value is the same; where a module holds a generator, nothing is known."""
    if before is DRAWN or type(before) is not type(after):
        return False
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before, after)
    if isinstance(before, np.ndarray):
        return bool(np.array_equal(before, after))
    simple = isinstance(before, (int, float, complex, str, bytes, list, dict, set, tuple))
    return not simple or bool(before == after)
