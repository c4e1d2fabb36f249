"""Random small networks with functional calls, state, chance, branches and optional arguments."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tally import Tally
from torch import Tensor, nn

import convfactor
from convfactor import Cascade, StageShape, Structure
from convfactor.model.trees import leaves

SECONDS = 60.0
CHANNELS = 2


class Part(nn.Module):
    """One random step of a network."""

    def __init__(self, kind: str, rng: random.Random) -> None:
        """Make the layers that the kind of step needs."""
        super().__init__()
        self.kind = kind
        self.size = rng.choice([5, 5, 7])
        self.dilation = rng.choice([1, 1, 2])
        weight = _kernel(self.size, rng.randrange(1000), rng.random() < 0.8)
        self.inner: Any = None
        if kind == "module":
            self.inner = nn.Conv2d(
                CHANNELS, CHANNELS, self.size, padding="same", dilation=self.dilation,
                padding_mode=rng.choice(["zeros", "reflect", "circular", "replicate"]),
            )  # fmt: skip
            with torch.no_grad():
                self.inner.weight.copy_(weight)
        elif kind == "buffer":
            self.register_buffer("kernel", weight)
        else:
            self.kernel = nn.Parameter(weight)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(CHANNELS)) if rng.random() < 0.5 else None
        self.scale = rng.choice([1.0, -0.5])

    def conv(self, x: Tensor) -> Tensor:
        """Convolve, by a module or a function."""
        if self.inner is not None:
            return self.inner(x)
        pad = self.dilation * (self.size // 2)
        if self.kind == "aten":
            return torch.ops.aten.conv2d(x, self.kernel, self.bias, [1, 1], [pad], [self.dilation])
        return F.conv2d(x, self.kernel, self.bias, padding=pad, dilation=self.dilation)

    def forward(self, x: Tensor, factor: Tensor | float | None = None) -> Tensor:
        """Do the step."""
        self.calls += 1
        if self.kind == "state":
            return self.conv(x) * (1 + float(self.calls % 3))
        if self.kind == "chance":
            return self.conv(x + torch.randn(x.shape))
        if self.kind == "branch":
            return self.conv(x) if x.shape[-1] > 12 else self.conv(x).flip(-1)
        if self.kind == "caught":
            try:
                k = int(x.shape[-1]) % 3
            except TypeError:
                k = 7
            return self.conv(x) + k
        if self.kind == "context":
            with torch.autocast("cpu", enabled=False):
                return self.conv(x)
        if self.kind == "written":
            return self.conv(x.mul_(0.5))
        if self.kind == "typed":
            return self.conv(x if isinstance(x, Tensor) else x[0])
        y = self.conv(x)
        return y if factor is None else y * factor


KINDS = (
    "module", "plain", "buffer", "aten", "state", "chance", "branch", "caught", "context",
    "written", "typed",
)  # fmt: skip


class Network(nn.Module):
    """Random steps in a row, with a shortcut, a shared step and outputs of some kind."""

    def __init__(self, seed: int) -> None:
        """Draw a network."""
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.parts = nn.ModuleList(Part(rng.choice(KINDS), rng) for _ in range(rng.randint(1, 3)))
        self.again = rng.random() < 0.3
        self.output = rng.choice(["tensor", "dict", "scalar", "pair"])
        if rng.random() < 0.3:
            self.held = [self.parts[0]]
        if rng.random() < 0.2:
            self.parts[0].register_forward_hook(lambda module, args, output: output + 0.5)

    def forward(self, x: Tensor, *, factor: float | None = None) -> Any:
        """Run the steps."""
        first = self.held[0] if hasattr(self, "held") else self.parts[0]
        y = first(x, factor) if factor is not None else first(x)
        for part in self.parts[1:]:
            y = y + part(torch.tanh(y))
        if self.again:
            y = first(y)
        if self.output == "dict":
            return {"y": y, "parts": [y[:1], None]}
        if self.output == "scalar":
            return y.mean(), y
        return (y, y.argmax(1)) if self.output == "pair" else y


def run(count: int, seed: int = 0) -> Tally:
    """Optimize random networks and compare them with themselves, on several calls.

    Args:
        count: Number of networks.
        seed: Seed of the first; a case is repeated by ``Network(seed)``.
    """
    tally = Tally("networks")
    for number in range(seed, seed + count):
        with tally.case(f"Network({number})", SECONDS):
            _check(number)
    return tally


def _check(seed: int) -> None:
    """One network."""
    model = Network(seed).eval()
    x = torch.rand(1, CHANNELS, 14, 14)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    fast, plan = convfactor.optimize(
        model, x, 1e-3, objective="macs", structures="cascade", progress=False
    )
    assert torch.equal(torch.get_rng_state(), random_state), "random state moved"
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "the model was changed"
    errors = sum(entry.error or 0.0 for entry in plan.entries if entry.replaced)
    limit = max(1e-3, 4 * errors) + 1e-4
    original = copy.deepcopy(model)
    calls = ({"x": x}, {"x": x}, {"x": x, "factor": 2.0}, {"x": torch.rand(2, CHANNELS, 11, 17)})
    for number, call in enumerate(calls):
        outputs = []
        for network in (original, fast):
            torch.manual_seed(number), np.random.seed(number), random.seed(number)
            with torch.no_grad():
                outputs.append(list(leaves(network(**copy.deepcopy(call)))))
        for (path, true), (_, got) in zip(*outputs, strict=True):
            if isinstance(true, Tensor) and true.is_floating_point():
                scale = true.std(correction=0) if true.numel() > 1 else true.abs()
                off = float((got - true).square().mean().sqrt() / scale.clamp_min(1e-3))
                assert off <= limit, f"call {number}: output{path} is {off:.2e} off\n{plan}"


def _kernel(size: int, seed: int, exact: bool) -> Tensor:
    """A random kernel, one that a cascade can be exactly or not."""
    if not exact:
        return torch.randn(
            CHANNELS, CHANNELS, size, size, generator=torch.Generator().manual_seed(seed)
        )
    widths = (CHANNELS, *[1] * (size // 2 - 1), CHANNELS)
    stages = [StageShape(a, b, (3, 3)) for a, b in itertools.pairwise(widths)]
    return Cascade.random(Structure(tuple(stages)), seed).compose().float()
