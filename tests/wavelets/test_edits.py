"""Whatever is done to the filters of a transform counts, and so do all of torch's transforms."""

import copy
import gc
import io

import pytest
import pytorch_wavelets as reference
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from convfactor.wavelets import DTCWTForward, DTCWTInverse, prepared

# torch scripts its own rules of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

KINDS = ("forward", "inverse")
SIZES = [16, 64]  # whole matrices; tiles


def make(kind, original=False, **options):
    """A transform, or that of pytorch_wavelets."""
    names = {"forward": "DTCWTForward", "inverse": "DTCWTInverse"}
    if original:
        return getattr(reference, names[kind])(**options)
    return {"forward": DTCWTForward, "inverse": DTCWTInverse}[kind](**options)


def inputs(kind, size=16, batch=2):
    torch.manual_seed(0)
    image = torch.randn(batch, 2, size, size)
    return image if kind == "forward" else reference.DTCWTForward(J=3)(image)


def flat(output):
    """All results in one vector."""
    if isinstance(output, torch.Tensor):
        return output.flatten()
    return torch.cat([flat(one) for one in output])


def assert_like_the_original(module, kind, size=16):
    """The results are those that pytorch_wavelets has with the module's filters."""
    original = make(kind, original=True).to(module.state_dict()[module._names[0]].dtype)
    original.load_state_dict({name: taps.detach() for name, taps in module.state_dict().items()})
    given = inputs(kind, size)
    expected, result = flat(original(given)), flat(module(given))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


