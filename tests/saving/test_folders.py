"""A rewritten model in a folder, loaded into a fresh model of its class."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from interruptions import interrupted
from safetensors.torch import load_file, save_file
from tiny import Functional, Untraceable, conv, images
from torch import fx, nn

import convfactor
from convfactor import CascadeConv2d, PlanMismatchError
from convfactor.conv.weights import FactorizedWeight

OPTIONS = {"objective": "macs", "structures": "cascade"}
TESTS = Path(__file__).parent.parent


class Net(nn.Module):
    """Whatever may be exchanged: modules, tied ones, calls; and buffers, saved or not."""

    def __init__(self, width: int = 2, size: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(size=size), nn.BatchNorm2d(2))
        self.twice = conv(seed=1)
        self.again = self.twice
        self.tied, self.other = conv(seed=3), conv(seed=3)
        self.other.weight, self.other.bias = self.tied.weight, self.tied.bias
        self.call = Functional(seed=2)
        self.plain = {"kernel": self.call.kernel}
        vars(self)["alias"] = vars(self.call)["alias"] = self.call.kernel
        self.lent = conv(seed=4)
        self.head = nn.Conv2d(2, width, 1)
        self.tail = nn.Conv2d(2, width, 1)
        self.tail.weight = self.head.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("shift", torch.linspace(0, 1, 12), persistent=False)

    def forward(self, x):
        x = self.again(self.twice(self.stem(x)))
        x = self.call(self.other(self.tied(x))) + self.shift
        x = F.conv2d(x, self.lent.weight, self.lent.bias, padding=2)
        return (self.head(x) + self.tail(x)) * self.scale


def net() -> nn.Module:
    return Net().eval()


def other_values(model: nn.Module) -> nn.Module:
    """The same model, freshly initialised by other random numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.shape != (12,):
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model


def graph() -> nn.Module:
    return fx.symbolic_trace(net())


def root() -> nn.Module:
    return conv()


def functional() -> nn.Module:
    return Functional().eval()


def untraceable() -> nn.Module:
    return Untraceable().eval()


def wavelet() -> nn.Module:
    from convfactor import wavelets

    return nn.Sequential(conv(), wavelets.DTCWTForward(J=2, skip_hps=[True, False]), Low()).eval()


class Low(nn.Module):
    def forward(self, coefficients):
        return coefficients[0]


