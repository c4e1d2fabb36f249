"""Copies of models, and runs that leave no trace in the process."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from convfactor.model.trees import leaves


def copied(model: nn.Module, shared: tuple[Tensor, ...] = ()) -> nn.Module:
    """Copy a model as ``copy.deepcopy`` does, and those that it refuses for a tensor's sake too.

    A tensor that a forward has computed and left on its module, as the hooks of the old
    ``weight_norm`` and of ``prune`` do, is copied without its history.

    Args:
        model: The model.
        shared: Tensors to share with it.

    Raises:
        ValueError: Something in the model can't be copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for _, value in leaves({k: v for k, v in vars(module).items() if k != "_modules"}):
            if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    try:
        with warnings.catch_warnings():
            # Of torch, about how the graphs that it exports are made.
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
            twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"model must be one that copy.deepcopy can copy, but that raised {told(error)}; take "
            "what it names out of the model, or give its class a __deepcopy__"
        ) from error
    own = {id(value) for value in (*model.modules(), *model.parameters(), *model.buffers())}
    own -= {id(tensor) for tensor in shared}
    both = own.intersection(map(id, (*twin.modules(), *twin.parameters(), *twin.buffers())))
    if both:
        raise ValueError(
            "model must be one that copy.deepcopy can copy, but its copy shares modules or tensors "
            "with it; mend the __deepcopy__ of its classes"
        )
    return twin


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Fix the random numbers of torch, NumPy and Python, and restore what a forward may set.

    Compiled parts of a model run eagerly inside, where their calls can be seen, and no tensor is
    made that could not be trained.
    """
    python, numpy = random.getstate(), np.random.get_state()
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            reseed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_grad_enabled(gradients)
            torch.set_default_dtype(dtype)


def reseed(seed: int) -> None:
    """Start the random numbers of torch, NumPy and Python anew."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Hold back what ``torch.fx`` graphs in a model print of errors that are handled."""
    if not any(isinstance(module, GraphModule) for module in model.modules()):
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def told(error: Exception) -> str:
    """Type and first line of an error; torch's may go on for pages."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
