from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import Functional, Untraceable, conv, images
from torch import nn
from torch.nn.utils import parametrizations

from convfactor.conv.layer import CascadeConv2d
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import InputShape, Site, TurnedAway
from convfactor.model.watching import watch


def look(model: nn.Module, inputs=None, **options):
    return find(model, ModelInputs.read(images() if inputs is None else inputs), **options)


def only(model: nn.Module, inputs=None, **options):
    (site,) = look(model, inputs, **options)
    return site


def why(found) -> str:
    assert isinstance(found, TurnedAway)
    return found.reason.text


class Apply(nn.Module):
    """Runs a function of (module, input) as its forward."""

    def __init__(self, forward, **children) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.run(self, x)


def test_a_module():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(conv()))
    site = only(model)
    assert (site.subject.name, site.kind, site.owners) == ("1.0", "module", ("1.0",))
    assert site.weight is model[1][0].weight
    assert site.subject.weight_name == "1.0.weight"
    assert isinstance(site, Site)
    assert dict(site.subject.shapes) == {InputShape((1, 2, 12, 12), False): 1}


def test_the_root_itself():
    site = only(conv())
    assert (site.subject.name, site.owners, site.subject.weight_name) == ("Conv2d", ("",), "weight")


@pytest.mark.parametrize("name", ["", "deep.inner"])
def test_a_functional_call(name):
    model: nn.Module = Functional()
    for part in reversed([part for part in name.split(".") if part]):
        model = nn.ModuleDict({part: model})
        model.forward = lambda x, child=model[part]: child(x)
    site = only(model)
    assert (site.kind, site.owners) == ("functional", (name,))
    assert site.subject.weight_name == f"{name}.kernel".lstrip(".")
    assert site.geometry.padding == (2, 2, 2, 2)
    assert site.bias is model.get_submodule(name).shift


def test_a_functional_call_with_a_buffer_and_keywords():
    class Filter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("taps", torch.ones(2, 1, 7, 5))

        def forward(self, x):
            return F.conv2d(groups=2, weight=self.taps, input=x, stride=(2, 1), padding="valid")

    site = only(Filter())
    assert (site.subject.name, site.geometry.groups, site.geometry.stride) == ("taps", 2, (2, 1))
    assert site.bias is None


def test_two_shapes_of_one_module_are_counted():
    model = Apply(lambda m, x: m.conv(x).sum() + m.conv(m.conv(x)[..., :9]).sum(), conv=conv())
    site = only(model, images().contiguous(memory_format=torch.channels_last))
    assert sum(dict(site.subject.shapes).values()) == 3
    assert dict(site.subject.shapes)[InputShape((1, 2, 12, 12), True)] == 2


def test_one_module_under_two_names_is_one_site():
    layer = conv()
    site = only(Apply(lambda m, x: m.a(m.b(x)), a=layer, b=layer))
    assert site.owners == ("a", "b")
    assert sum(dict(site.subject.shapes).values()) == 2


def test_one_functional_module_under_two_names_is_one_site():
    layer = Functional()
    site = only(Apply(lambda m, x: m.a(m.b(x)), a=layer, b=layer))
    assert site.owners == ("a", "b")


def test_tied_weights_are_one_site_if_all_else_is_equal():
    first, second, wider = conv(), conv(), conv(padding=1)
    second.weight, second.bias = first.weight, first.bias
    wider.weight, wider.bias = first.weight, first.bias
    sites = look(nn.Sequential(first, second, wider))
    assert [site.subject.owners for site in sites] == [("0", "1"), ("2",)]


class Twice(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.weight + 0), self.weight + 0)


class Drawn(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight + 0).relu()


def hooked(layer):
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return layer


def patched():
    layer = conv()
    layer.forward = lambda x: F.relu(x)
    return layer


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: hooked(parametrizations.weight_norm(conv())), "has hooks"),
        (patched, "forward calls 0 convolutions"),
        (lambda: Twice(2, 2, 5), "Twice.*forward calls 2 convolutions"),
        (lambda: Drawn(2, 2, 5), "Drawn.*computes more than its convolution"),
        (lambda: nn.ConvTranspose2d(2, 2, 5, 2, dilation=3), "stride and dilation"),
        (lambda: nn.ConvTranspose2d(2, 2, 5, padding=5), "padded by more than its kernel"),
        (lambda: nn.LazyConv2d(2, 5), "lazy"),
        (lambda: torch.jit.script(conv()), "TorchScript"),
        (lambda: torch.jit.script(nn.Sequential(conv())), "TorchScript"),
    ],
)
def test_what_a_cascade_can_not_stand_in_for_is_kept(make, reason):
    site = only(nn.Sequential(make()))
    assert site.subject.kernel_size == (5, 5)
    assert re.search(reason, why(site))


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_other_dimensions_are_listed_as_kept(kind):
    site = only(nn.Sequential(kind(2, 2, 5)), torch.zeros(1, 2, 6, 6, 6))
    assert site.subject.geometry is None
    assert "3-D" in why(site)
    assert "nn.Conv2d of the frames" in why(site)