class Inner(nn.Module):
    """A graph inside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fx.symbolic_trace(nn.Sequential(Functional(), Functional(seed=1), conv()))

    def forward(self, x):
        return self.inner(x)


def inner() -> nn.Module:
    return Inner().eval()


MAKERS = [net, graph, root, functional, untraceable, wavelet, inner]


@functools.cache
def planned(make) -> convfactor.Plan:
    plan = convfactor.plan(make(), images(), 1e-3, **OPTIONS)
    assert plan.replaced
    return plan


def optimized(make) -> nn.Module:
    return planned(make).apply(make())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_fresh_model_gives_bitwise_the_same(make, last, tmp_path):
    fast = optimized(make)
    if last:
        fast = convfactor.model.formats.channels_last(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1.25)  # trained further
    convfactor.save(fast, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["convfactor.json", "convfactor.safetensors"]
    fresh = other_values(make())
    before = copy.deepcopy(fresh.state_dict())
    loaded = convfactor.load(tmp_path, fresh)
    x = images(seed=7)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(loaded(given), fast(given))
        assert loaded(given).stride() == fast(given).stride()
    mine, its = loaded.state_dict(keep_vars=True), fast.state_dict(keep_vars=True)
    assert list(mine) == list(its)
    for name, value in its.items():
        assert torch.equal(mine[name], value)
        assert mine[name].stride() == value.stride()
        assert type(mine[name]) is type(value)
        assert mine[name].requires_grad == value.requires_grad
    for a in its:
        for b in its:
            assert (mine[a] is mine[b]) == (its[a] is its[b])
    assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())
    modules = dict(fast.named_modules(remove_duplicate=False))
    assert modules.keys() == dict(loaded.named_modules(remove_duplicate=False)).keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_and_buffers_outside_the_state(dtype, tmp_path):
    fast = optimized(net).to(dtype)
    convfactor.save(fast, tmp_path)
    loaded = convfactor.load(tmp_path, other_values(net()))
    x = images().to(dtype)
    assert loaded.shift.dtype == loaded.call.kernel.dtype == dtype
    assert torch.equal(loaded(x), fast(x))
    fresh = net()
    fresh.shift.add_(1)
    assert torch.equal(convfactor.load(tmp_path, fresh).shift, fresh.shift.to(dtype))


def test_weights_of_calls_are_exchanged_in_plain_containers_too(tmp_path):
    convfactor.save(optimized(net), tmp_path)
    loaded = convfactor.load(tmp_path, net())
    assert isinstance(loaded.call.kernel, FactorizedWeight)
    assert loaded.plain["kernel"] is loaded.alias is loaded.call.alias is loaded.call.kernel
    assert isinstance(loaded.lent.weight, FactorizedWeight)
    assert type(loaded) is Net


def test_transforms_of_pytorch_wavelets_are_exchanged(tmp_path):
    theirs = pytest.importorskip("pytorch_wavelets")
    from convfactor import wavelets
    from convfactor.model.transforms import replacement
    from convfactor.wavelets.banks import Sizes

    def make(**options):
        forward = theirs.DTCWTForward(**{"J": 2, **options})
        return nn.ModuleDict({"there": forward, "back": theirs.DTCWTInverse()})

    fast = make()
    for name in fast:
        fast[name] = replacement(fast[name])
    fast["there"].retile(Sizes(tile=8, whole=4))
    convfactor.save(fast, tmp_path)
    loaded = convfactor.load(tmp_path, other_values(make()))
    assert type(loaded["there"]) is wavelets.DTCWTForward
    assert loaded["there"].sizes == Sizes(tile=8, whole=4)
    assert type(loaded["back"]) is wavelets.DTCWTInverse
    x = images(size=16)
    low, high = fast["there"](x)
    got_low, got_high = loaded["there"](x)
    assert torch.equal(got_low, low)
    assert all(map(torch.equal, got_high, high))
    with pytest.raises(PlanMismatchError, match=r"there: the model has .*J=3.* but .*J=2"):
        convfactor.load(tmp_path, make(J=3))
    with pytest.raises(PlanMismatchError, match="there: the model has a Identity, but a DTCWTForw"):
        convfactor.load(tmp_path, nn.ModuleDict({"there": nn.Identity()}))


LOADING = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/saving"]
import torch
import test_folders
import convfactor
torch.set_num_threads(1)
fresh = test_folders.other_values(getattr(test_folders, sys.argv[2])())
loaded = convfactor.load(sys.argv[3], fresh)
torch.save(loaded(torch.load(sys.argv[3] + "/x.pt")), sys.argv[3] + "/y.pt")
"""


@pytest.mark.parametrize("make", [net, graph])
def test_another_process_gives_bitwise_the_same(make, tmp_path):
    fast, x = optimized(make), images(seed=9, count=3, size=12)
    convfactor.save(fast, tmp_path)
    torch.save(x, tmp_path / "x.pt")
    arguments = [sys.executable, "-c", LOADING, str(TESTS), make.__name__, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "y.pt"), fast(x))