EDITS = {
    "in place": lambda taps: taps.mul_(1.5),
    "one tap": lambda taps: taps[0, 0, 0].fill_(0.7),
    "through data": lambda taps: taps.data.mul_(1.5),
    "through numpy": lambda taps: taps.numpy().__imul__(1.5),
    "copied over": lambda taps: taps.copy_(torch.randn_like(taps)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_filters_edited_after_a_call(kind, edit, size):
    module = make(kind)
    for name in module._names:
        before = flat(module(inputs(kind, size)))
        EDITS[edit](getattr(module, name))
        assert (flat(module(inputs(kind, size))) - before).norm() > 1e-3 * before.norm()
        assert_like_the_original(module, kind, size)


@pytest.mark.parametrize("kind", KINDS)
def test_filters_of_one_module_leave_others_alone(kind):
    one, other = make(kind), make(kind)
    expected = flat(other(inputs(kind)))
    flat(one(inputs(kind)))
    getattr(one, one._names[0]).zero_()
    assert torch.equal(flat(other(inputs(kind))), expected)
    assert flat(one(inputs(kind))).norm() < expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_moved_and_loaded_filters(kind):
    module = make(kind)
    flat(module(inputs(kind)))
    module.half().float()  # the filters are those of half precision now
    assert_like_the_original(module, kind)
    state = {name: torch.randn_like(taps) for name, taps in module.state_dict().items()}
    module.load_state_dict(state)
    assert_like_the_original(module, kind)
    module.load_state_dict(make(kind).state_dict(), assign=True)
    assert torch.equal(flat(module(inputs(kind))), flat(make(kind)(inputs(kind))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_put_in_place_of_a_filter(kind):
    module, name = make(kind), make(kind)._names[1]
    flat(module(inputs(kind)))
    setattr(module, name, torch.randn_like(getattr(module, name)))
    assert_like_the_original(module, kind)
    setattr(module, name, torch.randn(1, 1, 9, 1))  # of another length as well
    original = make(kind, original=True)
    setattr(original, name, getattr(module, name))
    expected = flat(original(inputs(kind)))
    torch.testing.assert_close(flat(module(inputs(kind))), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("band", [False, True])
def test_gradients_of_trainable_filters(kind, size, band):
    options = {"biort": "near_sym_b_bp", "qshift": "qshift_b_bp"} if band else {}
    module = make(kind, **options).double()
    given = inputs(kind, size)
    given = (
        given.double() if kind == "forward" else (given[0].double(), [b.double() for b in given[1]])
    )
    module.retile(module.sizes._replace(tile=4, whole=6))  # both ways
    leaves = []
    for name in module._names:
        setattr(module, name, nn.Parameter(getattr(module, name)))
        leaves.append(getattr(module, name))

    def run(*taps):
        return flat(functional_call(module, dict(zip(module._names, taps, strict=True)), (given,)))

    assert gradcheck(run, leaves, fast_mode=True)
    (direct,) = torch.autograd.grad(flat(module(given)).square().sum(), leaves[:1])
    (called,) = torch.autograd.grad(run(*leaves).square().sum(), leaves[:1])
    assert direct.norm() > 0
    torch.testing.assert_close(direct, called)


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_can_be_learned(kind):
    teacher, module = make(kind), make(kind)
    name = module._names[0]
    getattr(teacher, name).mul_(0.8)
    setattr(module, name, nn.Parameter(getattr(module, name)))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (flat(module(inputs(kind))) - flat(teacher(inputs(kind)))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
    assert list(module.state_dict().keys() - teacher.state_dict().keys()) == []
    with torch.no_grad():  # the step after the last call counts, too
        assert_like_the_original(module, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_parametrized_and_frozen_filters(kind):
    class Double(nn.Module):
        def forward(self, taps):
            return 2 * taps

    module = make(kind)
    name = module._names[0]
    plain = flat(module(inputs(kind)))
    parametrize.register_parametrization(module, name, Double())
    doubled = make(kind)
    getattr(doubled, name).mul_(2)
    result = flat(module(inputs(kind)))
    assert (result - plain).norm() > 0.1 * plain.norm()
    torch.testing.assert_close(result, flat(doubled(inputs(kind))), rtol=0, atol=1e-5)
    frozen = make(kind)
    setattr(frozen, name, nn.Parameter(getattr(frozen, name), requires_grad=False))
    assert torch.equal(flat(frozen(inputs(kind))), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_before_and_after(kind):
    with torch.inference_mode():
        module = make(kind)
        expected = flat(module(inputs(kind))).clone()
    given = inputs(kind)
    leaf = (given if kind == "forward" else given[0]).requires_grad_()
    result = flat(module(given))
    assert torch.equal(result.detach(), expected)
    assert torch.autograd.grad(result.sum(), leaf)[0].norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_copies_pickles_and_averages(kind):
    module = make(kind, **({"J": 3} if kind == "inverse" else {}))
    getattr(module, module._names[0]).mul_(1.5)
    expected = flat(module(inputs(kind)))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    loaded_state = make(kind)
    loaded_state.load_state_dict(copy.deepcopy(module.state_dict()))
    averaged = AveragedModel(module, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(module)
    for other in (copy.deepcopy(module), copy.copy(module), loaded, loaded_state):
        assert torch.equal(flat(other(inputs(kind))), expected)
    torch.testing.assert_close(flat(averaged(inputs(kind))), expected)
    copied = copy.deepcopy(module)
    getattr(copied, module._names[0]).zero_()
    assert torch.equal(flat(module(inputs(kind))), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_changed_later_count(kind):
    module, other = make(kind), make(kind, mode="zero")
    flat(module(inputs(kind)))
    module.mode = "zero"
    assert torch.equal(flat(module(inputs(kind))), flat(other(inputs(kind))))
    module.mode = "mirror"
    with pytest.raises(ValueError, match="mode must be one of"):
        module(inputs(kind))


def test_the_number_of_levels_changed_later_is_refused_where_answers_are_missing():
    module = DTCWTForward(J=2)
    module.J = 3
    with pytest.raises(ValueError, match="needs one answer for each of 3 levels, got 2"):
        module(torch.randn(1, 1, 8, 8))


def tensors(kind, batch=2):
    given = inputs(kind, batch=batch)
    return (given,) if kind == "forward" else (given[0], *given[1])


def call(module, kind, *parts):
    return flat(module(parts[0] if kind == "forward" else (parts[0], list(parts[1:]))))


@pytest.mark.parametrize("in_dim", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind, in_dim):
    module = make(kind)
    many = [torch.stack([one, 2 * one.flip(0), one - 1], dim=in_dim) for one in tensors(kind)]
    result = vmap(lambda *parts: call(module, kind, *parts), in_dims=in_dim)(*many)
    for index in range(3):
        expected = call(module, kind, *(one.select(in_dim, index) for one in many))
        torch.testing.assert_close(result[index], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_one_argument_and_over_filters(kind):
    module, given = make(kind), tensors(kind)
    dims = (0, *(None for _ in given[1:]))
    many = (torch.stack([given[0], 3 * given[0]]), *given[1:])
    result = vmap(lambda *parts: call(module, kind, *parts), in_dims=dims)(*many)
    torch.testing.assert_close(result[1], call(module, kind, 3 * given[0], *given[1:]))
    name = module._names[0]
    taps = getattr(module, name)

    def filtered(taps):
        whole = given[0] if kind == "forward" else (given[0], list(given[1:]))
        return flat(functional_call(module, {name: taps}, (whole,)))

    result = vmap(filtered)(torch.stack([taps, 2 * taps]))
    torch.testing.assert_close(result[0], call(module, kind, *given))
    torch.testing.assert_close(result[1], filtered(2 * taps))


@pytest.mark.parametrize("kind", KINDS)
def test_jvp_is_the_transform_of_the_tangent(kind):
    """The transform is linear."""
    module, given = make(kind), tensors(kind)
    tangents = tuple(torch.randn_like(one) for one in given)

    def run(*parts):
        return call(module, kind, *parts)

    value, tangent = jvp(run, given, tangents)
    torch.testing.assert_close(value, run(*given))
    torch.testing.assert_close(tangent, run(*tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(given, tangents, strict=True)]
        again = forward_ad.unpack_dual(run(*duals)).tangent
        only_first = forward_ad.unpack_dual(run(duals[0], *given[1:])).tangent
    torch.testing.assert_close(again, run(*tangents))
    zeros = [torch.zeros_like(one) for one in given[1:]]
    torch.testing.assert_close(only_first, run(tangents[0], *zeros))


@pytest.mark.parametrize("kind", KINDS)
def test_jvp_of_filters(kind):
    module, given = make(kind).double(), [one.double() for one in tensors(kind)]
    name = module._names[0]
    taps = getattr(module, name)
    step = torch.randn_like(taps)

    def run(taps):
        whole = given[0] if kind == "forward" else (given[0], list(given[1:]))
        return flat(functional_call(module, {name: taps}, (whole,)))

    expected = (run(taps + 1e-6 * step) - run(taps - 1e-6 * step)) / 2e-6
    _, tangent = jvp(run, (taps,), (step,))
    torch.testing.assert_close(tangent, expected, rtol=0, atol=1e-7)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(taps, step))).tangent
    torch.testing.assert_close(tangent, expected, rtol=0, atol=1e-7)
    assert torch.equal(run(taps), call(module, kind, *given))


@pytest.mark.parametrize("kind", KINDS)
def test_grad_and_nested_transforms(kind):
    module, given = make(kind), tensors(kind)

    def loss(first):
        return call(module, kind, first, *given[1:]).square().sum()

    leaf = given[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(grad(loss)(given[0]), expected)
    many = torch.stack([given[0], 2 * given[0]])
    torch.testing.assert_close(vmap(grad(loss))(many)[0], expected)
    inner = grad(lambda many: vmap(loss)(many).sum())(many)
    torch.testing.assert_close(inner[0], expected)
    direction = torch.randn_like(given[0])
    _, curvature = jvp(grad(loss), (given[0],), (direction,))
    back = grad(lambda one: (grad(loss)(one) * direction).sum())(given[0])
    torch.testing.assert_close(curvature, back)


def test_jacobian_is_the_transform():
    module = DTCWTForward(J=1)
    image = torch.randn(1, 1, 4, 6)
    jacobian = jacfwd(lambda image: module(image)[0])(image).reshape(24, 24)
    torch.testing.assert_close(jacobian @ image.flatten(), module(image)[0].flatten())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes of images become constants
def test_jit_trace(kind, size):
    module = make(kind)
    given = inputs(kind, size)
    expected = flat(module(given))
    traced = torch.jit.trace(module, (given,))
    torch.testing.assert_close(flat(traced(given)), expected, rtol=0, atol=1e-5)
    more = inputs(kind, size, batch=5)
    torch.testing.assert_close(flat(traced(more)), flat(module(more)), rtol=0, atol=1e-5)
    getattr(module, module._names[0]).mul_(2)  # the trace holds the same filters
    torch.testing.assert_close(flat(traced(given)), flat(module(given)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_make_fx_leaves_nothing_behind(kind):
    module, given = make(kind), tensors(kind)
    graph = make_fx(lambda *parts: call(module, kind, *parts))(*given)
    torch.testing.assert_close(graph(*given), call(module, kind, *given))
    getattr(module, module._names[0]).mul_(2)
    assert type(call(module, kind, *given)) is torch.Tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_value", [True, False], ids=["cpu", "other device"])
def test_what_is_kept_goes_with_the_transform(kind, by_value, monkeypatch):
    monkeypatch.setattr(prepared, "_by_value", lambda device: by_value)
    gc.collect()
    given, before = inputs(kind), len(prepared._kept)
    module = make(kind)
    with torch.no_grad():
        first = flat(module(given))
        assert len(prepared._kept) == before + 1
        assert torch.equal(flat(module(given)), first)
        getattr(module, module._names[-1]).mul_(1.5)
    assert_like_the_original(module, kind)
    del module
    gc.collect()
    assert len(prepared._kept) == before
