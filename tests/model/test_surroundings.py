"""What scales the channels around a convolution, and that errors are judged by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import conv, images
from torch import Tensor, nn

import convfactor
from convfactor.conv.accuracy import ErrorMeter
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.planning.pupil import HIDDEN, Pupil
from convfactor.plans.validation import check_plan

OPTIONS = {"objective": "macs", "structures": "cascade"}
GAMMA = torch.tensor([0.5, -2.0, 1e-2])


def statistics(norm: nn.Module) -> nn.Module:
    """Give a normalization statistics and weights that matter."""
    for index, value in enumerate((*norm.parameters(), *norm.buffers())):
        if value.is_floating_point():
            value.data = torch.linspace(0.3, 1.7, value.numel()).roll(index)
    return norm.eval()


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d, with inputs large enough to pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return F.relu(y + 1e3)


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.linspace(0.3, 1.7, 3).roll(len(name)))

    def forward(self, x: Tensor) -> Tensor:
        weight, variance = self.weight.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (variance + 1e-5).rsqrt()
        mean = self.running_mean.reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - mean * scale)


class Renamed(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


class Uses(nn.Module):
    """A convolution and what is done with it."""

    def __init__(self, use, after=None, layer=None):
        super().__init__()
        self.use = use
        self.layer = conv(out=3) if layer is None else layer
        self.after = nn.Identity() if after is None else after
        self.gamma = nn.Parameter(GAMMA.clone())
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("plane", torch.ones(12, 12))
        self.register_buffer("rows", torch.stack([GAMMA, GAMMA + 1]))

    def forward(self, x):
        return self.use(self, x)


def site(model: nn.Module, x: Tensor | None = None) -> Site:
    (found,) = find(model.eval(), ModelInputs.read(images() if x is None else x))
    assert isinstance(found, Site)
    return found


def felt(model: nn.Module, x: Tensor) -> Tensor:
    """How much the model feels a change of each channel of its convolution, beside the largest."""
    changes = []
    for channel in range(3):

        def moved(module, args, output, channel=channel):
            step = torch.zeros(3, dtype=output.dtype)
            step[channel] = 1
            axis = output.dim() - len(model.layer.kernel_size) - 1
            return output + step.view(-1, *[1] * (output.dim() - axis - 1))

        with torch.no_grad():
            before = model(x)
            hook = model.layer.register_forward_hook(moved)
            changes.append((model(x) - before).norm())
            hook.remove()
    return torch.stack(changes) / max(changes)


def scaled_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.mul_(m.gamma.view(-1, 1, 1))
    y += 1
    return y


SCALED = {
    "product": Uses(lambda m, x: m.layer(x) * m.gamma.view(1, -1, 1, 1)),
    "from the left": Uses(lambda m, x: m.gamma[:, None, None] * m.layer(x)),
    "torch.mul": Uses(lambda m, x: torch.mul(m.layer(x), m.gamma[:, None, None]) * 3),
    "in place": Uses(scaled_in_place),
    "quotient": Uses(lambda m, x: m.layer(x) / m.gamma[:, None, None]),
    "shifted first": Uses(
        lambda m, x: (1 - (m.layer(x) + m.shift[:, None, None])) * m.gamma.exp().view(-1, 1, 1)
    ),
    "twice": Uses(
        lambda m, x: m.after(m.layer(x) * m.gamma[:, None, None]), statistics(nn.BatchNorm2d(3))
    ),
    "then read twice": Uses(
        lambda m, x: [y := m.layer(x) * m.gamma[:, None, None], (y + 20).relu() + y][1]
    ),
    "frozen": Uses(lambda m, x: m.after(m.layer(x)), Frozen()),
    "normalized and activated": Uses(
        lambda m, x: m.after(m.layer(x)), statistics(Activated(3)).double()
    ).double(),
    "subclass": Uses(
        lambda m, x: m.after(m.layer(x)),
        statistics(nn.BatchNorm2d(3)),
        Renamed(2, 3, 5, padding=2),
    ),
    "functional normalization": Uses(
        lambda m, x: F.batch_norm(m.layer(x), m.shift, m.shift.square(), m.gamma, None)
    ),
    "of aten": Uses(
        lambda m, x: torch.ops.aten.batch_norm.default(
            m.layer(x), m.gamma, None, m.shift, m.shift, False, 0.1, 1e-5, False
        )
    ),
    "of aten, decomposed": Uses(
        lambda m, x: torch.ops.aten._native_batch_norm_legit_no_training.default(
            m.layer(x), m.gamma, None, m.shift, m.shift, 0.1, 1e-5
        )[0]
    ),
}


@pytest.mark.parametrize("model", SCALED.values(), ids=list(SCALED))
def test_an_output_counts_as_much_as_is_felt_of_it(model):
    x = images(count=2).to(model.gamma.dtype)
    found = site(model, x)
    assert found.subject.norm == ""
    torch.testing.assert_close(
        found.scales.outputs.float(), felt(model, x).float(), rtol=2e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 5), (2, 2, 12)),
        (nn.ConvTranspose2d(2, 3, 9, 3, 4), (1, 2, 6, 6)),
        (conv(out=3), (2, 12, 12)),
    ],
    ids=["sequences", "transposed", "one image"],
)
def test_other_layers(layer, shape):
    sides = (1,) * len(layer.kernel_size)
    model = Uses(lambda m, x: m.layer(x) * m.gamma.view(-1, *sides), layer=layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = site(model, x)
    expected = felt(model, x).repeat_interleave(found.form.phases)
    torch.testing.assert_close(found.scales.outputs.float(), expected)


def kept(m: nn.Module, x: Tensor) -> Tensor:
    m.last = m.layer(x)
    return m.last * m.gamma[:, None, None]


def written(m: nn.Module, x: Tensor) -> Tensor:
    m.shift[:] = x.mean((0, 2, 3)).repeat(2)[:3]
    return m.layer(x) * m.shift[:, None, None]


UNKNOWN = {
    "nothing": lambda m, x: m.layer(x),
    "read elsewhere": lambda m, x: [y := m.layer(x), y * m.gamma[:, None, None] + y][1],
    "returned": lambda m, x: (y := m.layer(x), y * m.gamma[:, None, None]),
    "kept": kept,
    "activated first": lambda m, x: m.layer(x).relu() * m.gamma[:, None, None],
    "of the data": lambda m, x: m.layer(x) * m.layer(x).mean((2, 3), keepdim=True),
    "of the input": lambda m, x: m.layer(x) * (m.gamma[:, None, None] + x.mean()),
    "of columns": lambda m, x: m.layer(x)[..., :3] * m.gamma,
    "columns alone": lambda m, x: m.layer(F.pad(x, (-9, 0))) * m.gamma,
    "of pixels": lambda m, x: m.layer(x) * m.plane,
    "same for all": lambda m, x: m.layer(x) * 3,
    "the dividend": lambda m, x: m.gamma[:, None, None] / (m.layer(x) + 9),
    "another each time": lambda m, x: (
        m.layer(x) * m.gamma[:, None, None] + m.layer(x) * m.shift[:, None, None]
    ),
    "of the batch": lambda m, x: F.batch_norm(m.layer(x), None, None, m.gamma, None, True),
    "written by the forward": written,
    "taken out by an index": lambda m, x: (
        m.layer(x) * torch.stack([m.gamma, m.shift])[1][:, None, None]
    ),
    "drawn": lambda m, x: m.layer(x) * torch.rand_like(m.gamma)[:, None, None],
}


@pytest.mark.parametrize("use", UNKNOWN.values(), ids=list(UNKNOWN))
def test_what_is_not_known_counts_the_same(use):
    assert site(Uses(use)).scales.outputs is None


def noisy(gamma: Tensor) -> Uses:
    """Six noisy channels, of which a constant leaves two."""
    torch.manual_seed(0)
    layer = conv(out=6)
    with torch.no_grad():
        layer.weight[2:] = torch.randn_like(layer.weight[2:])
    model = Uses(lambda m, x: m.layer(x) * m.gamma[:, None, None], layer=layer)
    model.gamma = nn.Parameter(gamma)
    return model.eval()


def test_the_error_of_white_noise_is_that_of_the_scaled_output(tmp_path):
    model = noisy(torch.tensor([1.0, 1.0, *[1e-4] * 4]))
    assert not convfactor.plan(nn.Sequential(model.layer), images(), 0.01, **OPTIONS).replaced
    fast, plan = convfactor.optimize(model, images(), 0.01, **OPTIONS)
    assert plan.replaced
    (entry,) = plan.entries
    gamma = model.gamma.detach().double()[:, None, None, None]
    true = gamma * model.layer.weight.detach().double()
    found = gamma * fast.layer.composed().detach().double()
    error = float((found - true).norm() / true.norm())
    assert entry.decision.error == pytest.approx(error, rel=1e-3, abs=1e-7)
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-3, atol=5e-3)
    plan.save(tmp_path)
    loaded = convfactor.Plan.load(tmp_path)
    assert torch.equal(loaded.entries[0].decision.gains, entry.decision.gains)
    assert torch.equal(loaded.apply(model)(images()), fast(images()))
    again = convfactor.Plan.load(tmp_path)
    model.gamma.data[3] = 1.0
    with pytest.raises(convfactor.PlanMismatchError, match="or gamma differs"):
        again.apply(model)
    for gains in (torch.ones(1).double(), -torch.ones(6).double(), torch.ones(6)):
        forged = replace(entry, decision=replace(entry.decision, gains=gains))
        with pytest.raises(ValueError, match=r"gains must|tensors must be float64"):
            check_plan(replace(plan, entries=(forged,)))


def test_the_error_on_data_is_that_of_the_scaled_output():
    model = noisy(torch.tensor([1.0, 0.7, *[1e-2] * 4]))
    batches = [images(seed, count=4, size=16) for seed in range(4)]
    fast, plan = convfactor.optimize(model, images(), 0.05, calibration=batches, **OPTIONS)
    (entry,) = plan.entries
    found = []
    for batch in batches:
        meter = ErrorMeter(6)
        with torch.no_grad():
            meter.add(model(batch), fast(batch))
        found.append(meter.errors().pooled)
    assert min(found) <= entry.decision.errors.pooled <= max(found)
    assert entry.decision.errors.pooled == pytest.approx(max(found), rel=0.2)


def test_training_compares_the_scaled_outputs():
    """Which are those of the model here, so that their distance counts a second time."""
    model = noisy(torch.tensor([1.0, 1.0, *[1e-3] * 4]))
    plan = convfactor.plan(model, images(), 0.1, **OPTIONS)
    pupil = Pupil.of(model, plan)
    batch = images(1, count=2)
    pupil.calibrate([ModelInputs.read(batch)])
    with torch.no_grad():
        true, got = model(batch), plan.apply(model)(batch)
    expected = (1 + HIDDEN) * (got - true).square().mean() / true.var(correction=0)
    torch.testing.assert_close(pupil.loss(ModelInputs.read(batch)).detach(), expected)


class Before(nn.Module):
    """Something before a convolution."""

    def __init__(self, before, use=lambda m, x: m.layer(m.before(x))):
        super().__init__()
        self.use, self.before = use, before
        self.layer = conv(padding=0)
        self.gamma = nn.Parameter(torch.tensor([-0.1, 2.0]))

    def forward(self, x):
        return self.use(self, x)


def unshifted() -> nn.Module:
    norm = statistics(nn.BatchNorm2d(2))
    norm.bias.data.zero_()
    return norm


@pytest.mark.parametrize(
    "model",
    [
        Before(unshifted()),
        Before(unshifted(), lambda m, x: m.layer(m.before(x) * m.gamma[:, None, None])),
    ],
    ids=["normalization", "both"],
)
def test_without_data_the_scales_of_the_input_count(model):
    """Against the variances of a large sample with the statistics of the normalization."""
    norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), None)
    noise = torch.randn(64, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    if norm is not None:
        noise = noise * norm.running_var.sqrt()[:, None, None] + norm.running_mean[:, None, None]
    read = []
    hook = model.layer.register_forward_pre_hook(lambda m, args: read.append(args[0].detach()))
    model.eval()(noise)
    hook.remove()
    size = read[0].square().mean((0, 2, 3)).sqrt()
    found = site(model).scales.inputs
    torch.testing.assert_close(found.float(), size / size.max(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: m.layer(x * m.gamma[:, None, None]),
        lambda m, x: m.layer(x * m.gamma[:, None, None] + m.gamma[:, None, None]),
        lambda m, x: m.layer((x * m.gamma[:, None, None]).relu()),
        lambda m, x: m.layer(F.relu(x * m.gamma[:, None, None], inplace=True)),
        lambda m, x: m.layer(x * m.gamma[:, None, None]) + m.layer(x),
        lambda m, x: m.layer((x * m.gamma[:, None, None])[0]),
    ],
    ids=["of unknown size", "shifted", "activated", "activated in place", "once", "one image"],
)
def test_other_inputs_are_white(use):
    assert site(Before(None, use)).scales.inputs is None


def test_the_scales_of_the_input_do_not_count_beside_data():
    torch.manual_seed(0)
    model = Before(unshifted()).eval()
    model.layer.weight.data = torch.randn_like(model.layer.weight)
    batches = [images(seed, count=2) for seed in range(4)]
    plain = nn.Sequential(model.layer)
    moved = [model.before(batch).detach() for batch in batches]
    plans = [
        convfactor.plan(one, data[0], 0.9, calibration=data, **OPTIONS)
        for one, data in ((model, batches), (plain, moved))
    ]
    errors = [plan.entries[0].decision.tried.error for plan in plans]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
