"""Models as people write them: each is rewritten and computes the same, or kept with a reason."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import random
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, conv, images, kernel
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import convfactor.planning.optimization  # its first import, of rich, draws random numbers
from convfactor.model.copies import copied
from convfactor.model.outputs import structural_difference
from convfactor.model.trees import leaves

REPLACED = "replaced"
OPTIONS = {"objective": "macs", "structures": "cascade"}


@dataclasses.dataclass
class Case:
    """One odd model.

    Attributes:
        make: Makes it.
        inputs: What it is called with.
        expected: "replaced", or what the reason of the first layer that is kept says.
        others: More calls to compare it in.
        close: How close the outputs are.
    """

    make: Callable[[], nn.Module]
    inputs: Any = None
    expected: str = REPLACED
    others: tuple[Any, ...] = ()
    close: float = 2e-3


CASES: dict[str, Case] = {}


def case(expected: str = REPLACED, inputs: Any = None, **options: Any):
    """Add a class of models, or a function that makes one, to the table."""

    def add(make):
        CASES[make.__name__] = Case(make, inputs, expected, **options)
        return make

    return add


def own(x: Tensor, module: nn.Module) -> Tensor:
    return F.conv2d(x, module.kernel, module.shift, padding=2)


# Optional, keyword and variable arguments


@case(others=((images(), 2.0), {"x": images(), "scale": 3.0}))
class OptionalScale(Functional):
    def forward(self, x, scale=None):
        y = own(x, self)
        return y * scale if scale is not None else y


@case(inputs=(images(), torch.tensor(2.0)), others=(images(),))
class OptionalGiven(Functional):
    def forward(self, x, scale=None):
        return own(x, self) * scale if scale is not None else own(x, self)


@case(inputs={"image": images()}, others=({"image": images(), "flip": True},))
class KeywordOnly(Functional):
    def forward(self, *, image, flip=False):
        y = own(image, self)
        return y.flip(-1) if flip else y


@case(inputs=(images(), images(1)))
class VariableArguments(Functional):
    def forward(self, *images, **options):
        return sum(own(x, self) for x in images)


@case(inputs=([images(), images(1)],))
class ListArgument(Functional):
    def forward(self, images):
        return [own(x, self) for x in images]


# Types, errors, attributes and values asked for


@case(others=([images()],))
class AsksForType(Functional):
    def forward(self, x):
        return own(x * 3 + 1, self) if isinstance(x, Tensor) else own(x[0], self)


@case()
class CatchesErrors(Functional):
    def forward(self, x):
        try:
            k = int(x.shape[-1])
        except Exception:
            k = 1
        return own(x, self) * k


@case(others=(-images(), images(size=20)))
class BranchesOnValues(Functional):
    def forward(self, x):
        return own(x, self) if x.mean() > 0 else own(-x, self) * 2


@case(others=(images(size=16), images(size=9)))
class BranchesOnShapes(Functional):
    def forward(self, x):
        y = own(x, self)
        return F.max_pool2d(y, 2) if x.shape[-1] > 12 else y


@case(others=(images(size=17),))
class PaddingFromSize(Functional):
    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=x.shape[-1] // 6)


@case()
class AsksForDtypeOfWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        weight = self.conv.weight
        return self.conv(x.to(weight.dtype).to(weight.device)) * weight.shape[0]


@case()
class AsksForDtypeOfParameter(Functional):
    def forward(self, x):
        assert self.kernel.requires_grad
        assert self.kernel.dim() == 4
        assert self.kernel.size(1) == x.shape[1]
        return own(x.to(self.kernel.dtype), self) * len(self.kernel)


@case("also used outside it")
class ReadsWeightValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) + self.conv.weight.mean()


@case("also used outside it")
class ReadsParameterValues(Functional):
    def forward(self, x):
        return own(x, self) + self.kernel.square().sum()


@case("computed")
class StandardizesWeight(Functional):
    def forward(self, x):
        return F.conv2d(x, self.kernel - self.kernel.mean(), padding=2)


@case("undone: output differs with another layer")
class AsksForClassOfLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        y = self.conv(x)
        return y if type(self.conv) is nn.Conv2d else 2 * y


@case("undone: with it the model raises")
class ReadsAttributeOfLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) * (1 + self.conv.output_padding[0])


@case("undone: output differs with another layer")
class AsksWhetherParameter(Functional):
    def forward(self, x):
        y = own(x, self)
        return y if isinstance(self.kernel, nn.Parameter) else 2 * y


@case("undone: with it the output is")
class BranchesOnTinyDifferences(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.kernel = nn.Parameter(self.conv.weight.detach().clone())
        self.shift = nn.Parameter(self.conv.bias.detach().clone())

    def forward(self, x):
        y = self.conv(x)
        twin = F.conv2d(x, self.kernel + 0, self.shift, padding=2)
        return y * (1.0 if torch.equal(y, twin) else 9.0)


# State and chance


@case()
class CountsCalls(Functional):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return own(x, self) * self.n


@case()
class CountsInBuffer(Functional):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return own(x, self) * self.n


@case()
class RunningMean(Functional):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.mean = self.mean * 0.5 + x.mean((0, 2, 3))
        return own(x, self) - self.mean[:, None, None]


@case()
class KeepsOutput(Functional):
    def forward(self, x):
        self.last = own(x, self)
        return self.last * 2


@case()
class KeepsHistory(Functional):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.mean())
        return own(x, self) + len(self.seen)


@case()
class DrawsNumbers(Functional):
    def forward(self, x):
        noise = torch.randn(x.shape) + random.random() + float(np.random.rand())
        return own(x + noise, self)


@case()
class DropsAlways(Functional):
    def forward(self, x):
        return F.dropout(own(x, self), 0.5, training=True)


@case("gives other outputs in every run")
class ReadsTheClock(nn.Module):
    ticks = 0

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        ReadsTheClock.ticks += 1
        return self.conv(x) * ReadsTheClock.ticks


# Contexts


@case()
class DisablesAutocast(Functional):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return own(x.float(), self)


@case("on the model's data the layer is", close=2e-2)
class UsesAutocast(Functional):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return own(x, self).float()


@case()
class DisablesGradients(Functional):
    @torch.no_grad()
    def forward(self, x):
        return own(x, self)


@case()
class Checkpointed(Functional):
    def forward(self, x):
        return checkpoint(own, x, self, use_reentrant=False)


@case()
class Mapped(Functional):
    def forward(self, x):
        return torch.func.vmap(lambda one: own(one, self))(x)


@case()
class Linearized(Functional):
    def forward(self, x):
        outputs, _ = torch.func.vjp(lambda one: own(one, self), x)
        return outputs


# Where layers and weights are held


@case()
class PlainList(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = conv()
        self.layers = [self.first]

    def forward(self, x):
        return self.layers[0](x)


@case()
class PlainDictOfTuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = conv()
        self.layers = {"a": ({"b": self.first},)}

    def forward(self, x):
        return self.layers["a"][0]["b"](x)


@case("past the module that it is registered in")
class HeldByObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.holder = Holder(self.conv)

    def forward(self, x):
        return self.holder.image(x)


@case("plain list")
class UnregisteredLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [conv()]

    def forward(self, x):
        return self.layers[0](x)


@case()
class ParameterList(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = nn.ParameterList([kernel(seed=s) for s in range(2)])

    def forward(self, x):
        for weight in self.kernels:
            x = F.conv2d(x, weight, padding=2)
        return x


@case()
class ParameterDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = nn.ParameterDict({"a": kernel()})

    def forward(self, x):
        return F.conv2d(x, self.kernels["a"], padding=2)


@case()
class BufferWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("taps", kernel(), persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.taps, padding=2)


@case()
class LayerUsedAsFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=2)


@case("also used outside it")
class LayerUsedBothWays(LayerUsedAsFunction):
    def forward(self, x):
        return self.conv(x) + super().forward(x)


@case()
class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Functional(), Functional()
        self.b.kernel = self.a.kernel

    def forward(self, x):
        return self.a(x) + self.b(x)


@case("also used outside it")
class TwoGeometries(Functional):
    def forward(self, x):
        return own(x, self) + F.conv2d(x, self.kernel, padding=4, dilation=2)


@case()
class SharedModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = conv()

    def forward(self, x):
        return self.a(F.avg_pool2d(self.b(x), 2))


@case()
class NestedContainers(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"a": nn.ModuleList([conv(), Functional()])})

    def forward(self, x):
        for part in self.parts["a"]:
            x = part(x)
        return x


@case("belongs to a SequentialWithKernel")
class SequentialWithKernel(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ReLU())
        self.kernel = nn.Parameter(kernel())

    def forward(self, x):
        return F.conv2d(super().forward(x), self.kernel, padding=2)


@case("past the module that it is registered in")
class HeldHalfByObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.holder = Holder(self.conv)

    def forward(self, x):
        return self.conv(x) + self.holder.image(x)


@case()
class CyclicList(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.held = [self.conv]
        self.held.append(self.held)

    def forward(self, x):
        return self.held[1][0](x)


@case("shares a parameter")
class TiedToAnother(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.deconv = conv(), nn.ConvTranspose2d(2, 2, 3, padding=1)
        self.deconv.bias = self.conv.bias

    def forward(self, x):
        return self.deconv(self.conv(x))


@case("autograd.Function")
class CustomFunction(Functional):
    def forward(self, x):
        return Own.apply(x, self.kernel)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return F.conv2d(x, weight, padding=2)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


@case("also used outside it")
class FoldsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.folded = conv(), False

    def forward(self, x):
        if not self.folded:
            with torch.no_grad():
                self.conv.weight.mul_(2)
            self.folded = True
        return self.conv(x)


@case("does not register")
class BuiltInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = None

    def forward(self, x):
        if self.conv is None:
            self.conv = conv()
        return self.conv(x)


@case()
class TrainReturnsNothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.conv(x)


@case()
class GetattrGivesNone(Functional):
    ready = False

    def __init__(self):
        super().__init__()
        self.ready = True

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.ready and not name.startswith("__"):
                return None
            raise

    def forward(self, x):
        return own(x, self)


@case("computed")
class MapsOverKernels(Functional):
    def forward(self, x):
        return torch.func.vmap(lambda w: F.conv2d(x, w[None]))(self.kernel)


@case()
class CompiledPart(Functional):
    def __init__(self):
        super().__init__()
        self.run = torch.compile(own, backend="eager")

    def forward(self, x):
        return self.run(x, self)


# Hooks, wrappers and subclasses


@case()
def hooked_layer():
    model = nn.Sequential(conv())
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    return model


@case()
def hooked_function():
    model = Functional()
    model.register_forward_hook(lambda module, args, output: output + 1)
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


@case("forward calls 0 convolutions")
def patched_layer():
    model = nn.Sequential(conv())
    model[0].forward = F.relu
    return model


@case("does not take an image alone")
class TakesAStyle(nn.Module):
    class Modulated(nn.Conv2d):
        def forward(self, x, style):
            return F.conv2d(x, self.weight * (1 + style), padding=2)

    def __init__(self):
        super().__init__()
        self.layer = self.Modulated(2, 2, 5)

    def forward(self, x):
        return self.layer(x, x.mean())


@case("does not take an image alone: of 12 only")
def asserts_its_size():
    class Asserts(nn.Conv2d):
        def forward(self, x):
            assert x.shape[-1] == 12, "of 12 only"
            return F.conv2d(x, self.weight / self.weight.norm(), padding=2)

    return nn.Sequential(Asserts(2, 2, 5))


@case("is no parameter or buffer of the model: it is computed")
def has_no_weight():
    class Generated(nn.Conv2d):
        def __init__(self):
            super().__init__(2, 2, 5)
            del self.weight
            self.basis = nn.Parameter(kernel())

        def forward(self, x):
            return F.conv2d(x, 2 * self.basis, padding=2)

    return nn.Sequential(Generated())


@case()
def tells_its_size_as_an_int():
    layer = conv()
    layer.kernel_size = 5
    return nn.Sequential(layer)


@case()
def holds_a_frozen_mapping():
    model = nn.Sequential(conv())
    model.options = immutable_dict({"layer": 1})
    return model


@case("a cascade|can't be set|raises")
class ChangesItsDilation(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = conv()

    def forward(self, x):
        outputs = []
        for rate in (1, 2):
            self.layer.dilation, self.layer.padding = (rate, rate), (2 * rate, 2 * rate)
            outputs.append(self.layer(x))
        return outputs


@case()
def wrapped_in_another():
    return nn.Sequential(nn.Sequential(Functional()), nn.Identity())


@case()
def subclass_of_a_layer():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Scaled(2, 2, 5)
    layer.load_state_dict(conv().state_dict())
    return nn.Sequential(layer)


@case()
def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(conv()))
    model(images())
    return model


@case()
def new_weight_norm():
    return nn.Sequential(parametrizations.weight_norm(conv()))


@case()
def pruned():
    model = nn.Sequential(conv())
    prune.identity(model[0], "weight")
    return model


@case()
def keeps_an_output_from_training():
    model = nn.Sequential(KeepsOutput())
    model(images())
    return model


@case()
class CustomGetattr(Functional):
    def __getattr__(self, name):
        if name == "doubled":
            return 2
        return super().__getattr__(name)

    def forward(self, x):
        return own(x, self) * self.doubled


@case()
class MethodsAndProperties(Functional):
    @property
    def factor(self):
        return 3

    def prepare(self, x):
        return x * self.factor

    def forward(self, x):
        return own(self.prepare(x), self)


@case()
class OneDimensional(nn.Module):
    def __init__(self):
        super().__init__()
        self.taps = nn.Parameter(torch.ones(2, 2, 5))

    def forward(self, x):
        return F.conv1d(x.flatten(0, 1).expand(2, -1, -1)[:, :2], self.taps)


# Outputs


class Pair(NamedTuple):
    a: Tensor
    b: Any


@dataclasses.dataclass
class Record:
    image: Tensor
    count: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenRecord:
    image: Tensor


class Holder:
    def __init__(self, image):
        self.image = image


class Slotted:
    __slots__ = ("image",)

    def __init__(self, image):
        self.image = image


class Cache:
    def __init__(self):
        self.items = [images()]


@case(inputs=(images(), Cache()))
class WritesIntoObject(Functional):
    def forward(self, x, cache):
        cache.items[0].mul_(2)
        cache.items.append(x)
        return own(x, self) + cache.items[0]


@case("undone: output.images.0 differs")
class HidesInObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        y = self.conv(x)
        return Boxes([y if type(self.conv) is nn.Conv2d else 2 * y])


class Boxes:
    def __init__(self, images):
        self.images = images


def gives(output: Callable[[Tensor], Any], name: str) -> None:
    class Gives(Functional):
        def forward(self, x):
            return output(own(x, self))

    CASES[f"gives {name}"] = Case(Gives)


gives(lambda y: Pair(y, None), "a named tuple")
gives(lambda y: Record(y, 3), "a dataclass")
gives(lambda y: Holder([y, {3}]), "an object of lists")
gives(Slotted, "an object with slots")
gives(FrozenRecord, "a frozen dataclass")
gives(Holder, "an object")
gives(lambda y: {"y": y, "z": [y, (None, 3, "text")]}, "nested containers")
gives(lambda y: collections.OrderedDict(y=y), "an ordered dict")
gives(lambda y: y.sum(), "a scalar")
gives(lambda y: float(y.sum()), "a float")
gives(lambda y: torch.fft.fft2(y), "complex numbers")
gives(lambda y: (y.argmax(1), y > 0, y), "ints and bools")
gives(lambda y: (y[:0], y), "an empty tensor")
gives(lambda y: y.to_sparse(), "a sparse tensor")
gives(lambda y: y.detach().numpy(), "an array")
gives(lambda y: None, "nothing")


@case(others=((images(), True),))
class ChangingLength(Functional):
    def forward(self, x, flag=None):
        y = own(x, self)
        return y if flag is None else (y, x)


@case(inputs=(Record(images()),))
class TakesRecord(Functional):
    def forward(self, record):
        return own(record.image.mul_(2), self)


@case()
class WritesIntoInput(Functional):
    def forward(self, x):
        return own(x.mul_(2).add_(1), self)


# Formats and dtypes


@case(inputs=images().contiguous(memory_format=torch.channels_last))
def channels_last():
    return nn.Sequential(conv(), Functional()).to(memory_format=torch.channels_last)


@case(inputs=images().double())
def double_precision():
    return nn.Sequential(conv(), Functional()).double()


@case(inputs=images()[0])
def unbatched():
    return nn.Sequential(conv(), Functional())


@case()
def in_training_mode():
    return nn.Sequential(Functional(), nn.BatchNorm2d(2), nn.Dropout(), conv()).train()


def test_models_that_copy_themselves_are_refused():
    class Same(nn.Sequential):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(ValueError, match="copy shares modules"):
        convfactor.optimize(nn.Sequential(Same(conv())), images(), 1e-3, **OPTIONS)


def test_hooks_of_every_module_keep_the_layers():
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: 2 * output if type(module) is nn.Conv2d else None
    )
    try:
        plan = convfactor.plan(nn.Sequential(conv()), images(), 1e-3, **OPTIONS)
    finally:
        hook.remove()
    assert "undone" in plan.entries[0].reason


def test_a_result_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        fast, plan = convfactor.optimize(Functional(), images(), 1e-3, **OPTIONS)
    assert plan.replaced
    fast(images()).sum().backward()


# What the user has must stay as it was.


def snapshot(value: Any, seen: dict[int, Any] | None = None) -> dict[str, Any]:
    """Everything about a model that a run could change, deeply, with identities."""
    found: dict[str, Any] = {}
    for name, module in value.named_modules(remove_duplicate=False):
        found[f"{name}!"] = (id(module), type(module))
        for key, item in vars(module).items():
            if key == "_modules":
                found[f"{name}.{key}"] = {k: id(child) for k, child in item.items()}
                continue
            for path, leaf in leaves(item):
                where = f"{name}.{key}{path}"
                if isinstance(leaf, Tensor):
                    grad = None if not leaf.is_leaf or leaf.grad is None else leaf.grad.clone()
                    state = (leaf.detach().clone(), grad, leaf.requires_grad, leaf._version)
                    found[where] = (id(leaf), *state)
                else:
                    same = leaf if isinstance(leaf, (int, float, str, bool)) else id(leaf)
                    found[where] = same if leaf not in ({}, [], ()) else repr(leaf)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def process_state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(),
        np.random.get_state()[2], torch.is_grad_enabled(), torch.get_default_dtype(),
        torch.get_num_threads(), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


def run(model: nn.Module, inputs: Any, seed: int = 0) -> Any:
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    inputs = copy.deepcopy(inputs)
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    with torch.no_grad():
        return model(*args, **(inputs if isinstance(inputs, dict) else {}))


def assert_same(fast: nn.Module, model: nn.Module, inputs: Any, close: float) -> None:
    for seed in range(3):
        true, got = run(model, inputs, seed), run(fast, inputs, seed)
        assert structural_difference(true, got) is None
        for (_, mine), (_, other) in zip(leaves(true), leaves(got), strict=True):
            if isinstance(mine, (Tensor, float, np.ndarray)):
                dense = mine.to_dense() if isinstance(mine, Tensor) else torch.as_tensor(mine)
                found = other.to_dense() if isinstance(other, Tensor) else torch.as_tensor(other)
                if dense.is_floating_point() or dense.is_complex():
                    torch.testing.assert_close(found, dense, rtol=close, atol=close)


@pytest.mark.parametrize("name", CASES)
def test_odd_models_compute_the_same_or_are_kept_with_a_reason(name, tmp_path):
    odd = CASES[name]
    torch.manual_seed(0)
    model = odd.make()
    inputs = images() if odd.inputs is None else odd.inputs
    given = copy.deepcopy(inputs)
    before, process = snapshot(model), process_state()

    fast, plan = convfactor.optimize(model, inputs, 1e-3, **OPTIONS)

    assert same(process_state(), process)
    after = snapshot(model)
    assert after.keys() == before.keys()
    changed = [where for where in before if not same(before[where], after[where])]
    assert not changed
    for (_, mine), (_, other) in zip(leaves(given), leaves(inputs), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other

    kept = [entry.reason for entry in plan.entries if not entry.replaced]
    if odd.expected == REPLACED:
        assert plan.entries
        assert not kept
        assert isinstance(fast, type(model))
    else:
        assert kept
        assert re.search(odd.expected, kept[0])
        with (
            pytest.raises(convfactor.ToleranceError)
            if "undone" in kept[0]
            else (contextlib.nullcontext())
        ):
            convfactor.plan(model, inputs, 1e-3, strict=True, **OPTIONS)
    if "every run" not in odd.expected:
        original = copied(model)
        fast.eval(), original.eval()
        for call in (inputs, *odd.others):
            assert_same(fast, original, call, odd.close)
