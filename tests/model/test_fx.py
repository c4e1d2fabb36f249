from __future__ import annotations

import copy
import random

import pytest
import torch
from tiny import Functional, Untraceable, conv, images
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.infra.pass_manager import PassManager

import convfactor
from convfactor import CascadeConv2d
from convfactor.fx import FactorizeConvs, trace

OPTIONS = {"tolerance": 1e-3, "objective": "macs"}


class Counting(Functional):
    """Assigns to itself in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last = None

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        return super().forward(x)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x, *, scale=1.0, **more):
        y = self.conv(x) * scale
        return (y, {"more": more["extra"]}) if y.sum() > 1e9 or "extra" in more else y


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()
        self.b = self.a

    def forward(self, x):
        return self.a(self.b(x))


def patched() -> nn.Module:
    model = nn.Sequential(conv())
    model.forward = lambda x: model[0](x) + 1
    return model


def locked() -> nn.Module:
    model = nn.Sequential(conv())
    model.lock = __import__("threading").Lock()
    return model


MODELS = {
    "traceable": lambda: nn.Sequential(conv(), nn.ReLU(), Functional()),
    "untraceable": Untraceable,
    "untraceable child": lambda: nn.Sequential(Functional(), Untraceable(), conv(seed=1)),
    "convolution": conv,
    "functional": Functional,
    "two names": Twice,
    "assigns to itself": lambda: nn.Sequential(Counting()),
    "replaced forward": patched,
    "not copyable": locked,
    "graph": lambda: symbolic_trace(nn.Sequential(conv(), Functional())),
    "no convolution": lambda: nn.Sequential(nn.ReLU()),
}
KEPT = ("no convolution", "replaced forward")  # the latter calls the model that it was copied from


@pytest.mark.parametrize("name", MODELS)
def test_tracing_never_fails_and_changes_nothing(name):
    model = MODELS[name]().eval()
    attributes = {n: dict(vars(m)) for n, m in model.named_modules()}
    graph = trace(model)
    assert isinstance(graph, GraphModule)
    graph.graph.lint()
    assert torch.equal(graph(images()), model(images()))
    for n, module in model.named_modules():
        for key, value in attributes[n].items():
            assert key in ("calls", "last") or getattr(module, key) is value
    assert {id(p) for p in graph.parameters()} <= {id(p) for p in model.parameters()}


def test_tracing_leaves_attributes_alone():
    model = Counting()
    trace(nn.Sequential(model))
    assert (model.calls, model.last) == (0, None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_a_leaf():
    script = torch.jit.script(conv())
    for model in (script, nn.Sequential(script)):
        assert torch.equal(trace(model)(images()), model(images()))


def test_leaves_are_entered_separately():
    graph = trace(nn.Sequential(Functional(), Untraceable()))
    kinds = {node.op: node.target for node in graph.graph.nodes}
    assert kinds["call_module"] == "1"
    assert kinds["get_attr"].startswith("0.")


def test_keyword_arguments_reach_an_untraced_root():
    model = Keywords()
    graph = trace(model)
    assert torch.equal(graph(images(), scale=2.0), model(images(), scale=2.0))
    out, more = graph(images(), extra=3)
    assert torch.equal(out, model(images()))
    assert more == {"more": 3}


@pytest.mark.parametrize("own", [True, False], ids=["plan in the pass", "plan of the model"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "not copyable"])
def test_the_pass_rewrites_a_copy_of_the_graph(name, own):
    model = MODELS[name]().eval()
    graph = trace(model)
    state, code = copy.deepcopy(graph.state_dict()), graph.code
    if own:
        rewrite = FactorizeConvs(example_inputs=images(), **OPTIONS)
    else:
        rewrite = FactorizeConvs(convfactor.plan(model, images(), **OPTIONS))
    result = rewrite(graph)
    result.graph_module.graph.lint()
    torch.testing.assert_close(result.graph_module(images()), model(images()), rtol=1e-3, atol=1e-4)

    cascades = [m for m in result.graph_module.modules() if isinstance(m, CascadeConv2d)]
    assert result.modified == bool(cascades) == (name not in KEPT)
    sizes = {m.kernel_size for m in result.graph_module.modules() if isinstance(m, nn.Conv2d)}
    assert name in KEPT or (5, 5) not in sizes
    assert graph.code == code
    assert not any(isinstance(m, CascadeConv2d) for m in graph.modules())
    assert all(torch.equal(graph.state_dict()[n], value) for n, value in state.items())


def test_it_is_a_pass_for_a_pass_manager():
    graph = trace(nn.Sequential(conv()))
    manager = PassManager([FactorizeConvs(example_inputs=images(), **OPTIONS)])
    result = manager(graph)
    assert result.modified
    assert isinstance(result.graph_module.get_submodule("0"), CascadeConv2d)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tolerance": 0.1},
        {"example_inputs": images()},
        {"plan": "a plan", "tolerance": 0.1},
        {"plan": "a plan", "example_inputs": images()},
        {"plan": "a plan", "objective": "macs"},
    ],
)
def test_a_pass_takes_a_plan_or_what_makes_one(arguments):
    with pytest.raises(ValueError, match="either a plan, or tolerance and example_inputs"):
        FactorizeConvs(**arguments)


def test_the_pass_asks_for_a_graph():
    with pytest.raises(TypeError, match=r"GraphModule, got Sequential; trace .* first"):
        FactorizeConvs(example_inputs=images(), **OPTIONS)(nn.Sequential(conv()))


class Optional(Functional):
    def forward(self, x, scale=None, *, flip=False):
        y = super().forward(x)
        y = y.flip(-1) if flip else y
        return y if scale is None else y * scale


def test_arguments_that_are_not_given_keep_their_defaults():
    model = Optional()
    for graph in (trace(model), trace(model, images())):
        assert torch.equal(graph(images()), model(images()))
        assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["x"]
        with pytest.raises(TypeError):
            graph(images(), scale=2.0)
    graph = trace(model, (images(), torch.tensor(2.0)))
    assert torch.equal(graph(images(), torch.tensor(3.0)), model(images(), 3.0))


class AsksType(Functional):
    def forward(self, x):
        return super().forward(x * 3 if isinstance(x, torch.Tensor) else x)


class Catches(Functional):
    def forward(self, x):
        try:
            k = int(x.shape[-1])
        except Exception:
            k = 1
        return super().forward(x) * k


class Buffered(Functional):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return super().forward(x) * self.n


class Random(Functional):
    def forward(self, x):
        return super().forward(x) + torch.randn(1)


class PythonRandom(Functional):
    def forward(self, x):
        return super().forward(x) + random.random()


class Context(Functional):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class Accumulates(Functional):
    def forward(self, x):
        total = torch.zeros(1)
        total += super().forward(x).mean()
        return total


class NoGrad(Functional):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Appends(Functional):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(1)
        return super().forward(x) + len(self.seen)


class Private(Functional):
    def __init__(self):
        super().__init__()
        self._n = 0

    def forward(self, x):
        self._n += 1
        return super().forward(x) * self._n


class Nested(Functional):
    def __init__(self):
        super().__init__()
        self.seen = {"n": [0]}

    def forward(self, x):
        self.seen["n"][0] += 1
        return super().forward(x) * self.seen["n"][0]


class AsksMode(Functional):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


class OwnGenerator(Functional):
    def __init__(self):
        super().__init__()
        self.rng = random.Random(0)

    def forward(self, x):
        return super().forward(x) * self.rng.random()


class Called(Functional):
    def __call__(self, x):
        return super().__call__(x) + 1


FROZEN = (
    AsksType, Catches, Buffered, Random, PythonRandom, Context, Accumulates, NoGrad, Appends,
    Private, Nested, AsksMode, OwnGenerator, Called,
)  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("given", [None, images()], ids=["no inputs", "inputs"])
@pytest.mark.parametrize("kind", FROZEN)
def test_what_a_graph_would_freeze_is_a_leaf(kind, given, inside, capfd):
    model = nn.Sequential(conv(), kind()) if inside else kind()
    before = copy.deepcopy(model.state_dict())
    random_state = random.getstate(), torch.get_rng_state()
    graph = trace(model, given)
    assert random_state[0] == random.getstate()
    assert torch.equal(random_state[1], torch.get_rng_state())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    twin = copy.deepcopy(model)
    for seed in range(3):
        outputs = []
        for network in (graph, twin):
            torch.manual_seed(seed), random.seed(seed)
            outputs.append(network(images(seed)))
        assert torch.equal(*outputs)
        assert outputs[0].requires_grad == outputs[1].requires_grad
    if inside and kind not in (Called, OwnGenerator):  # entered; of a generator nothing is known
        assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert capfd.readouterr() == ("", "")


def test_hooks_of_the_root_run():
    model = nn.Sequential(conv())
    model.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(trace(model)(images()), model(images()))


def test_example_inputs_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="example_inputs must be what the model takes"):
        trace(nn.Sequential(conv()), images(channels=3))


def test_a_plan_of_an_untraced_graph_applies_to_it():
    graph = trace(Untraceable())
    result = FactorizeConvs(convfactor.plan(graph, images(), **OPTIONS))(graph)
    assert result.modified
    torch.testing.assert_close(result.graph_module(images()), graph(images()), rtol=1e-3, atol=1e-4)
