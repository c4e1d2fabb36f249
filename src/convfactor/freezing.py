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

# A tracer answers these once and for all: a stand-in is of no type that code may ask for, its
# errors are not those of a tensor, and the contexts that are entered leave no node.
FROZEN = frozenset(
    {"isinstance", "issubclass", "type", "hasattr", "callable", "is_tensor", "is_grad_enabled"}
)
HANDLERS = frozenset({"SETUP_FINALLY", "SETUP_WITH", "PUSH_EXC_INFO"})
# What every module has, and what the tracer puts on its root.
TORCHS, CONSTANT = frozenset(vars(nn.Module())), "_tensor_constant"
CONTEXTS = ("autograd/grad_mode.py", "amp/autocast_mode.py")


@contextmanager
def profiled(observe: Callable[[CodeType], None]) -> Iterator[None]:
    """Show every Python function that is called."""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            observe(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


@functools.lru_cache(maxsize=4096)
def freezes(code: CodeType) -> bool:
    """Whether a function does what leaves no trace in a graph."""
    path = Path(code.co_filename).as_posix()
    if code.co_name == "__enter__" and path.endswith(CONTEXTS):
        return True
    torchs, own = (Path(file).parent.as_posix() for file in (torch.__file__, __file__))
    standard = sysconfig.get_path("stdlib")
    if path.startswith((torchs, own)) or (path.startswith(standard) and "-packages" not in path):
        return False
    if path.startswith("<frozen"):
        return False
    if FROZEN.intersection(code.co_names):
        return True
    return any(step.opname in HANDLERS for step in dis.get_instructions(code))


def random_state() -> tuple[object, ...]:
    """What tells whether random numbers were drawn."""
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]


def module_state(module: nn.Module) -> dict[str, Any]:
    """What a forward may have changed of its module."""
    own = {k: v for k, v in vars(module).items() if k not in TORCHS and CONSTANT not in k}
    tensors = {**module._buffers, **{k: v for k, v in own.items() if isinstance(v, Tensor)}}
    copies = {k: v.detach().clone() for k, v in tensors.items() if v is not None}
    sizes = {k: len(v) for k, v in own.items() if isinstance(v, (list, dict, set))}
    return {"own": own, "tensors": copies, "sizes": sizes}


def same_state(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a module is as it was."""
    own, now = before["own"], after["own"]
    if own.keys() != now.keys() or any(now[name] is not value for name, value in own.items()):
        return False
    mine, other = before["tensors"], after["tensors"]
    if mine.keys() != other.keys() or before["sizes"] != after["sizes"]:
        return False
    return all(torch.equal(value, other[name]) for name, value in mine.items())