def test_a_model_in_which_nothing_was_exchanged(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    convfactor.save(model, tmp_path)
    loaded = convfactor.load(tmp_path, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_class_that_makes_cascades_itself(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = CascadeConv2d.from_conv(conv(), convfactor.factorize(conv().weight, stages=2))
        return nn.Sequential(layer, conv(seed=1))

    fast = convfactor.model.formats.channels_last(optimized(make))
    convfactor.save(fast, tmp_path)
    loaded = convfactor.load(tmp_path, other_values(make()))
    assert torch.equal(loaded(images()), fast(images()))
    assert loaded[0].output_format == torch.channels_last


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (lambda: Net(size=7), r"stem\.0: the model has a 7x7 convolution 2->2, padding .* but a c"),
        (lambda: Net(width=3), r"head\.weight has the shape \(3, 2, 1, 1\) in the model, but \(2"),
        (lambda: nn.Sequential(conv()), r"stem\.0: the model has nothing, but a cascade for a 5x5"),
        (lambda: nn.Module(), r"stem\.0: the model has nothing"),
        (lambda: changed(lambda m: setattr(m, "twice", nn.ReLU())), "twice: the model has a ReLU"),
        (lambda: changed(lambda m: setattr(m, "call", nn.ReLU())), "call.kernel: the model has no"),
        (
            lambda: changed(lambda m: setattr(m.call, "kernel", nn.Parameter(torch.ones(2)))),
            r"call\.kernel: the model has a tensor of shape \(2,\)",
        ),
        (lambda: changed(lambda m: setattr(m, "new", conv())), "the model has new.bias, which was"),
        (lambda: changed(lambda m: delattr(m, "tail")), r"the model has no tail\.bias, which"),
        (
            lambda: changed(lambda m: setattr(m.head, "bias", m.tail.bias)),
            r"head\.bias and tail\.bias are one tensor in the model, but two were saved",
        ),
        (lambda: net().to("meta"), "has no values in the model; make the model on a device"),
    ],
)  # fmt: skip
def test_another_model_is_refused_with_the_way_out(fresh, message, tmp_path):
    convfactor.save(optimized(net), tmp_path)
    model = fresh()
    with pytest.raises(PlanMismatchError, match=message) as caught:
        convfactor.load(tmp_path, model)
    assert (
        "give load a new model of the class" in str(caught.value)
        or "meta" in message
        or ("make the model on a device" in str(caught.value))
    )


def changed(change) -> nn.Module:
    model = net()
    change(model)
    return model


def test_a_state_of_the_users_own_is_passed_by(tmp_path):
    class Own(nn.Sequential):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise AssertionError

    model = Own(conv())
    fast, _ = convfactor.optimize(model, images(), 1e-3, objective="macs")
    convfactor.save(fast, tmp_path)
    assert torch.equal(convfactor.load(tmp_path, Own(conv(seed=2)))(images()), fast(images()))


def test_a_graph_asks_for_the_same_graph(tmp_path):
    convfactor.save(optimized(graph), tmp_path)
    with pytest.raises(PlanMismatchError, match=r"\(root\): the model has a Net, but a torch.fx g"):
        convfactor.load(tmp_path, net())
    shorter = fx.symbolic_trace(nn.Sequential(conv()))
    message = (
        r"stem\.0: the model has the node _0, but a call of a 5x5 .* class torch.fx.GraphModule"
    )
    with pytest.raises(PlanMismatchError, match=message):
        convfactor.load(tmp_path, shorter)


def test_the_root_has_a_name(tmp_path):
    convfactor.save(optimized(root), tmp_path)
    with pytest.raises(PlanMismatchError, match=r"layer \(root\): the model has a 7x7 convolution"):
        convfactor.load(tmp_path, conv(size=7))


def test_what_can_not_be_saved_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    class Own(CascadeConv2d):
        pass

    layer = CascadeConv2d.from_conv(conv(), convfactor.factorize(conv().weight, stages=2))
    layer.__class__ = Own
    for model, message in (
        (Extra(1, 1), "_extra_state in the state of the model is of type dict"),
        (nn.LazyLinear(2), "weight has no values yet; call the model once"),
        (nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (nn.Sequential(layer), "0 is a Own, which can't be rebuilt"),
    ):
        with pytest.raises(ValueError, match=message):
            convfactor.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        convfactor.save({}, tmp_path)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got the class Net"):
        convfactor.load(tmp_path, Net)


def test_files_that_were_changed_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold convfactor\.json and convfactor\.saf"):
        convfactor.load(tmp_path, net())
    convfactor.save(optimized(net), tmp_path)
    record, weights = (tmp_path / f"convfactor.{end}" for end in ("json", "safetensors"))
    text, tensors = record.read_text(), load_file(weights)

    changed = json.loads(text)
    changed["description"]["cascades"][0]["bias"] = False
    record.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="not those that were saved"):
        convfactor.load(tmp_path, net())
    for broken in ("", text[:-9], "[]", text.replace('"format": 1', '"format": 9')):
        record.write_text(broken)
        with pytest.raises(ValueError, match="does not hold a model that can be read"):
            convfactor.load(tmp_path, net())
    record.write_text(text)

    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, weights)
    with pytest.raises(ValueError, match=r"convfactor\.safetensors does not hold the tensors that"):
        convfactor.load(tmp_path, net())
    save_file(tensors, weights)
    assert convfactor.load(tmp_path, net())


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("stop", range(5))
def test_an_interrupted_save_leaves_a_whole_model(tmp_path, monkeypatch, stop, fresh):
    """Each step in turn is the first that does not happen."""
    models = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    if not fresh:
        convfactor.save(models[0], tmp_path)
    with interrupted(monkeypatch, stop):
        convfactor.save(models[1], tmp_path)
    if fresh and stop < 3:
        with pytest.raises(FileNotFoundError):
            convfactor.load(tmp_path, models[0])
        return
    loaded = convfactor.load(tmp_path, nn.Sequential(nn.Linear(2, 2)))
    assert torch.equal(loaded[0].weight, models[stop >= 3][0].weight)