def test_a_functional_3d_call_is_kept_with_the_way_out():
    model = Apply(lambda m, x: F.conv3d(x, m.kernel))
    model.kernel = nn.Parameter(torch.ones(2, 2, 5, 5, 5))
    site = only(model, torch.zeros(1, 2, 6, 6, 6))
    assert site.reason.short == "a 3-D convolution"
    assert "nn.Conv1d of the times" in why(site)


class Halved(nn.Conv2d):
    """Computes its weight."""

    def forward(self, x):
        return F.conv2d(x, self.weight / 2, self.bias)


def halved():
    return Halved(2, 2, 5), ("weight",)


def parametrized():
    return nn.utils.parametrizations.weight_norm(conv()), ("parametrizations", "original1")


def hooked_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv()), ("weight_v",)


@pytest.mark.parametrize("make", [halved, parametrized, hooked_norm])
def test_computed_weights_that_share_what_they_are_computed_from_are_kept(make):
    (first, path), (second, _) = make(), make()
    model = nn.Sequential(first, second).eval()
    assert [type(site) for site in look(model)] == [Site, Site]
    holders = [
        layer.parametrizations.weight if len(path) > 1 else layer for layer in (first, second)
    ]
    setattr(holders[1], path[-1], getattr(holders[0], path[-1]))
    sites = look(model)
    assert [site.reason.code for site in sites] == ["shared", "shared"]
    assert [name in why(site) for site, name in zip(sites, "10", strict=True)] == [True, True]


def test_a_computed_weight_under_two_names_is_one_site():
    layer, _ = parametrized()
    assert isinstance(only(nn.Sequential(layer, layer)), Site)


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_double_and_complex():
    assert isinstance(only(conv().double(), images().double()), Site)
    assert "complex64" in why(only(conv().to(torch.complex64), images().to(torch.complex64)))
    model = Functional().to(torch.complex64)
    assert "complex64" in why(only(model, images().to(torch.complex64)))


def test_control_flow_containers_and_keywords():
    model = Apply(
        lambda m, x: m.parts["b"](input=m.parts["a"](x)) if x.sum() > 0 else x,
        parts=nn.ModuleDict({"a": conv(), "b": conv(seed=1)}),
        rest=nn.ModuleList([conv(seed=2)]),
    )
    sites = look(model)
    assert [site.subject.name for site in sites] == ["parts.a", "parts.b", "rest.0"]
    assert [type(site) for site in sites[:2]] == [Site, Site]
    assert why(sites[2]) == "not called with the example inputs"


def test_the_order_is_that_of_the_calls():
    model = Apply(
        lambda m, x: m.first(m.own(m.last(x))), first=conv(), own=Functional(), last=conv()
    )
    assert [site.subject.name for site in look(model)] == ["last", "own.kernel", "first"]


def test_a_computed_weight_is_kept_and_listed_once():
    def run(module, x):
        for _ in range(3):
            x = F.conv2d(x, torch.ones(2, 2, 5, 5) / 50, padding=2)
        return x

    site = only(Apply(run))
    assert site.subject.name == "computed"
    assert "computed" in why(site)


def test_hooks_do_not_mind_a_functional_call_whose_forward_stays():
    model = Functional()
    model.register_forward_hook(lambda module, args, output: output + 1)
    assert isinstance(only(model), Site)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: F.conv_transpose2d(x, m.conv.weight, padding=2),
        lambda m, x: x * m.conv.bias.sum(),
        lambda m, x: torch.cat([x.flatten(), m.conv.weight.flatten()]),
    ],
)
def test_a_layer_whose_weight_is_read_elsewhere_is_kept(use):
    model = Apply(lambda m, x: use(m, m.conv(x)), conv=conv())
    assert "used outside it, in the model" in why(look(model)[0])


@pytest.mark.parametrize("read", ["dtype", "device", "shape", "requires_grad", "ndim"])
@pytest.mark.parametrize("make", [conv, Functional])
def test_asking_about_a_weight_is_no_use(read, make):
    def run(model, x):
        assert getattr(next(model.parameters()), read) is not None
        return model.conv(x)

    assert isinstance(only(Apply(run, conv=make())), Site)


