from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from convfactor.conv.forms import PLAIN, of_module
from convfactor.model.effective import NotPlainError, effective, state_digest

SIZE = (2, 2, 11, 14)


class Standardized(nn.Conv2d):
    """As timm's StdConv2d."""

    def standard(self):
        return F.batch_norm(
            self.weight.flatten(1)[None], None, None, training=True, momentum=0.0
        ).view_as(self.weight)

    def forward(self, x):
        return F.conv2d(x, self.standard(), self.bias, self.stride, self.padding)


class Before(Standardized):
    """Pads by itself, in some mode."""

    def __init__(self, pads, mode="constant", **options):
        super().__init__(2, 3, 5, **options)
        self.pads, self.mode = pads, mode

    def forward(self, x):
        return super().forward(F.pad(x, self.pads, mode=self.mode))


class Same(Standardized):
    """Padding computed from the size, as TensorFlow does."""

    def forward(self, x):
        pads = []
        for size, taps, step in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + taps - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def read(conv):
    return effective(conv.eval(), of_module(conv)[0], SIZE)


@pytest.mark.parametrize(
    ("conv", "padding", "mode"),
    [
        (Standardized(2, 3, 5, padding=2), (2, 2, 2, 2), "zeros"),
        (Standardized(2, 3, 5, stride=2), (0, 0, 0, 0), "zeros"),
        (Before((1, 2, 3, 0)), (1, 2, 3, 0), "zeros"),
        (Before((1, 2, 3, 0), padding=1), (2, 3, 4, 1), "zeros"),
        (Before((2, 1, 3, 4), "reflect"), (2, 1, 3, 4), "reflect"),
        (Before((2, 1, 3, 4), "replicate"), (2, 1, 3, 4), "replicate"),
        (Before((2, 1, 3, 4), "circular"), (2, 1, 3, 4), "circular"),
        (Same(2, 3, 5), (2, 2, 2, 2), "zeros"),
    ],
    ids=str,
)
def test_weight_and_padding_are_read_off_a_call(conv, padding, mode):
    found = read(conv)
    torch.testing.assert_close(found.weight, conv.standard())
    assert (found.geometry.padding, found.geometry.padding_mode) == (padding, mode)
    x = torch.randn(3, 2, 17, 13)
    torch.testing.assert_close(
        found.form.convolve(x, found.weight, found.bias, found.geometry), conv(x)
    )


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_padding_as_the_size_needs_it_is_read_off(stride):
    conv = Same(2, 3, 5, stride=stride).eval()
    found = read(conv)
    torch.testing.assert_close(found.weight, conv.standard())
    assert found.geometry.padding == (0, 0, 0, 0)
    for size in range(12, 18):
        x = torch.randn(2, 2, size, size + 1)
        mine = found.form.convolve(x, found.weight, found.bias, found.geometry)
        torch.testing.assert_close(mine, conv(x))
        plain = F.conv2d(found.form.input(x), found.weight, found.bias, conv.stride)
        torch.testing.assert_close(plain, conv(x))
    assert effective(conv, found.form, SIZE).form == found.form


def pruned():
    conv = nn.Conv2d(2, 3, 5)
    prune.l1_unstructured(conv, "weight", 0.5)
    return conv


@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 5)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 5)),
        pruned,
    ],
)
def test_computed_weights_are_those_of_the_evaluation(make):
    conv = make().train()
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    drawn = torch.get_rng_state()
    found = effective(conv, PLAIN, SIZE)
    assert conv.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, conv.state_dict()[name]) for name, value in state.items())
    x = torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(F.conv2d(x, found.weight, found.bias), conv.eval()(x))


class Scaled(Standardized):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(Standardized):
    def forward(self, x):
        return super().forward(x + 1)


class Dynamic(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class Doubled(Same):
    """Pads twice what TensorFlow does."""

    def forward(self, x):
        return super().forward(F.pad(x, (x.shape[-1] % 2,) * 4))


class Alone(nn.Conv2d):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("conv", "said"),
    [
        (Doubled(2, 3, 5, stride=2), "padding depends on the size"),
        (Scaled(2, 3, 5), "more than its convolution"),
        (Shifted(2, 3, 5), "changes the input"),
        (Dynamic(2, 3, 5), "weight depends on the input"),
        (Alone(2, 2, 5), "0 convolutions"),
    ],
    ids=str,
)
def test_what_computes_something_else_is_refused(conv, said):
    with pytest.raises(NotPlainError, match=said):
        read(conv)


def test_the_digest_is_that_of_kind_and_state():
    conv, other = Standardized(2, 3, 5), Same(2, 3, 5)
    other.load_state_dict(conv.state_dict())
    assert state_digest(conv) != state_digest(other)
    other = Standardized(2, 3, 5)
    assert state_digest(conv) != state_digest(other)
    other.load_state_dict(conv.state_dict())
    assert state_digest(conv) == state_digest(other)