@pytest.mark.parametrize("read", ["data", "mT", "sum", "detach"])
def test_reading_the_values_of_a_weight_is_one(read):
    def run(model, x):
        weight = model.conv.kernel
        if read in ("sum", "detach"):
            return model.conv(x) + getattr(weight, read)().mean()
        return model.conv(x) + (weight.data.sum() if read == "data" else weight.mT.sum())

    assert "also used outside it" in why(only(Apply(run, conv=Functional())))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: torch.conv2d(x, w, b, padding=2),
        lambda x, w, b: torch.conv2d(x, w, b, padding="same"),
        lambda x, w, b: torch.convolution(x, w, b, (1, 1), (2, 2), (1, 1), False, (0, 0), 1),
        lambda x, w, b: torch.ops.aten.conv2d(x, w, b, padding=[2, 2]),
        lambda x, w, b: torch.ops.aten.conv2d.default(x, w, b, [1, 1], [2, 2]),
        lambda x, w, b: torch.ops.aten.conv2d.padding(x, w, b, padding="same"),
        lambda x, w, b: torch.ops.aten.convolution(
            x, w, b, [1, 1], [2, 2], [1, 1], False, [0, 0], 1
        ),
    ],
)
def test_every_way_to_call_a_convolution_is_seen(call):
    def run(model, x):
        return call(x, model.own.kernel, model.own.shift)

    site = only(Apply(run, own=Functional()))
    assert (site.subject.name, type(site)) == ("own.kernel", Site)
    assert site.kind == "functional"
    assert site.geometry.padding == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0]), "computed"),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2, dilation=2), "stride and dilation"),
        (lambda x, w: torch.mkldnn_convolution(x, w, None, [2, 2], [1, 1], [1, 1], 1), "F.conv2d"),
    ],
)
def test_convolutions_that_no_cascade_stands_in_for_are_named(call, reason):
    model = Apply(lambda m, x: call(x, m.own.kernel), own=Functional())
    assert reason in why(only(model))


def test_a_weight_in_a_container_is_kept():
    model = nn.Sequential(nn.ReLU())
    model.kernel = nn.Parameter(conv().weight.detach())
    owner = Apply(lambda m, x: F.conv2d(m.part(x), m.part.kernel), part=model)
    assert "belongs to a Sequential" in why(only(owner))


def test_a_layer_in_a_plain_list_is_named():
    model = Apply(lambda m, x: m.layers[0](x))
    model.layers = [conv()]
    assert "plain list" in why(only(model))


def test_stages_of_a_cascade_are_not_sites():
    from convfactor import Stage
    from convfactor.conv.cascade import Cascade

    layer = conv()
    stages = (Stage(torch.ones(1, 2, 5, 1)), Stage(torch.ones(2, 1, 1, 5)))
    assert look(nn.Sequential(CascadeConv2d.from_conv(layer, Cascade(stages)))) == []


def test_small_kernels_and_selection():
    model = nn.Sequential(nn.Conv2d(2, 2, 4), conv(), conv(size=7))
    assert [site.subject.name for site in look(model)] == ["1", "2"]
    assert [site.subject.name for site in look(model, min_kernel_size=4)] == ["0", "1", "2"]
    asked = []

    def select(name, module):
        asked.append(module)
        return name == "2"

    left, taken = look(model, select=select)
    assert (why(left), type(taken)) == ("not selected", Site)
    assert asked == [model[1], model[2]]


@pytest.mark.parametrize(
    "inputs",
    [images()[0], (images(),), [images()], {"x": images()}, ((images(),),)],
    ids=["unbatched", "tuple", "list", "mapping", "nested"],
)
def test_ways_to_give_inputs_and_outputs(inputs):
    def forward(module, x):
        x = x[0] if isinstance(x, tuple) else x
        return {"out": (module.conv(x), [x, None])}

    read = ModelInputs.read(inputs)
    site = only(Apply(forward, conv=conv()), read)
    assert sum(dict(site.subject.shapes).values()) == 1
    assert len(read.tensors) == 1


def test_the_model_and_its_input_stay_as_they_were():
    model = Apply(lambda m, x: m.conv(x.mul_(2)), conv=conv())
    x = images()
    before = x.clone()
    look(model, x)
    assert torch.equal(x, before)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_hooks_go_away_when_the_model_fails():
    model = Apply(lambda m, x: m.conv(x).nonsense, conv=conv())
    with pytest.raises(AttributeError):
        look(model)
    assert not model.conv._forward_pre_hooks
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("make", [lambda: nn.Sequential(conv(), Functional()), Untraceable])
def test_watching_sees_every_call_and_its_input(make):
    model = make()
    sites = look(model)
    seen = []
    with watch(model, sites, lambda site, x: seen.append((site, x))), torch.no_grad():
        y = model(images(3))
        model(images(4))
    assert [site for site, _ in seen] == sites * 2
    assert torch.equal(seen[0][1], images(3))
    assert y.shape == images().shape
